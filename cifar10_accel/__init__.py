"""CIFAR-10 training on Hugging Face Accelerate: one loop, the same run everywhere."""

__version__ = "0.1.0"
