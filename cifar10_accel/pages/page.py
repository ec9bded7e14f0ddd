"""One HTML file from a template: everything in it, nothing from the network, whole on disk or not there."""

import math
from functools import cache
from pathlib import Path
from typing import Any

import jinja2

from cifar10_accel import __version__
from cifar10_accel.pages.svg import number, percent


def write_page(path: Path, template: str, **context: Any) -> None:
    """Renders templates/<template>.html.j2 and replaces the file; OSError if it cannot be written."""
    text = _templates().get_template(f"{template}.html.j2").render(**context, version=__version__)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.tmp")
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)


def duration(seconds: float | None) -> str:
    """Seconds as a person says them: 8.3 s, 4 min 05 s, 2 h 10 min."""
    if seconds is None or not math.isfinite(seconds):
        return "-"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def word(value: Any) -> str:
    """A setting's value as one would type it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return number(value)
    if isinstance(value, list | tuple):
        return ",".join(map(str, value)) or "none"
    return "none" if value is None else str(value)


def labelled(dataset: str) -> str:
    """The data set's name as pages show it: nobody may take a drawn set for the real one."""
    return {"cifar10": "CIFAR-10", "synthetic": "SYNTHETIC (not CIFAR-10)"}.get(dataset, dataset)


@cache
def _templates() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("cifar10_accel.pages"), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    environment.filters |= {
        "number": number, "percent": percent, "duration": duration, "word": word, "labelled": labelled,
    }  # fmt: skip
    return environment
