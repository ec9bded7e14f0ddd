"""The documentation: the site builds without a warning, and every command in it works."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from documentation import (
    CANNOT_RUN,
    ENVIRONMENT,
    PAGES,
    REPOSITORY,
    apply,
    do_all,
    furnish,
    launched,
    reason_not_to_run,
    run,
    shell_commands,
)

from cifar10_accel.cli import main
from cifar10_accel.recipes import recipe_names, recipe_path
from cifar10_accel.settings import Settings
from cifar10_accel.train import train

DOCS = REPOSITORY / "docs"
EXTENDING = [DOCS / "adding-a-model.md", DOCS / "adding-an-augmentation.md"]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("sphinx")
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--keep-going", "--quiet", "-d", f"{out}/doctrees"]
    done = subprocess.run([*command, str(DOCS), f"{out}/html"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return out / "html"


def test_the_site_builds_and_asks_no_network(site: Path) -> None:
    """Nothing in it is loaded from elsewhere: links are the only addresses."""
    pages = list(site.rglob("*.html"))
    assert len(pages) >= len(list(DOCS.glob("*.md")))
    for page in pages:
        for tag in re.findall(r"<(?:script|link|img|iframe|source)\b[^>]*>", page.read_text()):
            assert not re.search(r'(?:src|href)="(?:https?:)?//', tag), f"{page.name}: {tag}"
    for sheet in site.rglob("*.css"):
        assert not re.search(r"""(?:url\(|@import)\s*["']?(?:https?:)?//""", sheet.read_text()), sheet
    assert sum(path.stat().st_size for path in site.rglob("*") if path.is_file()) < 3_000_000


def test_the_reference_has_every_setting_and_command(site: Path) -> None:
    settings = _text(site / "settings.html")
    for name, field in Settings.model_fields.items():
        assert f'id="confval-{name}"' in (site / "settings.html").read_text(), name
        assert _plain(field.description or "missing") in settings, name
    assert "number, above 0, at most 1,000" in settings  # max_lr
    commands = _text(site / "commands.html")
    for name, command in main.commands.items():
        assert _plain(f"cifar10-accel {name}") in commands, name
        assert _plain(command.help or "missing") in commands or name in ("data", "sweep")


def test_every_command_is_run_or_has_a_reason() -> None:
    """Both ways: no entry without a use, no command of another program without an entry."""
    used = set()
    for page in PAGES:
        for _, words in shell_commands(page):
            entry = reason_not_to_run(words)
            assert entry or words[0] == "cifar10-accel", f"{page.name}: {words}"
            used.add(entry)
    for name in recipe_names():  # the page of recipes shows these lines
        launched(shlex.split(recipe_path(name).read_text().splitlines()[0].removeprefix("# ")))
    assert set(CANNOT_RUN) <= used
    with pytest.raises(AssertionError, match="CANNOT_RUN"):
        run({}, ["rm", "-rf", "runs"])
    with pytest.raises(AssertionError, match="exit 2"):
        run({}, ["cifar10-accel", "train", "--max-lr", "-1"])


def test_commands_within_sentences_exist() -> None:
    for page in PAGES:
        for words in re.findall(r"`cifar10-accel ([a-z-]+(?: [a-z-]+)?)", page.read_text()):
            done = CliRunner().invoke(main, [*words.split(), "--help"])
            first = CliRunner().invoke(main, [words.split()[0], "--help"])
            assert 0 in (done.exit_code, first.exit_code), f"{page.name}: cifar10-accel {words}"


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("documented") / "run"
    given = {name.removeprefix("CIFAR10_ACCEL_").lower(): value for name, value in ENVIRONMENT.items()}
    train(Settings(**given, recipe="smoke", val_size=20, run_dir=folder))
    return folder


@pytest.mark.parametrize("page", [page for page in PAGES if page not in EXTENDING], ids=lambda page: page.stem)
def test_commands_work(page: Path, run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    furnish(tmp_path, run_folder)
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    do_all(page)


def test_a_model_and_an_augmentation_are_a_file_and_a_line_each(tmp_path: Path) -> None:
    """What the two pages say is done, to a copy of the package, and what they then run works."""
    tree = tmp_path / "tree"
    shutil.copytree(REPOSITORY / "cifar10_accel", tree / "cifar10_accel", ignore=shutil.ignore_patterns("__pycache__"))
    for page in EXTENDING:
        assert apply(page, tree) == (1, 1), page
    command = [sys.executable, str(REPOSITORY / "tests" / "documentation.py"), *map(str, EXTENDING)]
    place = {"PYTHONPATH": str(tree), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=os.environ | place, timeout=300)
    assert done.returncode == 0, done.stderr
    assert str(tree) in done.stdout
    assert done.stdout.count("cifar10-accel") == 5
    for name in ("plain", "light"):
        assert (tmp_path / "runs" / name / "report.html").stat().st_size > 10_000


def _text(page: Path) -> str:
    return _plain(re.sub(r"<[^>]*>", "", page.read_text()))


def _plain(text: str) -> str:
    for sign, plain in {"&lt;": "<", "&gt;": ">", "&quot;": '"', "&#39;": "'", "&amp;": "&"}.items():
        text = text.replace(sign, plain)
    return " ".join(re.sub("[`\u2018\u2019'\u201c\u201d\"\u2013\u2014-]+", "", text).split())
