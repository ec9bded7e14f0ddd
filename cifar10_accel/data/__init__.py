"""The rooms that turn bytes on disk into batches on the device."""

import os

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # without it importing Albumentations asks for a newer version
