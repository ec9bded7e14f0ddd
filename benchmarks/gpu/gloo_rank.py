"""One of two processes that train on one GPU; `benchmarks.gpu.check_functions.two_gloo_ranks` starts them.

`cifar10_accel.train` would take NCCL, which refuses two ranks on one GPU, so the process group exists before it starts.
"""

import sys

import torch.distributed
from accelerate.state import PartialState

from cifar10_accel.cli import main

if __name__ == "__main__":
    torch.distributed.init_process_group("gloo")
    prepare_backend = PartialState._prepare_backend

    def with_gloo(self: PartialState, *args: object, **kwargs: object) -> object:
        """Return what Accelerate chooses, with gloo as the backend."""
        return "gloo", prepare_backend(self, *args, **kwargs)[1]

    PartialState._prepare_backend = with_gloo
    main(["train", *sys.argv[1:]], prog_name="cifar10-accel")
