"""Cost of augmentation: `python -m benchmarks.augment`. All contestants in one run on one thread.

The pipeline is the default one: reflect pad 4, random crop, random flip, cutout 8, normalise to float32. Contestants
take turns. CPU time of the one thread is measured, so that other load on the machine has little influence. Needs no
data. With a GPU it also measures the batched execution there, beside a training step.
"""

import importlib.util
import time
from collections.abc import Callable
from typing import Any

import click
import numpy as np
import torch
import torchvision.transforms.v2 as tv

from benchmarks import memory
from benchmarks.machine import describe_machine
from cifar10_accel.data.augment.batched import lower, normalize
from cifar10_accel.data.augment.pipeline import apply, image_key, image_keys, training_pipeline
from cifar10_accel.data.image_format import CIFAR10_IMAGES
from cifar10_accel.data.loader import IMAGES_PER_GROUP
from cifar10_accel.settings import Settings

BATCH = 512
AT_ONCE = IMAGES_PER_GROUP // BATCH  # batches that training augments together on a GPU
SINGLE = 512  # images per round for contestants that process single images
ROUNDS = 15
IMAGES = np.random.default_rng(0).integers(0, 256, (BATCH, 32, 32, 3), dtype=np.uint8)
BATCHED = torch.from_numpy(IMAGES).permute(0, 3, 1, 2)  # (N, 3, 32, 32) uint8, channels_last
PLANAR = BATCHED.contiguous()  # the layout torchvision is fastest with
CUTOUT = (8 * 8) / (32 * 32)

Contestant = tuple[str, int, Callable[[], Any]]  # name, images per call, call


@click.command()
def main() -> None:
    """Measure images/s of the augmentation, beside other implementations, and the memory of the images."""
    torch.set_num_threads(1)
    print(describe_machine("torchvision", "albumentations", "kornia", "numpy"))
    print_table(contestants())
    print(flush=True)
    memory.print_memory()
    if torch.cuda.is_available():
        print_gpu()


def contestants() -> list[Contestant]:
    """Return the contestants, ours first; all others run the same transforms with their own implementation."""
    pipeline = training_pipeline(Settings())
    augment = lower(pipeline)
    indices = torch.arange(BATCH)
    plain = training_pipeline(Settings())
    torchvision_pipeline = torchvision_transforms()
    found: list[Contestant] = [
        ("batched", BATCH, lambda: augment(BATCHED, image_keys(0, 0, indices), torch.float32)),
        ("batched, normalisation alone", BATCH, lambda: normalize(BATCHED, torch.float32)),
        ("Albumentations, image by image", SINGLE, lambda: [plain(image=image) for image in IMAGES]),
        (
            "Albumentations with our draws",
            SINGLE,
            lambda: [apply(pipeline, x, key=image_key(0, 0, i)) for i, x in enumerate(IMAGES)],
        ),
        ("torchvision v2, image by image", SINGLE, lambda: [torchvision_pipeline(image) for image in PLANAR]),
        ("torchvision v2, batch (*)", BATCH, lambda: torchvision_pipeline(PLANAR)),
        ("torchvision v2, batch, channels_last (*)", BATCH, lambda: torchvision_pipeline(BATCHED)),
    ]
    if importlib.util.find_spec("kornia"):
        kornia_pipeline = kornia_transforms()
        found.append(("kornia, batch", BATCH, lambda: kornia_pipeline(PLANAR.float() / 255)))
    return found


def torchvision_transforms() -> Any:
    """Return the default pipeline in torchvision v2."""
    return tv.Compose(
        [
            tv.RandomCrop(32, padding=4, padding_mode="reflect"),
            tv.RandomHorizontalFlip(),
            tv.RandomErasing(p=1, scale=(CUTOUT, CUTOUT), ratio=(1, 1), value=[125, 123, 114]),
            tv.ToDtype(torch.float32, scale=True),
            tv.Normalize(CIFAR10_IMAGES.mean, CIFAR10_IMAGES.std, inplace=True),
        ]
    )


def kornia_transforms() -> Any:
    """Return the default pipeline in kornia, on floats in 0..1."""
    import kornia.augmentation as K

    return K.AugmentationSequential(
        K.RandomCrop((32, 32), padding=4, padding_mode="reflect"),
        K.RandomHorizontalFlip(),
        K.RandomErasing(p=1, scale=(CUTOUT, CUTOUT), ratio=(1, 1), value=float(np.mean(CIFAR10_IMAGES.mean))),
        K.Normalize(torch.tensor(CIFAR10_IMAGES.mean), torch.tensor(CIFAR10_IMAGES.std)),
    )


def print_table(found: list[Contestant]) -> None:
    """Print images per second, best and median of the rounds, and the ratio of `batched`."""
    seconds: dict[str, list[float]] = {name: [] for name, _, _ in found}
    for _ in range(ROUNDS):
        for name, num_images, call in found:
            start = time.process_time()
            call()
            seconds[name].append((time.process_time() - start) / num_images)
    ours = np.median(seconds["batched"])
    print(f"\n| one core, batches of {BATCH} | images/s, best | images/s, median | batched is faster by |")
    print("|---|---:|---:|---:|")
    for name, values in seconds.items():
        best, median = min(values), np.median(values)
        print(f"| {name} | {1 / best:,.0f} | {1 / median:,.0f} | {median / ours:.1f}x |")
    print("(*) one crop, one flip and one box for the whole batch, not for each image")


def print_gpu() -> None:
    """Print the speed of batched execution on the GPU, and its share of a training step of `resnet9` in fp16."""
    augment = lower(training_pipeline(Settings()))
    print(
        f"\n| {torch.cuda.get_device_name()}, torch {torch.version.cuda} | images/s | ms per batch |\n|---|---:|---:|"
    )
    for num_images in (BATCH, AT_ONCE * BATCH, 50_000):
        images = torch.randint(0, 256, (num_images, 32, 32, 3), dtype=torch.uint8, device="cuda").permute(0, 3, 1, 2)
        indices = torch.arange(num_images, device="cuda")
        seconds = _gpu_seconds(lambda: augment(images, image_keys(0, 0, indices), torch.float16))  # noqa: B023
        print(f"| batched, fp16, batches of {num_images:,} | {num_images / seconds:,.0f} | {seconds * 1e3:.3f} |")
        if num_images == AT_ONCE * BATCH:
            share = seconds / AT_ONCE
    step = _gpu_seconds(_training_step())
    print(f"training step of resnet9, fp16, batch {BATCH}: {step * 1e3:.2f} ms", end="; ")
    print(f"augmentation, {AT_ONCE} batches at once, is {share / step:.1%} of it")


def _training_step() -> Callable[[], None]:
    from cifar10_accel.models.registry import build_model

    model = build_model(Settings(), num_classes=10).cuda().to(memory_format=torch.channels_last)
    inputs = torch.randn(BATCH, 3, 32, 32, device="cuda").contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (BATCH,), device="cuda")

    def step() -> None:
        with torch.autocast("cuda", torch.float16):
            loss = torch.nn.functional.cross_entropy(model(inputs), labels)
        loss.backward()  # type: ignore[no-untyped-call]

    return step


def _gpu_seconds(call: Callable[[], Any]) -> float:
    """Return the seconds per call: best of five rounds of 50 calls, after 10 to warm up."""
    for _ in range(10):
        call()
    times = []
    for _ in range(5):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(50):
            call()
        torch.cuda.synchronize()
        times.append((time.perf_counter() - start) / 50)
    return min(times)


if __name__ == "__main__":
    main()
