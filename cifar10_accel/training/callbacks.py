"""Callbacks: code of the user, or built in, that runs at the start, after steps and epochs, and at the end.

A callback is an object with any of the methods `on_fit_start`, `on_step_end`, `on_epoch_end` and `on_fit_end`, each of
which gets a `CallbackContext`. With `state_dict` and `load_state_dict` its state is part of the checkpoints. Callbacks
run on every rank; with several processes the ranks agree after each call, so one of them may stop the run.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from cifar10_accel.components import (
    arguments_for,
    describe_error,
    is_import_path,
    load_component,
    parameters_of,
    user_code,
)
from cifar10_accel.data.dataset import Dataset
from cifar10_accel.errors import InputError, SettingsError, UserError, did_you_mean
from cifar10_accel.runs.checkpoint import MANIFEST, require_readable
from cifar10_accel.settings import Settings

HOOKS = ("on_fit_start", "on_step_end", "on_epoch_end", "on_fit_end")


@dataclass(kw_only=True)
class CallbackContext:
    """The run as a callback sees it."""

    step: int  # steps done
    epoch: float  # epochs done
    metrics: dict[str, float]  # the newest of training, and those of this epoch's evaluation, if there is one
    model: nn.Module  # the one whose accuracy counts: of averaged weights, if weights are averaged
    settings: Settings
    dataset: Dataset
    run_dir: Path
    is_main_process: bool
    write_metrics: Callable[[dict[str, float]], None] = field(repr=False)
    write_weights: Callable[[str], None] = field(repr=False)
    stop_reason: str = ""

    def log(self, name: str, value: float) -> None:
        """Record a number under this name with the run's metrics."""
        self.metrics[name] = float(value)
        self.write_metrics({name: float(value)})

    def stop(self, reason: str) -> None:
        """End the training after this step: it is evaluated and counts as finished; `reason` is in its summary."""
        self.stop_reason = reason or "stopped by a callback"

    def save_weights(self, name: str) -> None:
        """Save the model as a checkpoint in the run folder, `<run_dir>/<name>`, in place of an earlier one.

        Raises:
            ValueError: It is no name for a folder, or another file or folder of the run has it.
        """
        folder = self.run_dir / name
        if name in ("", ".", "..") or Path(name).name != name:
            raise ValueError(f"save_weights needs a plain name for a folder in the run folder, not {name!r}")
        # Elsewhere the folder may be seen while it is replaced; an error of one rank ends all of them.
        if self.is_main_process and folder.exists() and not (folder / MANIFEST).exists():
            raise ValueError(f"save_weights: {folder} is no checkpoint, so it is not replaced; give another name")
        self.write_weights(name)


class EarlyStopping:
    """Stop when a hold-out metric has not improved for some epochs.

    Args:
        patience: Evaluations without improvement after which the run ends.
        monitor: `val/accuracy` or `val/loss`; the test set must not decide anything.
        min_delta: Smallest change that counts as an improvement.
    """

    def __init__(self, patience: int = 5, monitor: str = "val/accuracy", min_delta: float = 0.0) -> None:
        _require_hold_out_metric(monitor)
        self.patience, self.monitor, self.min_delta = patience, monitor, min_delta
        self.best: float | None = None
        self.num_without_improvement = 0

    def on_fit_start(self, context: CallbackContext) -> None:
        """Require evaluations of a hold-out; forget an earlier run of this object."""
        _require_evaluations(context, "early_stopping")
        if context.step == 0:
            self.best, self.num_without_improvement = None, 0

    def on_epoch_end(self, context: CallbackContext) -> None:
        """Compare the metric with the best so far."""
        if self.monitor not in context.metrics:
            return  # not evaluated in this epoch
        value = _higher_is_better(self.monitor, context.metrics[self.monitor])
        if self.best is None or value > self.best + self.min_delta:
            self.best, self.num_without_improvement = value, 0
            return
        self.num_without_improvement += 1
        if self.num_without_improvement >= self.patience:
            context.stop(f"{self.monitor} has not improved for {self.patience} evaluations")

    def state_dict(self) -> dict[str, Any]:
        """Return the best value and the number of evaluations since."""
        return {"best": self.best, "num_without_improvement": self.num_without_improvement}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.best, self.num_without_improvement = state["best"], state["num_without_improvement"]


class BestCheckpoint:
    """Keep the weights of the epoch with the best hold-out metric in `<run_dir>/best`.

    The run's results stay those of its last step. `evaluate`, `predict` and `export` take the folder `best` like any
    checkpoint, and `--init-from` starts from it.

    Args:
        monitor: `val/accuracy` or `val/loss`.
    """

    def __init__(self, monitor: str = "val/accuracy") -> None:
        _require_hold_out_metric(monitor)
        self.monitor = monitor
        self.best: float | None = None

    def on_fit_start(self, context: CallbackContext) -> None:
        """Require evaluations of a hold-out; forget an earlier run of this object."""
        _require_evaluations(context, "best_checkpoint")
        if context.step == 0:
            self.best = None

    def on_epoch_end(self, context: CallbackContext) -> None:
        """Save the weights if the metric is the best so far."""
        if self.monitor not in context.metrics:
            return
        value = _higher_is_better(self.monitor, context.metrics[self.monitor])
        if self.best is None or value > self.best:
            self.best = value
            context.save_weights("best")

    def state_dict(self) -> dict[str, Any]:
        """Return the best value."""
        return {"best": self.best}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.best = state["best"]


