"""Sweeps: W&B's sweep files, run on this machine (and its neighbours) without W&B."""
