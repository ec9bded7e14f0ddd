"""Time budget: the choice of epochs and recipe, what is stored, resumed and refused, and the warning when late."""

import dataclasses
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from training_commands import TINY, run_python

from cifar10_accel.commands import doctor_checks
from cifar10_accel.commands.repeat import repeat
from cifar10_accel.commands.verify_resume import verify_resume
from cifar10_accel.data.dataset import Dataset
from cifar10_accel.errors import SettingsError
from cifar10_accel.formatting import format_duration
from cifar10_accel.runs import checkpoint
from cifar10_accel.runs.metrics_jsonl import read_metrics
from cifar10_accel.runs.reproduce import reproduction
from cifar10_accel.runs.run_folder import RunFolder
from cifar10_accel.settings import Settings
from cifar10_accel.train import fit
from cifar10_accel.training.setup import RunSetup, set_up_run
from cifar10_accel.training.time_budget import timing
from cifar10_accel.training.time_budget.choice import Choice, StepTimes, choose
from cifar10_accel.training.time_budget.watch import BudgetWatch

# Six steps an epoch; three epochs are the recipe's own.
SHORT = {name: value for name, value in TINY.items() if name not in ("epochs", "peak_epoch")} | {"time_budget": "1h"}
AUTO = SHORT | {"recipe": "auto", "dataset": "synthetic", "max_steps": 1}

CPU94 = {"recipe": "cpu94", "epochs": 16, "low_res_fraction": 0.5, "steps_per_epoch": 100}
CPU = {"recipe": "cpu", "epochs": 11, "low_res_fraction": 0.55, "steps_per_epoch": 100}
RESNET9 = {"recipe": "resnet9", "epochs": 24, "low_res_fraction": 0.0, "steps_per_epoch": 97}


def times(recipe: dict[str, Any], seconds: float, low_res_seconds: float = 0.0, **changes: Any) -> StepTimes:
    return StepTimes(**recipe, seconds=seconds, low_res_seconds=low_res_seconds, **changes)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("10m", 600), ("90s", 90), ("1h", 3600), ("1h30m", 5400), ("600", 600), ("2.5 min", 150), (" 1M 30 ", 90), (5, 5)],
)
def test_durations(text: Any, seconds: float) -> None:
    assert Settings(time_budget=text).time_budget == seconds
    assert Settings(time_budget=format_duration(seconds)).time_budget == seconds


@pytest.mark.parametrize("text", ["", "m", "soon", "10x", "-5m", "1:30", "0", "0m", "inf", "nan", "100000h", True])
def test_no_durations(text: Any) -> None:
    with pytest.raises(SettingsError, match=r"^time_budget: \S.*") as error:
        Settings(time_budget=text)
    assert "\n" not in str(error.value)


def test_durations_are_shown_as_they_are_typed() -> None:
    assert [format_duration(seconds) for seconds in (600.0, 90, 3600, 5400, 2.5)] == ["10m", "90s", "1h", "90m", "2.5s"]


@pytest.mark.parametrize(
    ("budget", "candidates", "recipe", "epochs"),
    [
        # Two cores: with AMX in bf16, with AVX2, the slowest laptop, which takes three times as long.
        (600, [times(CPU94, 0.457, 0.18), times(CPU, 0.168, 0.066)], "cpu94", 18),
        (600, [times(CPU94, 2.33, 0.91), times(CPU, 0.81, 0.31)], "cpu", 10),
        (600, [times(CPU94, 7.0, is_lower_bound=True), times(CPU, 2.43, 0.93)], "cpu", 3),
        (600, [times(CPU, 8.0, 3.0)], "cpu", 3),  # too slow even for these
        (300, [times(CPU94, 0.457, 0.18), times(CPU, 0.168, 0.066)], "cpu94", 8),
        (120, [times(CPU94, 0.457, 0.18), times(CPU, 0.168, 0.066)], "cpu", 10),
        (30, [times(CPU94, 0.457, 0.18), times(CPU, 0.168, 0.066)], "cpu", 3),
        (3600, [times(CPU94, 0.457, 0.18), times(CPU, 0.168, 0.066)], "cpu94", 32),
        # GPUs: hundreds of epochs would fit; the recipe's own; an old one.
        (600, [times(RESNET9, 0.012), times(CPU94, 0.01, 0.01)], "resnet9", 48),
        (60, [times(RESNET9, 0.024), times(CPU94, 0.01, 0.01)], "resnet9", 25),
        (600, [times(RESNET9, 1.0), times(CPU94, 0.3, 0.1), times(CPU, 0.1, 0.04)], "cpu94", 28),
    ],
)
def test_choice(budget: float, candidates: list[StepTimes], recipe: str, epochs: int) -> None:
    choice = choose(candidates, budget=budget)
    assert (choice.times.recipe, choice.epochs) == (recipe, epochs)
    own = choice.times.epochs
    assert own / 4 <= choice.epochs <= 2 * own
    if choice.fits and choice.epochs < 2 * own:
        assert choice.times.training_seconds(choice.epochs + 1) > 0.97 * budget
    assert choice.fits or choice.epochs == choice.times.least_epochs(1 / 4)


