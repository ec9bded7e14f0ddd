"""What a GPU is needed for, in pieces: `python -m benchmarks.gpu --help`."""
