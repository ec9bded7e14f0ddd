"""Rules of the package that import-linter and ruff do not check: sizes, and who builds the Accelerator."""

import ast
import re
from pathlib import Path

import pytest
from training_commands import REPOSITORY

PACKAGE = REPOSITORY / "cifar10_accel"
MODULES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_modules_and_functions_are_small(path: Path) -> None:
    source = path.read_text()
    assert len(source.splitlines()) <= 320
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno <= 80, node.name


def test_folders_are_small() -> None:
    sizes = {folder: len(list(folder.glob("*.py"))) for folder in {path.parent for path in MODULES}}
    assert sizes.pop(PACKAGE) <= 12
    assert max(sizes.values()) <= 20


def test_the_accelerator_is_built_in_one_place() -> None:
    builders = {str(path.relative_to(PACKAGE)) for path in MODULES if re.search(r"\bAccelerator\(", path.read_text())}
    assert builders == {"training/accelerator.py"}
