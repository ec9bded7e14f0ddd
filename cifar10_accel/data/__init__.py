"""The rooms that turn bytes on disk into batches on the device."""
