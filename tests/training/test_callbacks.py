"""Callbacks: what they see, how they stop a run, how they fail, and that their state is resumed."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from training_commands import flags, run_python
from trainings import bits_of, status_of

from cifar10_accel import CallbackContext, Settings, fit
from cifar10_accel.errors import InputError, SettingsError
from cifar10_accel.runs.checkpoint import newest
from cifar10_accel.training.callbacks import BestCheckpoint, EarlyStopping
from cifar10_accel.training.run import Run

SMALL: dict[str, Any] = {
    "recipe": "smoke",
    "dataset": "synthetic",
    "synthetic_size": 200,
    "batch_size": 50,
    "width": 4,
    "epochs": 3,
    "num_threads": 1,
    "tracker": "none",
}


def train(folder: Path, *callbacks: Any, **changes: Any) -> Run:
    return fit(Settings(**SMALL | {"run_dir": folder} | changes), callbacks=callbacks)


class Record:
    """Writes down each call, and logs a number."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int, float]] = []

    def on_fit_start(self, context: CallbackContext) -> None:
        self.calls.append(("start", context.step, context.epoch))

    def on_step_end(self, context: CallbackContext) -> None:
        self.calls.append(("step", context.step, context.epoch))

    def on_epoch_end(self, context: CallbackContext) -> None:
        assert {"train/loss", "test/accuracy"} <= context.metrics.keys()
        self.calls.append(("epoch", context.step, context.epoch))
        context.log("own/number", context.step * 10)

    def on_fit_end(self, context: CallbackContext) -> None:
        assert (context.run_dir / "summary.json").exists()
        self.calls.append(("end", context.step, context.epoch))


def test_the_calls_and_the_numbers_they_log(tmp_path: Path) -> None:
    record = Record()
    run = train(tmp_path / "run", record, epochs=2)
    steps = [("step", step, step / 4) for step in range(1, 9)]
    epochs = [("epoch", 4, 1.0), ("epoch", 8, 2.0)]
    assert record.calls == [("start", 0, 0), *steps[:4], epochs[0], *steps[4:], epochs[1], ("end", 8, 2.0)]
    assert [(row["step"], row["own/number"]) for row in run.metrics if "own/number" in row] == [(4, 40), (8, 80)]


def test_callbacks_that_only_look_change_no_bit(tmp_path: Path) -> None:
    plain, watched = train(tmp_path / "plain"), train(tmp_path / "watched", Record())
    first, second = ({k: v for k, v in bits_of(r.path).items() if "/model/" in k} for r in (plain, watched))
    assert first == second


class StopAt:
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, context: CallbackContext) -> None:
        if context.step == self.step:
            context.stop(f"that was step {self.step}")


def test_a_stopped_run_is_finished_and_stays_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = train(tmp_path / "run", StopAt(5))
    assert run.summary["step"] == 5
    assert run.summary["stop_reason"] == "that was step 5"
    assert status_of(run.path)["state"] == "finished"
    with caplog.at_level("INFO"):
        train(tmp_path / "run", StopAt(5))
    assert "nothing to train" in caplog.text


