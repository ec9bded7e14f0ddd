"""The augmentations: each file gives the Albumentations transforms of one name of `settings.augment`.

They get uint8 images of 32x32 pixels, after those of the names before them in `names.Augmentation`.
"""
