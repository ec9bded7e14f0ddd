"""Where the metrics of a run go: metrics.jsonl always, and beside it a mirror that cannot hurt the training.

The mirror is W&B, Trackio or TensorBoard, driven through Accelerate's tracker classes; their packages
are imported only when asked for. Whatever a mirror does wrong (not installed, not logged in, no network,
a server that answers nonsense or nothing) costs one warning and a bounded time, never the run.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from accelerate import Accelerator
from accelerate.tracking import TrackioTracker

from cifar10_accel.errors import NonFiniteError, Preempted, UserError
from cifar10_accel.metrics_log import append_metrics, drop_metrics_after
from cifar10_accel.mirrors import Mirror, TensorBoardMirror, in_one_line, started, warn
from cifar10_accel.settings import TrackingSettings
from cifar10_accel.wandb_mirror import WandbMirror


class Tracker:
    """Context that records one run. All ranks may call its methods; only the main process does anything.

    Entering it starts the mirror (W&B: up to 20 s if its server does not answer) and removes the
    metrics of updates after `resume_step`; leaving it finishes the mirror with the exit code that the
    exception in flight stands for, and after a stop that all ranks agreed on it lets them leave together:
    a launcher ends the others as soon as one is gone. While it is open the mirror is one of `accelerator.trackers`.

    run_dir must exist. config: the resolved settings, as plain values.
    """

    def __init__(
        self, accelerator: Accelerator, settings: TrackingSettings, *,
        run_dir: Path, run_name: str, config: Mapping[str, Any], resume_step: int,
    ) -> None:  # fmt: skip
        self._accelerator = accelerator
        self._settings = settings
        self._run_dir = run_dir.resolve()
        self._run_name = run_name
        self._config = dict(config)
        self._resume_step = resume_step
        self._mirror: Mirror | None = None
        self._has_failed = False

    def __enter__(self) -> Self:
        if self._accelerator.is_main_process:
            drop_metrics_after(self._metrics_path, self._resume_step)
            self._guarded(self._start_mirror)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.finish(_exit_code(error))
        if isinstance(error, Preempted | NonFiniteError):  # which all ranks raise together
            with suppress(RuntimeError):  # a rank that is gone
                self._accelerator.wait_for_everyone()

    def log(self, values: Mapping[str, float], *, step: int, epoch: float) -> None:
        """Records metrics after `step` updates. Raises `OutOfResourcesError` if metrics.jsonl cannot be written."""
        if not self._accelerator.is_main_process:
            return
        append_metrics(self._metrics_path, values, step=step, epoch=epoch)
        if self._mirror:
            self._guarded(self._mirror.log, {"epoch": epoch, **values}, step)

    def log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Shows a table in the mirror; a cell that is an (H, W, 3) uint8 array is an image.

        W&B gets the whole table, TensorBoard the images, Trackio nothing. After a failure no more
        tables are tried: a mirror that waits for a server with them shall do so once.
        """
        if self._mirror and not self._has_failed:
            self._guarded(self._mirror.log_table, list(columns), [list(row) for row in rows], name)

    def log_summary(self, values: Mapping[str, Any]) -> None:
        """Sets the final values of the run in the mirror's list of runs (W&B only)."""
        if self._mirror:
            self._guarded(self._mirror.log_summary, dict(values))

    def finish(self, exit_code: int) -> None:
        """Closes the mirror, in 10 s at most, and says how to upload what it could not. A second call does nothing."""
        if not (mirror := self._mirror):
            return
        self._mirror = None
        # Accelerator.end_training() would finish it again, and without the exit code.
        self._accelerator.trackers = [other for other in self._accelerator.trackers if other is not mirror.tracker]
        self._guarded(mirror.finish, exit_code)
        if command := mirror.upload_command(has_failed=self._has_failed):
            print(f"W&B has not got all of this run; to upload it: {command}")

    @property
    def _metrics_path(self) -> Path:
        return self._run_dir / "metrics.jsonl"

    def _start_mirror(self) -> None:
        try:
            self._mirror = self._make_mirror()
        except ImportError as error:
            raise LookupError(f"not installed: pip install {self._settings.tracker}") from error
        if self._mirror:
            self._accelerator.trackers.append(self._mirror.tracker)

    def _make_mirror(self) -> Mirror | None:
        """The mirror that the settings name, started."""
        match self._settings.tracker:
            case "wandb":
                return WandbMirror(self._settings, self._run_dir, self._run_name, self._config)
            case "trackio":
                resume = "allow" if self._resume_step else "never"
                tracker = TrackioTracker(self._settings.wandb_project, name=self._run_name, resume=resume, embed=False)
                return Mirror(started(tracker), self._config)
            case "tensorboard":
                return TensorBoardMirror(self._run_dir, self._config, resume_step=self._resume_step)
        return None

    def _guarded(self, call: Callable[..., None], *arguments: Any) -> None:
        """Calls something of the mirror; what it raises is said once and goes no further."""
        try:
            call(*arguments)
        except Exception as error:
            if not self._has_failed:
                warn(f"{self._settings.tracker} fails ({in_one_line(error)}); metrics.jsonl has everything")
            self._has_failed = True


def _exit_code(error: BaseException | None) -> int:
    """What a process that ends with this exception exits with."""
    if error is None:
        return 0
    if isinstance(error, KeyboardInterrupt):
        return 130
    return error.exit_code if isinstance(error, UserError) else 1
