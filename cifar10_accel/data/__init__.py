"""Data sets: files on disk to verified uint8 arrays to batches on the device."""

import os

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else the import looks for a newer version on the network
