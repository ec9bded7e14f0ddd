"""Where the metrics of a run go: metrics.jsonl always, and beside it a mirror that cannot hurt the training.

The mirror is W&B, Trackio or TensorBoard, driven through Accelerate's tracker classes; their packages
are imported only when asked for. Whatever a mirror does wrong (not installed, not logged in, no network,
a server that answers nonsense or nothing) costs one warning and a bounded time, never the run.
"""

import os
import secrets
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker, TensorBoardTracker, TrackioTracker, WandBTracker

from cifar10_accel.errors import UserError
from cifar10_accel.metrics_log import append_metrics, drop_metrics_after
from cifar10_accel.settings import TrackingSettings

# For the W&B client, where the user's environment does not say otherwise. Together they bound what an
# outage can cost. Its error reports are off because they go to the same server, at exit, without a limit.
WANDB_ENVIRONMENT = {
    "WANDB_INIT_TIMEOUT": "20",
    "WANDB_FINISH_TIMEOUT": "10",
    "WANDB_HTTP_TIMEOUT": "10",
    "WANDB_ERROR_REPORTING": "false",
}


class Tracker:
    """Context that records one run. All ranks may call its methods; only the main process does anything.

    Entering it starts the mirror (W&B: up to 20 s if its server does not answer) and removes the
    metrics of updates after `resume_step`; leaving it finishes the mirror with the exit code that the
    exception in flight stands for. While it is open the mirror is one of `accelerator.trackers`.

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
        self._mirror: _Mirror | None = None
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
        tables are tried: unlike metrics, they wait for the server.
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

    def _make_mirror(self) -> "_Mirror | None":
        """The mirror that the settings name, started."""
        match self._settings.tracker:
            case "wandb":
                return _WandbMirror(self._settings, self._run_dir, self._run_name, self._config)
            case "trackio":
                resume = "allow" if self._resume_step else "never"
                tracker = TrackioTracker(self._settings.wandb_project, name=self._run_name, resume=resume, embed=False)
                return _Mirror(_started(tracker), self._config)
            case "tensorboard":
                return _TensorBoardMirror(self._run_dir, self._config, resume_step=self._resume_step)
        return None

    def _guarded(self, call: Callable[..., None], *arguments: Any) -> None:
        """Calls something of the mirror; what it raises is said once and goes no further."""
        try:
            call(*arguments)
        except Exception as error:
            if not self._has_failed:
                _warn(f"{self._settings.tracker} fails ({_in_one_line(error)}); metrics.jsonl has everything")
            self._has_failed = True


class _Mirror:
    """A tracker of Accelerate, started, with what all of them can do. Any method may raise anything."""

    def __init__(self, tracker: GeneralTracker, config: dict[str, Any]) -> None:
        self.tracker = tracker
        tracker.store_init_configuration(config)

    def log(self, values: dict[str, float], step: int) -> None:
        self.tracker.log(values, step=step)

    def log_table(self, columns: list[str], rows: list[list[Any]], name: str) -> None:
        pass

    def log_summary(self, values: dict[str, Any]) -> None:
        pass

    def finish(self, exit_code: int) -> None:
        self.tracker.finish()

    def upload_command(self, *, has_failed: bool) -> str | None:
        """The command that uploads what is only on this disk."""
        return None


class _TensorBoardMirror(_Mirror):
    """Curves, settings and images under run_dir/tensorboard."""

    def __init__(self, run_dir: Path, config: dict[str, Any], *, resume_step: int) -> None:
        scalars = {name: value if isinstance(value, int | float) else str(value) for name, value in config.items()}
        tracker = TensorBoardTracker("tensorboard", run_dir, purge_step=resume_step + 1)
        super().__init__(_started(tracker), scalars)
        self._last_step = resume_step

    def log(self, values: dict[str, float], step: int) -> None:
        super().log(values, step)
        self._last_step = step

    def log_table(self, columns: list[str], rows: list[list[Any]], name: str) -> None:
        images = [cell for row in rows for cell in row if _is_image(cell)]
        if images:
            self.tracker.log_images({name: np.stack(images)}, step=self._last_step, dataformats="NHWC")


class _WandbMirror(_Mirror):
    """A W&B run, its files under run_dir/wandb. A resumed run continues the run whose id the folder has."""

    def __init__(self, settings: TrackingSettings, run_dir: Path, run_name: str, config: dict[str, Any]) -> None:
        # Where the images of tables wait for the upload and the client's own logs go, whatever the home is like.
        folders = dict.fromkeys(("WANDB_DATA_DIR", "WANDB_CACHE_DIR"), str(run_dir / "wandb"))
        self._own_variables = [name for name in folders if name not in os.environ]
        for name, value in (WANDB_ENVIRONMENT | folders).items():
            os.environ.setdefault(name, value)
        tracker = _start_wandb(settings, run_dir, run_name)
        self._run = tracker.run
        # A sweep locks what it has set, and warns of every update even to the same value.
        known = dict(self._run.config)
        super().__init__(tracker, {k: v for k, v in config.items() if k not in known or known[k] != v})
        # Metrics have their own step: W&B's counter cannot go back to where a resumed run continues.
        self._run.define_metric("*", step_metric="step")
        if not (self._run.offline or self._run.disabled):
            print(f"W&B: {self._run.url}")

    def log(self, values: dict[str, float], step: int) -> None:
        self.tracker.log({"step": step, **values})

    def log_table(self, columns: list[str], rows: list[list[Any]], name: str) -> None:
        import wandb

        shown = [[wandb.Image(cell) if _is_image(cell) else cell for cell in row] for row in rows]
        self.tracker.log_table(name, columns=columns, data=shown)

    def log_summary(self, values: dict[str, Any]) -> None:
        self._run.summary.update(values)

    def finish(self, exit_code: int) -> None:
        try:
            self._run.finish(exit_code=exit_code)
        finally:
            for name in self._own_variables:
                os.environ.pop(name, None)

    def upload_command(self, *, has_failed: bool) -> str | None:
        folder = shlex.quote(str(Path(self._run.dir).parent))
        if self._run.offline:
            return f"wandb sync {folder}"
        return f"wandb sync --include-online {folder}" if has_failed else None


def _started(tracker: GeneralTracker) -> GeneralTracker:
    tracker.start()
    return tracker


def _start_wandb(settings: TrackingSettings, run_dir: Path, run_name: str) -> WandBTracker:
    """A run in the mode that is wanted; offline, with a warning, if that cannot be had."""
    import wandb

    def start(mode: str) -> WandBTracker:
        # Silent: what W&B says about itself would bury what this project says. Warnings still show.
        quietly = wandb.Settings(silent=True, finish_timeout_raises=True)
        identity = _wandb_identity(settings, run_dir, run_name)
        return _started(WandBTracker(settings.wandb_project, mode=mode, dir=str(run_dir), settings=quietly, **identity))

    try:
        return start(_wandb_mode(settings.wandb_mode))
    except Exception as error:
        _warn(f"W&B cannot be used as wanted ({_in_one_line(error)}); it records this run offline")
    with suppress(Exception):  # the client's service holds the run's id, or has died of what the server said
        wandb.teardown()
    return start("offline")


def _wandb_mode(wanted: str) -> str:
    """The mode to start W&B in: never one in which it would ask for a key. Raises if online is wanted without one."""
    import wandb
    from wandb.sdk.lib import wbauth

    here = wandb.setup().settings  # WANDB_* variables and the settings files that `wandb offline` and others write
    if wanted == "offline":
        return wanted
    if wanted == "auto" and here.mode in ("offline", "dryrun", "disabled"):
        return str(here.mode)
    key = wbauth.authenticate_session(host=here.base_url, source="cifar10-accel", prompt=False, update_session=False)
    if wanted == "online" and not key:
        raise LookupError("nobody is logged in: `wandb login`")
    return "online" if key else "offline"


def _wandb_identity(settings: TrackingSettings, run_dir: Path, run_name: str) -> dict[str, Any]:
    """The arguments of wandb.init that say which run this is; none inside a sweep, whose agent has said it."""
    if "WANDB_SWEEP_ID" in os.environ:
        return {}
    id_file = run_dir / "wandb_run_id"
    stored_id = id_file.read_text().strip() if id_file.exists() else ""
    run_id = os.environ.get("WANDB_RUN_ID") or stored_id or secrets.token_hex(4)
    id_file.write_text(run_id)
    return {"entity": settings.wandb_entity, "name": run_name, "id": run_id, "resume": "allow"}


def _is_image(cell: Any) -> bool:
    return isinstance(cell, np.ndarray) and cell.ndim == 3


def _exit_code(error: BaseException | None) -> int:
    """What a process that ends with this exception exits with."""
    if error is None:
        return 0
    if isinstance(error, KeyboardInterrupt):
        return 130
    return error.exit_code if isinstance(error, UserError) else 1


def _in_one_line(error: Exception) -> str:
    return " ".join((str(error) or type(error).__name__).split())[:200]


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr)
