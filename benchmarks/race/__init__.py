"""Accuracy after the same training time on one CPU, of this project and four others: `python -m benchmarks.race`."""
