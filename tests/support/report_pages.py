"""Made-up runs for the tests of pages, and what every page must be: well-formed, self-contained, escaped."""

import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np

from cifar10_accel.report.run_page import PageImages, write_run_page
from cifar10_accel.runs.dynamics import Dynamics
from cifar10_accel.runs.predictions import Predictions
from cifar10_accel.runs.run_folder import RunFolder
from cifar10_accel.runs.saved_run import SavedRun
from cifar10_accel.settings import Settings

SCRIPT = "<script>alert('x')"
EVIL = f"{SCRIPT}</script>"
VOID = {"meta", "link", "br", "img", "input", "hr"}


class Parsed(HTMLParser):
    """Asserts that every element is closed where it has to be; keeps the ids and what is linked."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.text = path.read_text(encoding="utf-8")
        self.open: list[str] = []
        self.ids: set[str] = set()
        self.linked: list[str] = []
        self.feed(self.text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        self.ids |= {named["id"] or ""} if "id" in named else set()
        self.linked += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> in line {self.getpos()[0]}"


def assert_self_contained(path: Path) -> Parsed:
    page = Parsed(path)
    assert len(page.text) < 5_000_000
    assert SCRIPT not in page.text
    for link in page.linked:  # nothing is fetched; papers may be named
        assert link.startswith(("#", "data:", "https://arxiv.org/")), link
    assert re.findall(r"url\((?!['\"]?data:)", page.text) == []
    return page


def predictions(num_images: int, num_classes: int = 10) -> Predictions:
    random = np.random.default_rng(0)
    label = np.arange(num_images) % num_classes
    scores = random.normal(size=(num_images, num_classes)) + 2.2 * np.eye(num_classes)[label]
    shares = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    loss = -np.log(shares[np.arange(num_images), label])
    return Predictions(
        index=np.arange(num_images), label=label, probabilities=shares.astype(np.float32), loss=loss.astype(np.float32)
    )


def write_page(path: Path, **changes: Any) -> Predictions:
    """Write the page of a made-up run, with changes to SavedRun or PageImages; return its predictions."""
    test = predictions(1000)
    given: dict[str, Any] = {
        "folder": RunFolder(path.parent / SCRIPT),
        "settings": Settings(max_lr=0.123),
        "environment": {
            "device": "cpu",
            "packages": {"torch": "9.9"},
            "command": ["train", EVIL],
            "classes": [EVIL, *map(str, range(1, 10))],
        },
        "summary": {
            "dataset": "synthetic",
            "test/accuracy": test.accuracy(),
            "test/accuracy_tta": 0.4321,
            "train_seconds": 99.0,
            "images_per_second": 10.0,
            "step": 20,
        },
        "metrics": [
            {"step": s, "epoch": s / 10, "train/loss": 2 / s, "train/accuracy": s / 30, "lr": 0.1} for s in range(1, 21)
        ]
        + [{"step": 20, "epoch": 2.0, "val/accuracy": math.nan}],
        "test": test,
        "val": predictions(200),
        "dynamics": None,
        "missing": (),
    }
    noise = np.random.default_rng(1).integers(0, 256, (1000, 32, 32, 3), dtype=np.uint8)
    images = PageImages(test=changes.pop("images", noise), train=changes.pop("training_images", None))
    write_run_page(path, SavedRun(**(given | changes)), images)
    return test


def dynamics(num_epochs: int, num_images: int = 3000) -> Dynamics:
    """A made-up record in which every kind of image occurs."""
    random = np.random.default_rng(0)
    label = (np.arange(num_images) % 10).astype(np.int8)
    ease = random.random(num_images)
    right = random.random((num_epochs, num_images)) < ease
    prediction = np.where(right, label, (label + 1) % 10).astype(np.int8)
    prediction[:, ::7] = -1
    loss = np.where(prediction == -1, np.nan, -np.log(0.02 + 0.97 * ease * random.random(prediction.shape)))
    return Dynamics(loss.astype(np.float16), prediction, label)