def test_recipes_after_the_one_that_fits_are_not_timed() -> None:
    def candidates() -> Iterator[StepTimes]:
        yield times(CPU94, 0.4, 0.2)
        pytest.fail("timed a second recipe")

    assert choose(candidates(), budget=600).times.recipe == "cpu94"


def test_reasons() -> None:
    choice = choose([times(CPU94, 7.0, is_lower_bound=True), times(CPU, 0.81, 0.31)], budget=600)
    assert str(choice).splitlines() == [
        "time budget 10m: recipe cpu, 10 epochs (tuned for 11), about 8:30 of training",
        "  cpu94: even 8 epochs would take more than 46:40; cpu: a step takes 0.81 s, with small images 0.31 s; "
        "100 steps an epoch",
    ]
    late = choose([times(CPU, 2.0, 1.0)], budget=60)
    assert str(late).startswith(
        "time budget 1m: recipe cpu, 3 epochs, the least that is sensible (tuned for 11), about 6:40 of training, "
        "5:40 more than the budget"
    )
    assert "48 epochs, the most that is sensible (tuned for 24)" in str(choose([times(RESNET9, 0.01)], budget=600))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    newest = checkpoint.newest(folder / "checkpoints")
    assert newest is not None
    return checkpoint.load(newest).model


def test_training_with_a_budget_has_the_bits_of_one_with_these_epochs(capsys: pytest.CaptureFixture[str]) -> None:
    low_res = {"low_res_fraction": 0.5, "low_res_size": 16, "eval_every": 3, "ema_decay": 0.9}
    chosen = fit(Settings(**SHORT | low_res))
    printed = capsys.readouterr().out
    assert "time budget 1h: recipe smoke, 6 epochs, the most that is sensible (tuned for 3), about" in printed
    assert "smoke: a step takes" in printed
    assert chosen.path.name.startswith("smoke-synthetic-1h-")
    stored = chosen.settings
    assert (stored.recipe, stored.epochs, stored.time_budget) == ("smoke", 6, 3600)
    assert (stored.peak_epoch, stored.low_res_epochs, stored.eval_every) == (2, 3, 3)

    without = {"time_budget": None, "epochs": 6, "peak_epoch": 2, "run_name": "without"}
    given = fit(Settings(**SHORT | low_res | without))
    for name, value in weights(given.path).items():
        assert torch.equal(weights(chosen.path)[name], value), name
    losses = [[line.get("train/loss") for line in read_metrics(run.path / "metrics.jsonl")] for run in (chosen, given)]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("changes", [{"augment_backend": "albumentations", "num_workers": 1}, {"grad_accum_steps": 2}])
def test_timed_steps_leave_random_numbers_and_accelerate_as_they_were(changes: dict[str, Any]) -> None:
    setup = set_up_run(Settings(**SHORT | {"time_budget": "10s", "low_res_fraction": 0.5} | changes))
    state = torch.get_rng_state()
    timed, choice = timing.within_time_budget(setup, RunFolder.of(setup.settings))
    assert choice is not None
    assert choice.times.seconds > 0
    assert choice.times.low_res_seconds > 0
    assert torch.equal(torch.get_rng_state(), state)
    assert not setup.accelerator._models
    assert not setup.accelerator._optimizers
    assert timed.plan.low_res_epochs == timed.settings.low_res_epochs
    assert timed.settings.epochs == choice.epochs


def test_timed_steps_leave_the_loss_scale_as_it_was() -> None:
    scaler = torch.amp.GradScaler("cpu")
    before = scaler.state_dict()
    accelerator: Any = SimpleNamespace(device=torch.device("cpu"), scaler=scaler, free_memory=lambda: None)
    with timing._undone(accelerator):
        scaler.scale(torch.ones(1))
        scaler.update(8.0)
        assert scaler.get_scale() == 8
    assert scaler.state_dict() == before


