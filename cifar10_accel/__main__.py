"""`python -m cifar10_accel` is the command `cifar10-accel`."""

from cifar10_accel.cli import main

main()
