"""Constants of CIFAR-10: image size and channel statistics."""

IMAGE_SIZE = 32  # height and width in pixels
MEAN = (0.4914, 0.4822, 0.4465)  # per channel (RGB), of the 50,000 training images scaled to 0..1
STD = (0.2470, 0.2435, 0.2616)
MEAN_COLOUR = tuple(round(255 * channel) for channel in MEAN)
