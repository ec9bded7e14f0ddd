"""Rendering of one self-contained HTML file from a template, written atomically."""

from functools import cache
from pathlib import Path
from typing import Any

import jinja2

from cifar10_accel import __version__
from cifar10_accel.files import write_text
from cifar10_accel.formatting import dataset_title, format_p_value, format_seconds, format_short, format_value
from cifar10_accel.report.svg import format_number, format_percent


def write_page(path: Path, template: str, **context: Any) -> None:
    """Render templates/<template>.html.j2 and replace the file.

    Raises:
        OSError: The file cannot be written.
    """
    text = _environment().get_template(f"{template}.html.j2").render(**context, version=__version__)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("cifar10_accel.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {
        "number": format_number,
        "p_value": format_p_value,
        "percent": format_percent,
        "format_seconds": format_seconds,
        "format_short": format_short,
        "format_value": format_value,
        "dataset_title": dataset_title,
    }
    return environment
