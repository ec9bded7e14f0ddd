"""Experiment tracking: metrics.jsonl always, and a backend (W&B, Trackio or TensorBoard) whose failure is harmless.

The backends drive Accelerate's tracker classes; their packages are imported only when they are used. Any failure of a
backend (not installed, not logged in, no network, a server with invalid responses or none) costs one warning and a
bounded time, never the run.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from accelerate import Accelerator
from accelerate.tracking import GeneralTracker, TrackioTracker

from cifar10_accel.components import call_component, is_import_path, load_component
from cifar10_accel.errors import NonFiniteError, Preempted, UserError
from cifar10_accel.formatting import error_line
from cifar10_accel.runs.metrics_jsonl import append_metrics, drop_metrics_after
from cifar10_accel.settings import TrackingSettings
from cifar10_accel.tracking.backend import TensorBoardBackend, TrackerBackend, started
from cifar10_accel.tracking.wandb import WandbBackend

logger = logging.getLogger(__name__)


class Tracker:
    """Context that records one run. All ranks may call its methods; only the main process does anything.

    On entry it removes the metrics of steps after `resume_step` from metrics.jsonl and starts the backend (W&B: up to
    20 s if its server does not respond). On exit it finishes the backend with the exit code of the exception in
    flight. After an exception that all ranks raise it waits for the other ranks, because a launcher ends all processes
    as soon as one has exited. While the context is open the backend's tracker is one of `accelerator.trackers`.

    Args:
        accelerator: Of this process.
        settings: Name the backend and its options.
        run_dir: An existing folder: that of metrics.jsonl and of the backend's files.
        run_name: Name of the run in the backend.
        config: The resolved settings, as plain values.
        resume_step: Steps done before; 0 for a new run.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        settings: TrackingSettings,
        *,
        run_dir: Path,
        run_name: str,
        config: Mapping[str, Any],
        resume_step: int,
    ) -> None:
        self._accelerator = accelerator
        self._settings = settings
        self._run_dir = run_dir.resolve()
        self._run_name = run_name
        self._config = dict(config)
        self._resume_step = resume_step
        self._backend: TrackerBackend | None = None
        self._has_failed = False
        self._imported: Any = None
        if is_import_path(settings.tracker):  # a wrong path is an error of the settings, on every rank
            self._imported = load_component(settings.tracker, setting="tracker")

    def __enter__(self) -> Self:
        if self._accelerator.is_main_process:
            drop_metrics_after(self._metrics_path, self._resume_step)
            self._guarded(self._start_backend)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.finish(_exit_code(error))
        if isinstance(error, Preempted | NonFiniteError):  # which all ranks raise together
            with suppress(RuntimeError):  # a rank has already exited
                self._accelerator.wait_for_everyone()

    def log(self, values: Mapping[str, float], *, step: int, epoch: float) -> None:
        """Record metrics after `step` steps; `epoch` may be fractional.

        Raises:
            OutOfResourcesError: metrics.jsonl cannot be written.
        """
        if not self._accelerator.is_main_process:
            return
        append_metrics(self._metrics_path, values, step=step, epoch=epoch)
        if self._backend:
            self._guarded(self._backend.log, {"epoch": epoch, **values}, step)

    def log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Log a table in the backend; a cell that is an (H, W, 3) uint8 array is an image.

        W&B gets the whole table, TensorBoard the images, Trackio nothing. After a failure no more tables are logged:
        a backend may wait for its server with each of them.
        """
        if self._backend and not self._has_failed:
            self._guarded(self._backend.log_table, list(columns), [list(row) for row in rows], name)

    def log_summary(self, values: Mapping[str, Any]) -> None:
        """Set the final values of the run in the backend's list of runs (W&B only)."""
        if self._backend:
            self._guarded(self._backend.log_summary, dict(values))

    def finish(self, exit_code: int) -> None:
        """Close the backend within 10 s and log how to upload what is only on this disk; a second call does nothing."""
        if not (backend := self._backend):
            return
        self._backend = None
        # Accelerator.end_training() would finish it a second time, without the exit code.
        self._accelerator.trackers = [other for other in self._accelerator.trackers if other is not backend.tracker]
        self._guarded(backend.finish, exit_code)
        if command := backend.upload_command(has_failed=self._has_failed):
            logger.info("this run is not completely on the W&B server; to upload it: %s", command)

    @property
    def _metrics_path(self) -> Path:
        return self._run_dir / "metrics.jsonl"

    def _start_backend(self) -> None:
        try:
            self._backend = self._make_backend()
        except ImportError as error:
            package = error.name if is_import_path(self._settings.tracker) else self._settings.tracker
            raise LookupError(f"not installed: pip install {package}") from error
        if self._backend:
            self._accelerator.trackers.append(self._backend.tracker)

    def _make_backend(self) -> TrackerBackend | None:
        """Return the backend of the settings, started; None for `none`."""
        match self._settings.tracker:
            case "wandb":
                return WandbBackend(self._settings, self._run_dir, self._run_name, self._config)
            case "trackio":
                resume = "allow" if self._resume_step else "never"
                tracker = TrackioTracker(self._settings.wandb_project, name=self._run_name, resume=resume, embed=False)
                return TrackerBackend(started(tracker), self._config)
            case "tensorboard":
                return TensorBoardBackend(self._run_dir, self._config, resume_step=self._resume_step)
        return None if self._imported is None else TrackerBackend(started(self._make_imported()), self._config)

    def _make_imported(self) -> GeneralTracker:
        """Return an Accelerate tracker that is not built in: the object itself, or an instance of its class."""
        if isinstance(self._imported, GeneralTracker):
            return self._imported
        known = {
            "run_name": self._run_name,
            "logging_dir": self._run_dir,
            "settings": self._settings,
            "project_name": self._settings.wandb_project,
        }
        return call_component(self._imported, known, path=self._settings.tracker, setting="tracker")

    def _guarded(self, call: Callable[..., None], *arguments: Any) -> None:
        """Call a method of the backend; log the first exception as a warning and ignore the others."""
        try:
            call(*arguments)
        except Exception as error:
            if not self._has_failed:
                logger.warning("%s fails (%s); metrics.jsonl is complete", self._settings.tracker, error_line(error))
            self._has_failed = True


def _exit_code(error: BaseException | None) -> int:
    """Return the exit code of a process that ends with this exception."""
    if error is None:
        return 0
    if isinstance(error, KeyboardInterrupt):
        return 130
    return error.exit_code if isinstance(error, UserError) else 1