def measured(monkeypatch: pytest.MonkeyPatch, seconds: dict[str, float]) -> list[str]:
    """Replace the timed steps by these seconds; return the list of the recipes that are asked for from now on."""
    asked: list[str] = []

    def time_steps(setup: Any, *, seconds: float, may_give_up: bool) -> StepTimes:
        settings = setup.settings
        asked.append(settings.recipe)
        return StepTimes(
            recipe=settings.recipe,
            epochs=settings.epochs,
            low_res_fraction=settings.low_res_fraction,
            steps_per_epoch=100,
            seconds=speed[settings.recipe],
            low_res_seconds=speed[settings.recipe] / 2,
        )

    speed = seconds
    monkeypatch.setattr(timing, "time_steps", time_steps)
    return asked


@pytest.mark.skipif(torch.accelerator.is_available(), reason="auto on a CPU")
def test_auto_chooses_the_recipe_too_and_a_resumed_run_keeps_both(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = Settings(**AUTO | {"time_budget": "10m"})
    asked = measured(monkeypatch, {"cpu94": 2.0, "cpu": 0.8})
    run = fit(settings)
    assert asked == ["cpu94", "cpu"]
    assert run.path.name.startswith("auto-synthetic-10m-")
    assert (run.settings.recipe, run.settings.epochs, run.settings.eval_every) == ("cpu", 10, 10)

    asked = measured(monkeypatch, {"cpu94": 0.1, "cpu": 0.1})  # the machine has become faster
    again = fit(Settings(**AUTO | {"time_budget": 600, "max_steps": 2}))
    assert asked == []
    assert again.path == run.path
    assert (again.settings.recipe, again.settings.epochs, again.summary["step"]) == ("cpu", 10, 2)
    assert "time budget 10m: recipe cpu, 10 epochs, as chosen when the run began" in capsys.readouterr().out
    assert fit(Settings(**AUTO | {"run_name": "large"})).settings.recipe == "cpu94"


class Small(nn.Sequential):
    """A model that is not built in."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, num_classes))


@pytest.mark.skipif(torch.accelerator.is_available(), reason="auto on a CPU")
def test_a_model_of_ones_own_has_one_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = measured(monkeypatch, {"resnet9": 20.0})
    given = AUTO | {"time_budget": "10m", "model": f"{__name__}:Small", "max_steps": 1}
    run = fit(Settings(**{name: value for name, value in given.items() if name != "width"}))
    assert asked == ["resnet9"]
    assert (run.settings.recipe, run.settings.optimizer) == ("resnet9", "sgd")


def test_a_chosen_length_with_impossible_image_sizes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    measured(monkeypatch, {"smoke": 0.001})
    # Of the recipe's own 3 epochs 0.45, rounded to none, would have small images; of the 6 that are chosen one.
    with pytest.raises(SettingsError, match="low_res_size: 32 is not below the 32 pixels"):
        fit(Settings(**SHORT | {"low_res_fraction": 0.15, "low_res_size": 32}))


@pytest.mark.parametrize(("size", "expected"), [(20, ["resnet9"]), (32, ["cpu94", "resnet9"])])
def test_recipes_that_do_not_fit_the_images_are_not_candidates(
    size: int, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """cpu94 begins with images of 20 pixels."""
    asked = measured(monkeypatch, {"resnet9": 1000.0, "cpu94": 0.1})
    monkeypatch.setattr(timing, "CPU_RECIPES", ("cpu94", "resnet9"))
    setup = set_up_run(Settings(**AUTO | {"time_budget": "10m"}))
    settings = setup.settings.replace(recipe="resnet9")
    settings._resolves_auto = True
    images = np.random.default_rng(0).integers(0, 255, (600, size, size, 3), np.uint8), np.arange(600) % 10
    dataset = Dataset(name="images", train=images, test=images)
    assert list(timing._timed_candidates(RunSetup(setup.accelerator, settings, dataset)))
    assert asked == expected


def test_a_resumed_run_keeps_its_epochs_on_a_slower_machine(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured(monkeypatch, {"smoke": 1.0})
    begun = fit(Settings(**SHORT | {"time_budget": "600s", "max_steps": 7}))
    assert begun.settings.epochs == 5
    asked = measured(monkeypatch, {"smoke": 1000.0})
    ended = fit(Settings(**SHORT | {"time_budget": "10m"}))
    assert (ended.path, ended.settings.epochs, asked) == (begun.path, 5, [])
    assert ended.summary["step"] == 30
    assert f"resuming from {begun.path}" in capsys.readouterr().out
    # The recorded run as a recipe, or as settings, is the same run: nothing is measured.
    assert Settings(recipe=str(ended.path / "settings.yaml")).time_budget is None
    assert fit(ended.settings.replace(run_name="copy", max_steps=1)).settings.epochs == 5
    assert asked == []
    command = reproduction(ended.settings, ended._folder.read_json("environment.json")).command
    assert "--epochs=5" in command
    assert "budget" not in command


def test_too_small_a_budget_trains_the_least_and_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured(monkeypatch, {"smoke": 1000.0})
    run = fit(Settings(**SHORT | {"max_steps": 1, "peak_epoch": 0}))
    assert run.settings.epochs == 1
    assert "1 epochs, the least that is sensible" in "".join(capsys.readouterr())


def test_another_budget_in_the_same_folder_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    measured(monkeypatch, {"smoke": 1.0})
    named = SHORT | {"run_name": "named", "max_steps": 1}
    fit(Settings(**named))
    with pytest.raises(SettingsError, match=r"time_budget 1h -> 10m\); give another --run-name, or --time-budget 1h"):
        fit(Settings(**named | {"time_budget": "10m"}))
    fit(Settings(**named | {"time_budget": None, "epochs": 6, "max_steps": 2}))  # the same run, its epochs given
    with pytest.raises(SettingsError, match="time_budget none -> 1h"):
        fit(Settings(**named))


def test_given_epochs_are_kept(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    asked = measured(monkeypatch, {})
    settings = Settings(**SHORT | {"epochs": 2, "max_steps": 1})
    run = fit(settings)
    assert (run.settings.epochs, run.settings.time_budget, asked) == (2, 3600, [])
    assert "-1h-" not in run.path.name
    assert "time budget 1h: the given number of epochs, 2, is kept" in capsys.readouterr().out


def test_a_recipe_that_is_far_too_slow_is_given_up_early(monkeypatch: pytest.MonkeyPatch) -> None:
    # Two epochs of six steps are half of the recipe, one of them with images of a quarter of the pixels.
    setup = set_up_run(Settings(**SHORT | {"time_budget": "75s", "low_res_fraction": 0.5, "low_res_size": 16}))

    def timed(laps: list[float], *, may_give_up: bool = True) -> tuple[float, float, bool]:
        found = iter(laps)
        monkeypatch.setattr(timing, "_laps", lambda state, setup: found)
        times = timing.time_steps(setup, seconds=16.0, may_give_up=may_give_up)
        assert not list(found)
        return times.seconds, times.low_res_seconds, times.is_lower_bound

    assert timed([22.0]) == (11, 2.75, True)  # 6 * 11 + 6 * 2.75 = 82.5 seconds are too many
    assert timed([18.0, 15.0, 18.0]) == (13.2, 3.3, True)  # the median, 16.5, is a fifth below it still too much
    assert timed([18.0, 7.0, 7.0, 8.0, 5.0, 3.0, 3.0, 2.0, 4.0]) == (7, 3, False)
    assert timed([90.0, 80.0, 30.0, 29.0], may_give_up=False) == (80, 29, False)  # of the last recipe there is


def test_commands_whose_runs_must_be_equally_long_refuse_a_budget(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="time_budget: it could give each seed another number of epochs"):
        repeat(SHORT, num_seeds=2, against=None, num_workers=None, echo=print)
    with pytest.raises(SettingsError, match="time_budget: it could give the two runs other numbers of epochs"):
        verify_resume(SHORT, num_kills=1, seed=0, folder=tmp_path, echo=print)


def test_doctor_knows_the_run_that_continues(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(**AUTO).resolve_recipe(on_cpu=True).model_copy(update={"precision": "no"})
    assert "auto-synthetic-1h-" in doctor_checks.run_folder(settings).text
    if torch.accelerator.is_available():
        return
    measured(monkeypatch, {"cpu94": 1.0, "cpu": 1.0})
    path = fit(Settings(**AUTO)).path
    assert doctor_checks.run_folder(settings).text == f"run folder: {path} holds this run (finished)"


def test_two_processes_choose_by_the_slower_one(tmp_path: Path) -> None:
    program = """
import json, sys, time
from accelerate import PartialState
from cifar10_accel.cli.logging import show_log_messages
from cifar10_accel.settings import Settings
from cifar10_accel.train import fit
from cifar10_accel.training.time_budget import timing

step, choose, choices = timing.train_step, timing.choose, []

def slower_step(*args, **options):
    time.sleep(0.05 * PartialState().process_index)
    return step(*args, **options)

def recorded_choice(*args, **options):
    choices.append(choose(*args, **options))
    return choices[-1]

timing.train_step, timing.choose = slower_step, recorded_choice
show_log_messages()
run = fit(Settings(**json.loads(sys.argv[1])))
assert choices[0].times.seconds >= 0.05
open(f"rank-{PartialState().process_index}", "w").write(f"{choices} {run.settings.epochs}")
"""
    (tmp_path / "program.py").write_text(program)
    given = SHORT | {"time_budget": "5s", "low_res_fraction": 0.5}
    done = run_python("program.py", json.dumps(given), cwd=tmp_path, num_processes=2)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "rank-0").read_text() == (tmp_path / "rank-1").read_text()
    assert (done.stdout + done.stderr).count("time budget 5s: recipe smoke") == 1


@dataclasses.dataclass
class Clock:
    """A stopwatch that a test sets."""

    now: float = 0.0

    def seconds(self) -> float:
        return self.now


@pytest.fixture
def watch() -> Callable[..., tuple[BudgetWatch, Any]]:
    """A watch over four epochs of ten steps, the first two of them with small images, and its state."""

    def make(
        choice: Choice | None = None, *, step: int = 0, seconds: float = 0.0, **changes: Any
    ) -> tuple[BudgetWatch, Any]:
        given = {"time_budget": 100, "epochs": 4, "peak_epoch": 1, "low_res_fraction": 0.5, "low_res_size": 16}
        setup: Any = SimpleNamespace(
            settings=Settings(**given | changes),
            plan=SimpleNamespace(steps_per_epoch=10),
            accelerator=SimpleNamespace(is_main_process=True, device=torch.device("cpu")),
            dataset=SimpleNamespace(image_format=SimpleNamespace(size=32)),
        )
        state = SimpleNamespace(step=step, stopwatch=Clock(seconds))
        return BudgetWatch(setup, state, choice), state

    return make


def seen(watched: tuple[BudgetWatch, Any], marks: list[float], caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the warnings of epochs that end at these seconds."""
    watch, state = watched
    with caplog.at_level(logging.WARNING):
        for seconds in marks:
            state.step, state.stopwatch.now = state.step + 10, seconds
            watch.end_epoch(state)
    return [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize(
    ("arguments", "marks", "warning"),
    [
        # Small images cost a quarter: 10 + 10 + 40 + 40 is in time, and so is 7% more.
        ({}, [10, 20, 60, 100], None),
        ({}, [10.5, 21, 64, 107], None),
        ({}, [10, 25, 100, 190], "2:25, 45.0 s more"),  # at the second epoch's end, and only there
        ({"max_steps": 20}, [10, 25], None),  # stops before
        ({"step": 20, "seconds": 20}, [80, 140], "2:20, 40.0 s more"),  # resumed on a slower machine
        ({"time_budget": None}, [1e6, 2e6, 3e6, 4e6], None),
    ],
)
def test_a_late_training_says_so_once(
    arguments: Any, marks: list[float], warning: str | None, watch: Any, caplog: pytest.LogCaptureFixture
) -> None:
    expected = [
        f"time budget 100s: at the speed of the last epoch the training will take {warning} than the budget; "
        "it goes on unchanged"
    ]
    assert seen(watch(**arguments), marks, caplog) == (expected if warning else [])


@pytest.mark.parametrize("marks", [[60, 62.5, 72.5, 82.5], [2.5, 5, 75, 85]], ids=["small images", "full size"])
def test_compiling_for_an_image_size_is_not_taken_for_slowness(
    marks: list[float], watch: Any, caplog: pytest.LogCaptureFixture
) -> None:
    assert seen(watch(compile=True), marks, caplog) == []
    assert len(seen(watch(), marks, caplog)) == 1


def test_slowness_after_compiling_is_announced(watch: Any, caplog: pytest.LogCaptureFixture) -> None:
    assert len(seen(watch(compile=True), [60, 120, 360, 600], caplog)) == 1


def test_a_lateness_that_was_announced_is_not_announced_again(watch: Any, caplog: pytest.LogCaptureFixture) -> None:
    late = StepTimes(recipe="x", epochs=4, low_res_fraction=0.5, steps_per_epoch=10, seconds=8.0, low_res_seconds=4.0)
    choice = Choice(budget=100, times=late, epochs=4)
    assert choice.seconds == 240
    assert seen(watch(choice), [40, 80, 160, 240], caplog) == []
    caplog.clear()
    assert len(seen(watch(choice), [60, 120, 240, 360], caplog)) == 1
