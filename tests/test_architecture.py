"""The house as it was designed: floors, doors and sizes, read from the sources."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "cifar10_accel"
FLOORS = [
    {
        "errors",
        "names",
        "randomness",
        "schedule",
        "stopwatch",
        "processes",
        "trials",
        "mirrors",
        "spread",
        "calibration",
        "muon",
        "allocator",
    },
    {
        "recipes",
        "settings_errors",
        "array_file",
        "metrics_log",
        "checkpoint",
        "console",
        "interrupt",
        "wandb_api",
        "children",
        "grad_cam",
    },
    {"settings", "predictions", "dynamics"},
    {"flags", "launch", "data", "models", "optim", "run_folder", "recorder", "pictures", "pages", "wandb_mirror"},
    {"engine", "training_state", "tracking", "past_run", "nearest"},
    {"journal", "results", "memory", "classifier", "checks", "speed"},
    {
        "train",
        "evaluate",
        "lr_range",
        "preview",
        "predict",
        "export",
        "sweep",
        "wandb_report",
        "report",
        "compare",
        "demo",
    },
    {"trace", "verify_parallel", "verify_resume", "doctor", "repeat", "robustness"},
    {"cli"},
    {"__main__"},
]
DOORS = {
    "wandb": {"wandb_mirror", "wandb_api"},
    "wandb_workspaces": {"wandb_report"},
    "albumentations": {
        "data.augment",
        "data.augmentations",
        "data.lowering",
        "data.lowering_geometry",
        "data.lowering_pixels",
    },
    "click": {"cli", "cli.checking", "cli.data", "flags", "train", "trace", "sweep.commands"},
    "pydantic": {"settings", "flags"},
    "pydantic_settings": {"settings"},
    "yaml": {"settings", "recipes", "sweep.results", "sweep.bounds"},
    "matplotlib": {"pictures"},
    "gradio": {"demo"},
    "optuna": {"sweep.search", "sweep.storage", "sweep.importance"},
}
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
    if path != PACKAGE / "__init__.py"
}


def floor(module: str) -> int:
    """The floor of a module's room: packages have one for all their files."""
    room = module.split(".")[0]
    return next(number for number, rooms in enumerate(FLOORS) if room in rooms)


def imports(path: Path) -> set[str]:
    """Everything a file imports, as dotted names."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_strictly_down(module: str) -> None:
    for name in imports(MODULES[module]):
        if not name.startswith("cifar10_accel."):
            continue
        room = name.removeprefix("cifar10_accel.").split(".")[0]
        if room == "__version__" or room == module.split(".")[0]:
            continue
        assert floor(room) < floor(module), f"{module} imports {name}"


@pytest.mark.parametrize("module", MODULES)
def test_each_library_has_its_door(module: str) -> None:
    for name in imports(MODULES[module]):
        door = DOORS.get(name.split(".")[0])
        assert door is None or module in door or module.rpartition(".")[0] in door, f"{module} imports {name}"


@pytest.mark.parametrize("module", MODULES)
def test_modules_and_functions_stay_small(module: str) -> None:
    source = MODULES[module].read_text()
    assert len(source.splitlines()) <= 320
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno <= 80, node.name


def test_the_accelerator_is_made_in_one_place() -> None:
    makers = {module for module, path in MODULES.items() if "Accelerator(" in path.read_text()}
    assert makers == {"launch"}


def test_every_room_is_on_a_floor() -> None:
    assert {module.split(".")[0] for module in MODULES} == set().union(*FLOORS)
