"""The folder of a run: its files, its lock, and the check that a training may continue in it.

settings.yaml  environment.json  status.json  metrics.jsonl  summary.json  report.html
predictions.npz  val_predictions.npz (with a hold-out)  dynamics.npz
misclassified.png  correct.png  confusion.png  curves.png  checkpoints/step-XXXXXX/
robustness.json  robustness.png    (written by the command `robustness`)
wandb/  wandb_run_id  tensorboard/    (of the trackers in use)
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from cifar10_accel.data.dataset import Dataset
from cifar10_accel.data.image_format import ImageFormat
from cifar10_accel.errors import InputError, Preempted, SettingsError, UserError
from cifar10_accel.files import output_of, read_yaml, write_text
from cifar10_accel.formatting import format_duration
from cifar10_accel.runs import checkpoint
from cifar10_accel.runs.legacy import translate_settings
from cifar10_accel.settings import Settings

RUNS = Path("runs")
# Results of a run that has ended, gone when it goes on.
RESULTS = (
    *("summary.json", "report.html", "predictions.npz", "val_predictions.npz"),
    *("misclassified.png", "correct.png", "confusion.png", "curves.png", "robustness.json", "robustness.png"),
)


class RunFolder:
    """The paths of one run folder, and its small JSON files."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.metrics = path / "metrics.jsonl"
        self.predictions = path / "predictions.npz"
        self.val_predictions = path / "val_predictions.npz"
        self.dynamics = path / "dynamics.npz"
        self.report = path / "report.html"
        self._settings: Settings | None = None  # of the run that `open` was called for

    @classmethod
    def of(cls, settings: Settings) -> "RunFolder":
        """Return the folder `run_dir`, or runs/<run_name>; the default name has recipe, data set and fingerprint.

        It has the time budget, too, unless that has chosen the recipe and the number of epochs already: the same
        command finds its folder before anything is measured.
        """
        recipe = "auto" if settings.has_open_recipe else Path(settings.recipe).stem
        dataset = re.sub(r"[^\w.-]+", "-", settings.dataset)  # an import path has a colon
        parts = [recipe, dataset, settings.fingerprint()]
        if settings.time_budget is not None and settings.has_open_length:
            parts.insert(2, format_duration(settings.time_budget))
        name = settings.run_name or "-".join(parts)
        return cls(settings.run_dir or RUNS / name)

    def open(self, settings: Settings, dataset: Dataset | None = None) -> None:
        """Create and lock the folder, or check that this run may continue in it. Only for the main process.

        The lock is held until `unlock`, until the context `record_status` is left, or until an exception leaves
        `record_failure`.

        Args:
            settings: Of the run.
            dataset: Its data set; None: the images are not compared with those of an earlier start.

        Raises:
            SettingsError: The folder cannot be written, is in use, or has a run with other settings or images.
            OutOfResourcesError: The disk is full.
        """
        with output_of("run_dir", self.path):
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(self.path / ".lock", timeout=0, is_singleton=True)
            try:
                self._lock.acquire()
            except Timeout:
                raise SettingsError(
                    f"run_dir: another training is running in {self.path}; give another --run-name"
                ) from None
        with self.record_failure(is_main=True):
            for leftover in self.path.glob("*.*.tmp"):  # of a process killed while it wrote a file
                leftover.unlink(missing_ok=True)
            is_finished = self.is_finished()
            if not is_finished:  # an old state, such as preempted, must not stand for a start that fails
                self._write_status("starting", None, "")
            if (self.path / "settings.yaml").exists():
                self._require_same_run(settings, dataset)
            self._settings = settings
            if not is_finished:  # else those of its results stay, unless `record_status` says that it goes on
                self._write("settings.yaml", settings.to_yaml())

    def settings(self) -> Settings:
        """Return the settings of the run.

        Raises:
            InputError: The folder is not a run folder.
        """
        path = self.path / "settings.yaml"
        if not path.exists():
            raise InputError(f"{self.path}: not a run folder (no settings.yaml); give a folder that training made")
        try:
            return Settings.stored(translate_settings(read_yaml(path), source=path))
        except SettingsError as error:
            raise InputError(f"{path}: {error}") from None

    def chosen_length(self, settings: Settings) -> tuple[str, int] | None:
        """Return the recipe and epochs that a time budget chose for the run that continues here; None without one.

        Raises:
            SettingsError: That run has another budget, or none.
        """
        if not self.has_steps() or not (self.path / "settings.yaml").exists():
            return None
        before = self.settings()
        if before.time_budget != settings.time_budget:
            had, wanted = (
                "none" if budget is None else format_duration(budget)
                for budget in (before.time_budget, settings.time_budget)
            )
            raise SettingsError(
                f"run_dir: {self.path} holds a run with other settings (time_budget {had} -> {wanted}); "
                f"give another --run-name, or --time-budget {had} to continue it"
            )
        return before.recipe if settings.has_open_recipe else settings.recipe, before.epochs

    def image_format(self) -> ImageFormat:
        """Return the format of the images that the run was trained on; early versions had CIFAR-10's only."""
        return ImageFormat.from_json(self.read_json("environment.json").get("images", {}))

    def recorded_image_format(self) -> ImageFormat | None:
        """Return the format of the images of the run that continues here; None without a step of it."""
        has_recorded = self.has_steps() and (self.path / "environment.json").exists()
        return self.image_format() if has_recorded else None

    @contextmanager
    def record_failure(self, *, is_main: bool) -> Iterator[None]:
        """Context that writes to status.json why an exception leaves it: preempted, or failed with the exit code.

        The folder is unlocked then. A run that has finished before stays finished. Launchers reduce every exit code to
        1; this file keeps the original.
        """
        try:
            yield
        except BaseException as error:
            if is_main:
                if not self.is_finished():
                    state = "preempted" if isinstance(error, Preempted) else "failed"
                    code, reason = 1, f"{type(error).__name__}: {error}"
                    if isinstance(error, UserError):
                        code, reason = error.exit_code, str(error)
                    with suppress(UserError):  # a failure to write must not hide the exception
                        self._write_status(state, code, reason)
                self.unlock()
            raise

    @contextmanager
    def record_status(self, *, is_main: bool) -> Iterator[None]:
        """Context of the training, which writes status.json: running, then finished, preempted or failed.

        `open` has written "starting", or "failed" if it has refused the settings. Leaving it unlocks the folder.
        """
        with self.record_failure(is_main=is_main):
            if is_main:
                self._write_status("running", None, "")
                self._remove_results()
                if self._settings is not None:
                    self._write("settings.yaml", self._settings.to_yaml())
            yield
            if is_main:
                self._write_status("finished", 0, "")
        if is_main:
            self.unlock()

    def unlock(self) -> None:
        """Let other processes train in this folder, after `open`. Only for the main process."""
        self._lock.release(force=True)

    def _remove_results(self) -> None:
        """Remove what an earlier end of the run has left: results of a run that goes on are not its own."""
        with output_of("run_dir", self.path):
            for name in RESULTS:
                (self.path / name).unlink(missing_ok=True)

    def _write_status(self, state: str, exit_code: int | None, reason: str) -> None:
        self.write_json("status.json", {"state": state, "exit_code": exit_code, "reason": reason})

    def name(self) -> str:
        """Return the name of the folder, also if its path is '.'."""
        return self.path.resolve().name

    def is_finished(self) -> bool:
        """Return True if the training in this folder has finished."""
        return self.read_json("status.json").get("state") == "finished"

    def has_steps(self) -> bool:
        """Return True if there is a run here that has logged or saved a step."""
        return self.metrics.exists() or any(self.checkpoints.glob("step-*"))

    def write_json(self, name: str, values: dict[str, Any]) -> None:
        """Replace a JSON file atomically.

        Raises:
            OutOfResourcesError: The disk is full.
            SettingsError: It cannot be written for another reason.
        """
        self._write(name, json.dumps(values, indent=1) + "\n")

    def _write(self, name: str, text: str) -> None:
        with output_of("run_dir", self.path / name):
            write_text(self.path / name, text)

    def read_json(self, name: str) -> dict[str, Any]:
        """Return the values in a JSON file of the folder; none if it is missing or not readable."""
        try:
            return dict(json.loads((self.path / name).read_text()))
        except (OSError, ValueError):
            return {}

    def read_bytes(self, name: str) -> bytes | None:
        """Return the content of a file of the folder; None if it is missing or not readable."""
        try:
            return (self.path / name).read_bytes()
        except OSError:
            return None

    def _require_same_run(self, settings: Settings, dataset: Dataset | None) -> None:
        if not self.has_steps():
            return  # it failed before its first step, perhaps for these settings
        before, now = self.settings().weight_affecting(), settings.weight_affecting()
        names = [name for name in (*now, *(before.keys() - now.keys())) if before.get(name) != now.get(name)]
        changes = [f"{name} {before.get(name)} -> {now.get(name)}" for name in names]
        if dataset is not None and settings.is_own_dataset and not self._was_trained_on(dataset):
            # A folder may have been moved; the code behind an import path may have changed.
            source = f"in data_dir {settings.data_dir}" if settings.dataset == "folder" else f"of {settings.dataset}"
            changes.append(f"other images {source}")
        if changes:
            raise SettingsError(
                f"run_dir: {self.path} holds a run with other settings ({'; '.join(changes)}); "
                "give another --run-name, with --init-from that run to start from its weights, or the settings of that "
                "run to continue it"
            )

    def _was_trained_on(self, dataset: Dataset) -> bool:
        """Return whether class names and statistics of the images are the recorded ones; True if none are recorded."""
        recorded = self.read_json("environment.json")
        names, images = recorded.get("classes"), recorded.get("images")
        has_names = not names or names == list(dataset.class_names)
        return has_names and (not images or ImageFormat.from_json(images) == dataset.image_format)


def locate_checkpoint(source: Path) -> tuple[RunFolder, Path]:
    """Return the run folder and the checkpoint that a path stands for.

    Args:
        source: A run folder, which stands for its newest checkpoint, or a checkpoint in one.

    Raises:
        InputError: `source` is neither.
    """
    if source.parent.name == "checkpoints":
        return RunFolder(source.parent.parent), source
    if (source / checkpoint.MANIFEST).exists():  # saved beside the others, such as `best`
        return RunFolder(source.parent), source
    run = RunFolder(source)
    newest = checkpoint.newest(run.checkpoints)
    if newest is None:
        raise InputError(
            f"{source}: no checkpoint there; give a run folder that training made, or one of its checkpoints"
        )
    return run, newest
