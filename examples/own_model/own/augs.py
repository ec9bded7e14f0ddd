"""An augmentation: a function that returns a list of Albumentations transforms.

Their random choices are functions of (seed, epoch, image), so they are the same for any number of processes and after
a resume.
"""

import albumentations as A


def light() -> list[A.BasicTransform]:
    """Change brightness and contrast of half of the images; has a batched form, so it is as fast as the built-in."""
    return [A.RandomBrightnessContrast(brightness_limit=0.2, contrast_limit=0.2, p=0.5)]


def blur() -> list[A.BasicTransform]:
    """Blur a third of the images; has no batched form, so images are augmented one by one, in loader workers."""
    return [A.GaussianBlur(blur_limit=3, p=0.33)]
