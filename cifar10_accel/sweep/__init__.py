"""Hyperparameter sweeps: W&B sweep files run locally on Optuna, on one machine or many."""
