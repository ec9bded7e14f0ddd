"""The documentation: the site builds without a warning, every command in it works, every file it names exists."""

import importlib
import operator
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
    apply_changes,
    check_launch,
    copy_prerequisites,
    reason_not_to_run,
    run,
    run_page,
    shell_commands,
)

import cifar10_accel
from cifar10_accel.cli import main
from cifar10_accel.recipes import recipe_names, recipe_path
from cifar10_accel.settings import Settings
from cifar10_accel.train import fit

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


def test_the_site_builds_and_needs_no_network(site: Path) -> None:
    """No page loads anything from elsewhere: only links have external addresses."""
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
        assert (_plain(f"cifar10-accel {name}") in commands) is not command.hidden, name
        assert command.hidden or _plain(command.help or "missing") in commands or name in ("data", "sweep")


def test_the_api_page_has_every_public_name_and_code_has_copy_buttons(site: Path) -> None:
    api = (site / "api.html").read_text()
    for name in set(cifar10_accel.__all__) - {"__version__"}:
        assert f'id="cifar10_accel.{name}"' in api, name
    assert "The trained model on the CPU" in _text(site / "api.html")  # first lines with a colon stay whole
    assert "copybutton.js" in api


def test_every_command_is_run_or_has_a_reason() -> None:
    """Every entry of CANNOT_RUN is used, and every command of another program has an entry."""
    used = set()
    for page in PAGES:
        for _, words in shell_commands(page):
            entry = reason_not_to_run(words)
            assert entry or words[0] == "cifar10-accel", f"{page.name}: {words}"
            used.add(entry)
    for name in recipe_names():  # the page of recipes shows these lines
        check_launch(shlex.split(recipe_path(name).read_text().splitlines()[0].removeprefix("# ")))
    assert set(CANNOT_RUN) <= used
    with pytest.raises(AssertionError, match="CANNOT_RUN"):
        run({}, ["rm", "-rf", "runs"])
    with pytest.raises(AssertionError, match="exit 2"):
        run({}, ["cifar10-accel", "train", "--max-lr", "-1"])


def test_commands_within_sentences_exist() -> None:
    for page in PAGES:
        for words in re.findall(r"`cifar10-accel ([a-z-]+(?: [a-z-]+)?)", page.read_text()):
            done = CliRunner().invoke(main, [*words.split(), "--help"])
            assert done.exit_code == 0, f"{page.name}: cifar10-accel {words}"


def test_files_named_in_the_documentation_exist() -> None:
    """Paths of Python files and tests; those of the package may be given without its name."""
    created = {f"cifar10_accel/{name}" for name in ("models/plain.py", "data/augment/light.py")}
    for page in [*PAGES, REPOSITORY / "CONTRIBUTING.md", REPOSITORY / "BENCHMARKS.md"]:
        for path in re.findall(r"`([\w/]+\.(?:py|sbatch|sh|ipynb))`", page.read_text()):
            found = any((folder / path).exists() for folder in (REPOSITORY, REPOSITORY / "cifar10_accel"))
            assert found or path in created, f"{page.name}: {path}"


def test_functions_named_in_the_architecture_exist() -> None:
    """The table that follows a batch from the disk to the optimizer step."""
    rows = re.findall(r"^\| `([\w/]+)\.py` \| `([\w.]+)` \|", (DOCS / "architecture.md").read_text(), flags=re.M)
    assert len(rows) == 16
    for path, name in rows:
        operator.attrgetter(name)(importlib.import_module(f"cifar10_accel.{path.replace('/', '.')}"))


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("documented") / "run"
    given = {name.removeprefix("CIFAR10_ACCEL_").lower(): value for name, value in ENVIRONMENT.items()}
    fit(Settings(**given, recipe="smoke", val_size=20, run_dir=folder))
    return folder


@pytest.mark.parametrize("page", [page for page in PAGES if page not in EXTENDING], ids=lambda page: page.stem)
def test_commands_work(page: Path, run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy_prerequisites(tmp_path, run_folder)
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    run_page(page)


def test_a_model_and_an_augmentation_are_a_file_and_three_lines_each(tmp_path: Path) -> None:
    """The changes that the two pages show are made in a copy of the package, and the commands of the pages work there.

    The lines: an import, an entry in the table of names, and the name in the settings.
    """
    tree = tmp_path / "tree"
    shutil.copytree(REPOSITORY / "cifar10_accel", tree / "cifar10_accel", ignore=shutil.ignore_patterns("__pycache__"))
    for page in EXTENDING:
        assert apply_changes(page, tree) == (1, 3), page
    command = [sys.executable, str(REPOSITORY / "tests" / "support" / "documentation.py"), *map(str, EXTENDING)]
    variables = os.environ | {"PYTHONPATH": str(tree), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=variables, timeout=300)
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
