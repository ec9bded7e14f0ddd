"""Augmentation: Albumentations pipelines for single images, and the same pipelines for batches of tensors."""