BUILT_IN: dict[str, Callable[..., Any]] = {"early_stopping": EarlyStopping, "best_checkpoint": BestCheckpoint}


class Callbacks:
    """The callbacks of a run, called together; the first that raises is kept as `error` for the loop to raise.

    Args:
        settings: Name the callbacks and their arguments.
        dataset: Its facts are arguments of callbacks that take them.
        accelerator: Of this process.

    Raises:
        SettingsError: There is no such callback, or an argument that none of them takes.
        InputError: A callback raises when it is made, or has none of the methods.
    """

    def __init__(self, settings: Settings, dataset: Dataset, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._callbacks: dict[str, Any] = {}
        self.error: UserError | None = None
        self.stop_reason = ""
        taken: set[str] = set()
        for number, name in enumerate(settings.callbacks):
            found: Any = load_component(name, setting="callbacks") if is_import_path(name) else BUILT_IN[name]
            if inspect.isclass(found) or inspect.isfunction(found):
                names, _ = parameters_of(found)
                given = {key: value for key, value in settings.callback_args.items() if key in names}
                taken |= given.keys()
                known = dataset.facts(settings)
                arguments = arguments_for(found, known, path=name, setting="callbacks", given=given)
                with user_code(name, setting="callbacks"):
                    found = found(**arguments)
            if not any(hasattr(found, hook) for hook in HOOKS):
                raise InputError(f"callbacks: {name} has none of the methods {', '.join(HOOKS)}")
            self._callbacks[f"{number} {name}"] = found
        for key in settings.callback_args.keys() - taken:
            raise SettingsError(f"callback_args: none of the callbacks takes {key!r}{did_you_mean(key, sorted(taken))}")

    def has(self, hook: str) -> bool:
        """Return whether a callback has this method."""
        return any(hasattr(callback, hook) for callback in self._callbacks.values())

    def call(self, hook: str, make_context: Callable[[], CallbackContext]) -> None:
        """Call the method of all callbacks that have it. All ranks must call this with the same step.

        An exception is not raised but becomes `error`, on every rank, so that the loop can save the run first; a
        request to stop becomes `stop_reason`.
        """
        if not self.has(hook):
            return
        context = make_context()
        for name, callback in self._callbacks.items():
            if hasattr(callback, hook) and self.error is None:
                try:
                    getattr(callback, hook)(context)
                except UserError as error:
                    self.error = error
                except Exception as error:
                    shown = name.split(" ", 1)[1]
                    self.error = InputError(f"callback {shown} raised {describe_error(error)} in {hook}")
        self._agree(context)

    def raise_error(self) -> None:
        """Raise the exception of a callback, if there was one."""
        if self.error is not None:
            raise self.error

    def state_dict(self) -> dict[str, Any]:
        """Return the states of the callbacks that have one, for a checkpoint.

        Raises:
            InputError: A state has something other than tensors and plain values, which could not be read back.
        """
        return dict(self._states())

    def load_state_dict(self, states: Mapping[str, Any]) -> None:
        """Continue from `state_dict`; a callback that is new keeps its initial state."""
        for name, callback in self._callbacks.items():
            if name in states and hasattr(callback, "load_state_dict"):
                with user_code(name.split(" ", 1)[1], setting="callbacks"):
                    callback.load_state_dict(states[name])

    def _states(self) -> Iterator[tuple[str, Any]]:
        for name, callback in self._callbacks.items():
            if not hasattr(callback, "state_dict"):
                continue
            shown = name.split(" ", 1)[1]
            with user_code(shown, setting="callbacks"):
                state = callback.state_dict()
            require_readable(state, f"callbacks: the state_dict of {shown}")
            yield name, state

    def _agree(self, context: CallbackContext) -> None:
        """Make an error or a request to stop on one rank one of all ranks."""
        self.stop_reason = self.stop_reason or context.stop_reason
        if self._accelerator.num_processes == 1:
            return
        mine = torch.tensor([self.error is not None, bool(self.stop_reason)], device=self._accelerator.device)
        failed, stopped = self._accelerator.gather(mine.int()[None]).amax(dim=0).tolist()
        if failed and self.error is None:
            self.error = InputError("a callback raised on another process")
            self.error.is_shared = True
        if stopped and not self.stop_reason:
            self.stop_reason = "a callback on another process stopped the run"


def _require_hold_out_metric(monitor: str) -> None:
    if monitor not in ("val/accuracy", "val/loss"):
        raise SettingsError(f"callback_args: monitor is {monitor!r}; give val/accuracy or val/loss")


def _require_evaluations(context: CallbackContext, name: str) -> None:
    """Raise `SettingsError` if there is no hold-out, or if it is evaluated only at the end."""
    if context.dataset.val is None:
        raise SettingsError(f"callbacks: {name} needs a hold-out; give --val-size")
    settings = context.settings
    if settings.eval_every >= settings.epochs > 1:
        raise SettingsError(
            f"eval_every: {settings.eval_every} of {settings.epochs} epochs, so the hold-out is evaluated only at the "
            f"end, too late for {name}; give --eval-every 1"
        )


def _higher_is_better(monitor: str, value: float) -> float:
    return value if monitor.endswith("accuracy") else -value
