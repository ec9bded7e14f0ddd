"""Sweep files: all shipped ones can be run, and an invalid one is refused with one line before anything starts."""

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from training_commands import REPOSITORY

from cifar10_accel.errors import SettingsError
from cifar10_accel.settings import Settings
from cifar10_accel.sweep.file import Halving, num_trials_of, read_sweep
from cifar10_accel.sweep.spaces import Choice, Interval, read_space

SHIPPED = sorted((REPOSITORY / "sweeps").glob("*.yaml"))
GOOD: dict[str, Any] = {
    "method": "random",
    "metric": {"name": "val/accuracy", "goal": "maximize"},
    "run_cap": 4,
    "parameters": {
        "max_lr": {"min": 0.01, "max": 1.0},
        "recipe": {"value": "smoke"},
        "val_size": {"value": 40},
    },
}


def write(path: Path, values: Any) -> Path:
    """Write a sweep file with these values."""
    path.write_text(yaml.safe_dump(values))
    return path


def with_parameter(name: str, **given: Any) -> dict[str, Any]:
    """Return the good file with a parameter added or replaced."""
    return GOOD | {"parameters": GOOD["parameters"] | {name: given}}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_file_can_be_run_here_and_by_wandb(path: Path) -> None:
    sweep = read_sweep(path)
    values = yaml.safe_load(path.read_text())
    assert values["parameters"].keys() <= Settings.model_fields.keys()
    assert sweep.metric.startswith("val/")
    assert num_trials_of(sweep, None) > 1
    command = values["command"]
    assert command[1:3] == ["accelerate", "launch"]
    assert command[-4:] == ["accelerate_config.yaml", "-m", "cifar10_accel.train", "${args}"]
    assert (REPOSITORY / values["program"]).is_file()


