"""The nets and augmentations that settings can name: a name here is a file, so adding one takes a file and a line."""

from typing import Literal

Model = Literal[  # models/<name>.py has the class `Net`
    "custom_resnet",
    "resnet18",
    "depthwise_dilated",
    "speednet",
    "speednet_deep",
]

Augmentation = Literal[  # data/augmentations/<name>.py has `transforms(settings)`; applied in this order
    "crop",
    "flip",
    "cutout",
]
