"""The speednet of the 96% runs: three convolutions a stage, with a residual around the last two."""

from functools import partial

from cifar10_accel.models.speednet import Net as SpeedNet

Net = partial(SpeedNet, convs_per_stage=3)