def test_the_documented_files_exist() -> None:
    assert [path.stem for path in SHIPPED] == ["augmentation", "grid", "onecycle", "smoke"]
    sweep = read_sweep(REPOSITORY / "sweeps" / "onecycle.yaml")
    assert (sweep.method, sweep.goal, sweep.run_cap) == ("bayes", "maximize", 30)
    assert sweep.halving == Halving(first_rung=4, factor=2)
    assert sweep.searched.keys() == {"max_lr", "weight_decay"}
    assert all(isinstance(space, Interval) and space.log for space in sweep.searched.values())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], "expected lines of `name: value`"),
        ({}, "method: None"),
        (GOOD | {"methd": "grid"}, "methd: no such key (did you mean 'method'?)"),
        (GOOD | {"method": "bayse"}, "method: 'bayse' (did you mean 'bayes'?)"),
        (GOOD | {"metric": None}, "metric: missing"),
        (GOOD | {"metric": {"name": "val/acuracy", "goal": "maximize"}}, "did you mean 'val/accuracy'?"),
        (GOOD | {"metric": {"name": "val/accuracy"}}, "goal is None (W&B would minimize)"),
        (GOOD | {"metric": {"name": "test/accuracy", "goal": "maximize"}}, "would select on the test set"),
        (GOOD | {"run_cap": 0}, "run_cap: 0; give a whole number of at least 1"),
        (GOOD | {"name": "a/b"}, "name: 'a/b' cannot be a folder name"),
        (GOOD | {"parameters": {}}, "parameters: missing"),
        (GOOD | {"parameters": {"recipe": {"value": "smoke"}, "val_size": {"value": 40}}}, "all are constants"),
        (GOOD | {"early_terminate": {"type": "envelope"}}, "give `type: hyperband`"),
        (GOOD | {"early_terminate": {"type": "hyperband"}}, "give one of min_iter, or max_iter"),
        (GOOD | {"early_terminate": {"type": "hyperband", "min_iter": 2, "eta": 1}}, "eta: 1; give"),
        (GOOD | {"early_terminate": {"type": "hyperband", "max_iter": 8, "s": 2}}, "leaves no value before"),
        (GOOD | {"early_terminate": {"type": "hyperband", "min_iters": 2}}, "no key 'min_iters'"),
        (
            GOOD
            | {"metric": {"name": "train/loss", "goal": "minimize"}}
            | {"early_terminate": {"type": "hyperband", "min_iter": 2}},
            "early_terminate: train/loss has several values an epoch",
        ),
        (GOOD | {"command": ["x", "-m", "cifar10_accel.train", "--epochs=3"]}, "'--epochs=3' would not reach"),
        (with_parameter("recipe", value="auto"), "needs one recipe"),
        (with_parameter("recipe", value="smok"), "did you mean 'smoke'?"),
        (with_parameter("val_size", value=0), "needs a hold-out"),
        (with_parameter("time_budget", value="10m"), "time_budget: it could give each trial another number of epochs"),
        (with_parameter("max_lrr", value=1), "no setting 'max_lrr' (did you mean 'max_lr'?)"),
        (with_parameter("run_dir", value="x"), "run_dir cannot be given"),
        (with_parameter("max_lr", min=1.0, max=0.1), "min 1.0 is not below max 0.1"),
        (with_parameter("max_lr", min=0.1), "give `value:`, `values:`, or `min:` and `max:`"),
        (with_parameter("max_lr", min=0.0, max=0.1), "max_lr: 0.0 is wrong: input should be greater than 0"),
        (with_parameter("max_lr", distribution="log_uniform_values", min=0, max=1), "has no logarithm"),
        (with_parameter("max_lr", distribution="log_uniform_value", min=1, max=2), "did you mean 'log_uniform_values'"),
        (with_parameter("max_lr", distribution="normal", mu=0, sigma=1), "no distribution 'normal'"),
        (with_parameter("max_lr", distribution="uniform", min=0.1, max=0.2, q=0.1), "'q' is no key of uniform"),
        (with_parameter("max_lr", distribution="q_uniform", min=0.1, max=0.2, q=0.5), "no multiple of q 0.5"),
        (with_parameter("max_lr", min="1e-5", max=1.0), "'1e-5' is text to YAML"),
        (with_parameter("max_lr", values=["1e-5", 1.0]), "'1e-5' is text to YAML"),
        (with_parameter("max_lr", min=0.1, max=float("inf")), "max is inf; give a number"),
        (with_parameter("max_lr", values=[]), "values is []"),
        (with_parameter("max_lr", values=[0.1, 0.1]), "given twice"),
        (with_parameter("max_lr", values=[0.1, -1]), "max_lr: -1 is wrong"),
        (with_parameter("max_lr", values=[0.1, 0.2], probabilities=[0.5, 0.6]), "sum 1"),
        (with_parameter("augment", values=[["crop"], ["flip"]]), "write a list as one text"),
        (with_parameter("augment", values=["crop", "blur"]), "augment:"),
        (with_parameter("width", min=4.0, max=64.0), "width:"),
        (with_parameter("optim", parameters={"max_lr": {"value": 1}}), "no setting 'optim'"),
        (with_parameter("max_lr", parameters={"low": {"value": 1}}), "nested parameters"),
        (with_parameter("peak_epoch", values=[1, 5]), "peak_epoch: 5 is not before the end of 3 epochs"),
        (GOOD | {"method": "grid"}, "a grid needs `values:`"),
    ],
)
def test_an_invalid_file_is_refused_with_one_line(values: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as refused:
        read_sweep(write(tmp_path / "bad.yaml", values))
    assert message in str(refused.value)
    assert str(refused.value).startswith(f"{tmp_path / 'bad.yaml'}: ")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("dataset", ["folder", "own.data:load"])
def test_a_data_set_that_may_have_a_hold_out_of_its_own_needs_no_val_size(dataset: str, tmp_path: Path) -> None:
    """With a folder `val`, a val_size is refused when the images are read."""
    values = with_parameter("dataset", value=dataset)
    del values["parameters"]["val_size"]
    assert read_sweep(write(tmp_path / "own.yaml", values)).constants["dataset"] == dataset


def test_values_that_are_invalid_only_together_are_found(tmp_path: Path) -> None:
    """Each value alone is valid; one pair of them is not."""
    values = with_parameter("epochs", values=[4, 20])
    values["parameters"] |= {"peak_epoch": {"values": [1, 10]}, "momentum": {"min": 0.5, "max": 0.9}}
    with pytest.raises(SettingsError, match="peak_epoch: 10 is not before the end of 4 epochs"):
        read_sweep(write(tmp_path / "clash.yaml", values))


@pytest.mark.parametrize(
    ("given", "space"),
    [
        ({"value": None}, Choice(values=(None,))),
        ({"values": [True, False]}, Choice(values=(True, False))),
        ({"min": 1, "max": 4}, Interval(low=1, high=4, whole=True)),
        ({"min": 1, "max": 4.5}, Interval(low=1, high=4.5)),
        ({"distribution": "log_uniform", "min": 0, "max": 1}, Interval(low=1, high=2.718281828459045, log=True)),
        ({"distribution": "q_uniform", "min": 0.0, "max": 5.0}, Interval(low=0, high=5, step=1)),
        (
            {"distribution": "categorical_w_probabilities", "values": [1, 2], "probabilities": [0.2, 0.8]},
            Choice(values=(1, 2), probabilities=(0.2, 0.8)),
        ),
    ],
)
def test_distributions_are_read_as_wandb_does(given: dict[str, Any], space: Any) -> None:
    assert read_space("max_lr", given) == space


def test_quantised_values_stay_inside_and_are_multiples() -> None:
    space = read_space("x", {"distribution": "q_uniform", "min": 0.15, "max": 0.95, "q": 0.1})
    assert isinstance(space, Interval)
    assert [space.value(drawn) for drawn in (0.15, 0.5, 0.95)] == [0.2, 0.5, 0.9]
    assert space.every_value() == [0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
    whole = read_space("x", {"distribution": "q_log_uniform_values", "min": 16, "max": 512, "q": 16})
    assert [type(whole.value(drawn)) for drawn in (16.0, 100.0)] == [int, int]
    assert whole.value(100.0) == 96


@pytest.mark.parametrize(
    ("distribution", "bounds", "expected"),
    [
        ("q_uniform", (0.1, 0.3, 0.1), [0.1, 0.2, 0.3]),  # 0.3 / 0.1 < 3
        ("q_uniform", (-0.3, -0.1, 0.1), [-0.3, -0.2, -0.1]),
        ("q_uniform", (0.57, 0.58, 0.01), [0.57, 0.58]),  # 0.58 / 0.01 < 58
        ("q_uniform", (0.07, 0.09, 0.01), [0.07, 0.08, 0.09]),  # 0.07 / 0.01 > 7
        ("q_uniform", (0.101, 0.299, 0.1), [0.2]),
        ("q_uniform", (1e-13, 3e-13, 1e-13), [1e-13, 2e-13, 3e-13]),
        ("q_log_uniform_values", (0.1, 0.3, 0.1), [0.1, 0.2, 0.3]),
        ("q_log_uniform", (math.log(0.1), math.log(0.3), 0.1), [0.1, 0.2, 0.3]),
    ],
)
def test_bounds_that_are_multiples_but_for_rounding_errors_are_drawn(
    distribution: str, bounds: tuple[float, ...], expected: list[float]
) -> None:
    space = read_space("x", {"distribution": distribution} | dict(zip(("min", "max", "q"), bounds, strict=True)))
    assert isinstance(space, Interval)
    places = [space.low + share * (space.high - space.low) for share in (0, 0.2, 0.4, 0.5, 0.6, 0.8, 1)]
    assert sorted({space.value(place) for place in places}) == expected
    assert space.every_value() == (None if space.log else expected)


def test_the_number_of_trials(tmp_path: Path) -> None:
    sweep = read_sweep(write(tmp_path / "s.yaml", GOOD))
    assert (num_trials_of(sweep, None), num_trials_of(sweep, 9)) == (4, 9)
    grid = read_sweep(
        write(
            tmp_path / "g.yaml", with_parameter("max_lr", values=[0.1, 0.2, 0.3]) | {"method": "grid", "run_cap": None}
        )
    )
    assert (num_trials_of(grid, None), num_trials_of(grid, 2), num_trials_of(grid, 100)) == (3, 2, 3)
    endless = read_sweep(write(tmp_path / "e.yaml", GOOD | {"run_cap": None}))
    with pytest.raises(SettingsError, match="give --trials N"):
        num_trials_of(endless, None)


def test_an_error_is_reported_before_anything_runs(tmp_path: Path) -> None:
    """The command itself: exit code 2, one line, no folder, and neither torch nor Optuna imported."""
    path = write(tmp_path / "bad.yaml", with_parameter("max_lrr", value=1))
    program = (
        "import sys\nfrom cifar10_accel.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as leaving: print(leaving.code, [n for n in ('torch', 'optuna') if n in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "sweep", "run", str(path)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(REPOSITORY), "PATH": ""},
        timeout=60,
    )
    assert done.stdout == "2 []\n"
    assert done.stderr.count("\n") == 1
    assert "did you mean 'max_lr'?" in done.stderr
    assert not (tmp_path / "runs").exists()
