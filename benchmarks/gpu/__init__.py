"""Checks and measurements that need a GPU, in pieces: `python -m benchmarks.gpu --help`."""
