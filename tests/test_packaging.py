"""The source distribution and the wheel contain what they should."""

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from training_commands import REPOSITORY

BUILD = "from setuptools import build_meta as b; import sys; to = sys.argv[1]; b.build_sdist(to); b.build_wheel(to)"
FOLDERS = ("benchmarks", "cifar10_accel", "docs", "examples", "sweeps", "tests")


def test_distributions_are_complete(tmp_path: Path) -> None:
    pytest.importorskip("setuptools", minversion="77")
    sources = tmp_path / "sources"
    for name in FOLDERS:
        ignored = shutil.ignore_patterns("__pycache__", "*.png")
        shutil.copytree(REPOSITORY / name, sources / name, ignore=ignored)
    for path in REPOSITORY.iterdir():
        if path.is_file():
            shutil.copy(path, sources)
    subprocess.run([sys.executable, "-c", BUILD, str(tmp_path)], cwd=sources, check=True, capture_output=True)
    (sdist,), (wheel,) = tmp_path.glob("*.tar.gz"), tmp_path.glob("*.whl")

    with tarfile.open(sdist) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    expected = {str(path.relative_to(REPOSITORY)) for path in REPOSITORY.iterdir() if path.suffix in (".md", ".yaml")}
    assert expected | {"LICENSE", "Makefile", "pyproject.toml"} <= packed
    assert _files_in(sources, FOLDERS) <= packed

    with zipfile.ZipFile(wheel) as archive:
        installed = set(archive.namelist())
    assert _files_in(sources, ("cifar10_accel",)) <= installed
    assert {name.partition("/")[0].partition("-")[0] for name in installed} == {"cifar10_accel"}


def _files_in(root: Path, folders: tuple[str, ...]) -> set[str]:
    paths = [path for folder in folders for path in (root / folder).rglob("*")]
    return {str(path.relative_to(root)) for path in paths if path.is_file() and path.suffix != ".pyc"}