def test_a_run_killed_between_its_stop_and_its_evaluation_is_only_evaluated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("cifar10_accel.train._finish", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(tmp_path / "run", StopAt(5))
    assert train(tmp_path / "run", StopAt(5)).summary["step"] == 5


class Fails:
    def __init__(self, hook: str) -> None:
        setattr(self, hook, self._fail)

    def _fail(self, context: CallbackContext) -> None:
        if context.step in (0, 6, 12):
            raise ValueError("it does not like\nthis")


@pytest.mark.parametrize("hook", ["on_fit_start", "on_step_end", "on_fit_end"])
def test_a_callback_that_raises_is_named_and_the_run_is_saved(hook: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"callback object:Fails@\w+ raised ValueError .* in {hook}") as caught:
        train(tmp_path / "run", Fails(hook), checkpoint_every=100)
    assert "\n" not in str(caught.value)
    assert "test_callbacks.py:" in str(caught.value)
    assert status_of(tmp_path / "run") | {"reason": ""} == {"state": "failed", "exit_code": 3, "reason": ""}
    saved = newest(tmp_path / "run" / "checkpoints")
    expected = {"on_fit_start": None, "on_step_end": "step-000006", "on_fit_end": "step-000012"}[hook]
    assert (saved and saved.name) == expected


class Counts:
    """A callback whose numbers depend on the epochs before a resume."""

    def __init__(self) -> None:
        self.total = torch.zeros(1)

    def on_epoch_end(self, context: CallbackContext) -> None:
        self.total += 1
        context.log("own/total", self.total.item())

    def state_dict(self) -> dict[str, Any]:
        return {"total": self.total}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.total.copy_(state["total"])


def test_the_state_is_resumed(tmp_path: Path) -> None:
    first = fit(Settings(**SMALL, run_dir=tmp_path / "counted", max_steps=6), callbacks=[Counts()])
    assert [row["own/total"] for row in first.metrics if "own/total" in row][-1] == 2
    again = fit(Settings(**SMALL, run_dir=tmp_path / "counted"), callbacks=[Counts()])
    assert [row["own/total"] for row in again.metrics if "own/total" in row][-1] == 3


class Unreadable(Counts):
    def state_dict(self) -> dict[str, Any]:
        return {"function": Unreadable}


def test_a_state_that_could_not_be_read_back_is_refused_before_it_is_saved(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="may have tensors and plain values only"):
        train(tmp_path / "run", Unreadable())
    assert newest(tmp_path / "run" / "checkpoints") is None


def test_early_stopping_and_the_best_weights(tmp_path: Path) -> None:
    names = ["early_stopping", "best_checkpoint"]
    changes = {"val_size": 50, "epochs": 30, "callbacks": names, "callback_args": {"patience": 2}}
    run = fit(Settings(**SMALL | changes, max_lr=1e-6, run_dir=tmp_path / "run"))
    accuracies = [row["val/accuracy"] for row in run.metrics if "val/accuracy" in row]
    best = max(range(len(accuracies)), key=lambda number: (accuracies[number], -number))
    assert "has not improved for 2 evaluations" in run.summary["stop_reason"]
    assert run.summary["step"] < 30 * 3
    manifest = json.loads((run.path / "best" / "manifest.json").read_text())
    assert manifest["step"] == (best + 1) * 3
    child = train(tmp_path / "child", init_from=run.path / "best", epochs=1)
    assert child.summary["step"] == 4


def _context(**values: Any) -> CallbackContext:
    known: dict[str, Any] = {
        "step": 1,
        "epoch": 1,
        "metrics": {},
        "model": torch.nn.Identity(),
        "settings": Settings(),
        "dataset": None,
        "run_dir": Path(),
        "is_main_process": True,
        "write_metrics": lambda _: None,
        "write_weights": lambda _: None,
    }
    return CallbackContext(**known | values)


def test_a_callback_object_can_be_used_for_several_runs(tmp_path: Path) -> None:
    """The second run counts from its own start, and is the same run as that of a new object."""
    changes = {"val_size": 50, "epochs": 2, "max_lr": 1e-6}
    callback = BestCheckpoint()
    train(tmp_path / "first", callback, **changes)
    assert callback.best is not None
    callback.best = 2.0  # a first run that was better
    again = train(tmp_path / "second", callback, **changes)
    assert (again.path / "best" / "manifest.json").exists()
    assert again.settings.callbacks == train(tmp_path / "third", BestCheckpoint(), **changes).settings.callbacks


@pytest.mark.parametrize("name", ["", ".", "..", "checkpoints", "a/b", "a/", "/tmp/x", "settings.yaml", "tensorboard"])
def test_saved_weights_replace_nothing_else_of_the_run(name: str, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "tensorboard").mkdir()
    (tmp_path / "settings.yaml").touch()
    written: list[str] = []
    context = _context(run_dir=tmp_path, write_weights=written.append)
    with pytest.raises(ValueError, match="save_weights"):
        context.save_weights(name)
    context.save_weights("best")
    assert written == ["best"]


def test_only_the_main_process_looks_at_what_it_replaces(tmp_path: Path) -> None:
    """Another rank may see the folder while it is replaced."""
    written: list[str] = []
    (tmp_path / "best").mkdir()
    context = _context(run_dir=tmp_path, is_main_process=False, write_weights=written.append)
    context.save_weights("best")
    assert written == ["best"]


def test_early_stopping_does_not_count_epochs_without_an_evaluation() -> None:
    callback = EarlyStopping(patience=1)
    metrics = [{"val/accuracy": 0.5}, {}, {}, {"val/accuracy": 0.6}, {}, {"val/accuracy": 0.6}]
    reasons = []
    for values in metrics:
        context = _context(metrics=values)
        callback.on_epoch_end(context)
        reasons.append(bool(context.stop_reason))
    assert reasons == [False] * 5 + [True]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"callbacks": "early_stopping"}, SettingsError, "needs a hold-out; give --val-size"),
        (
            {"callbacks": "early_stopping", "val_size": 50, "epochs": 3, "eval_every": 3},
            SettingsError,
            "eval_every: 3 of 3 epochs, .* too late for early_stopping; give --eval-every 1",
        ),
        (
            {"callbacks": "best_checkpoint", "val_size": 50, "callback_args": {"monitor": "test/loss"}},
            SettingsError,
            "val",
        ),
        (
            {"callbacks": "early_stopping", "callback_args": {"patienc": 1}},
            SettingsError,
            "none of the callbacks takes",
        ),
        ({"callbacks": "early_stoping"}, SettingsError, "did you mean 'early_stopping'"),
        ({"callbacks": "torch:Tensor"}, InputError, "has none of the methods on_fit_start"),
        ({"callback_args": {"patience": 1}}, SettingsError, "there are no callbacks"),
    ],
)
def test_wrong_settings_are_one_line(
    changes: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        fit(Settings(**SMALL | changes, run_dir=tmp_path / "run"))


ON_ONE_RANK = """
import os

class Once:
    def on_step_end(self, context):
        if os.environ["RANK"] == "1" and context.step == 5:
            {action}
"""


@pytest.mark.parametrize(
    ("action", "code", "expected"),
    [
        ("context.stop('enough')", 0, "test accuracy"),
        (
            "raise ValueError('no good')",
            3,
            "callback once:Once raised ValueError (no good) at once.py:7 in on_step_end",
        ),
    ],
)
def test_a_callback_on_one_of_two_processes_ends_both(action: str, code: int, expected: str, tmp_path: Path) -> None:
    (tmp_path / "once.py").write_text(ON_ONE_RANK.format(action=action))
    arguments = flags(SMALL | {"callbacks": "once:Once", "run_dir": "run", "collective_timeout": 60})
    done = run_python("-m", "cifar10_accel.train", *arguments, cwd=tmp_path, num_processes=2)
    assert (done.returncode == 0) is (code == 0), done.stderr
    assert expected in done.stdout + done.stderr
    assert status_of(tmp_path / "run")["exit_code"] == code
    saved = newest(tmp_path / "run" / "checkpoints")
    assert saved is not None
    assert saved.name == "step-000005"


@pytest.mark.parametrize("step", [4, 8])
def test_a_stop_at_the_end_of_an_epoch_or_of_the_run_is_after_the_end_of_the_epoch(step: int, tmp_path: Path) -> None:
    record = Record()
    run = train(tmp_path / "run", StopAt(step), record, epochs=2)
    assert run.summary["stop_reason"] == f"that was step {step}"
    assert record.calls[-2:] == [("epoch", step, step / 4), ("end", step, step / 4)]
    assert [call for call in record.calls if call[0] == "epoch"] == [
        ("epoch", done, done / 4) for done in range(4, step + 1, 4)
    ]
