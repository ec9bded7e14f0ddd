"""The W&B backend: online if the user is logged in, else offline; an outage costs at most half a minute."""

import logging
import os
import secrets
import shlex
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

from accelerate.tracking import WandBTracker

from cifar10_accel.formatting import error_line
from cifar10_accel.settings import RunSettings, TrackingSettings
from cifar10_accel.tracking.backend import TrackerBackend, is_image, started
from cifar10_accel.tracking.wandb_api import let_service_settle

logger = logging.getLogger(__name__)

# Limits of the W&B client, unless the user's environment sets them; together they bound the cost of an outage. Its
# error reports are off because it sends them at exit without a timeout.
WANDB_ENVIRONMENT = {
    "WANDB_INIT_TIMEOUT": "20",
    "WANDB_FINISH_TIMEOUT": "10",
    "WANDB_HTTP_TIMEOUT": "10",
    "WANDB_ERROR_REPORTING": "false",
}


class WandbBackend(TrackerBackend):
    """A W&B run with its files under run_dir/wandb; a resumed run continues the run whose id is in run_dir."""

    def __init__(self, settings: TrackingSettings, run_dir: Path, run_name: str, config: dict[str, Any]) -> None:
        # The images of tables and the client's own logs go there even if the home folder is not writable.
        folders = dict.fromkeys(("WANDB_DATA_DIR", "WANDB_CACHE_DIR"), str(run_dir / "wandb"))
        self._own_variables = [name for name in folders if name not in os.environ]
        for name, value in (WANDB_ENVIRONMENT | folders).items():
            os.environ.setdefault(name, value)
        tracker = _start_wandb(settings, run_dir, run_name)
        self._run = tracker.run
        if not (self._run.offline or self._run.disabled):
            _log_tables_through_the_run_file(self._run)
        # A sweep locks the values that it sets, and W&B warns of every assignment, even of the same value.
        known = dict(self._run.config)
        super().__init__(tracker, {k: v for k, v in config.items() if k not in known or known[k] != v})
        # Metrics have their own step: W&B's counter cannot go back to where a resumed run continues.
        self._run.define_metric("*", step_metric="step")
        _log_use_of_variables(settings, run_name=str(self._run.name))
        if not (self._run.offline or self._run.disabled):
            logger.info("W&B: %s", self._run.url)

    def log(self, values: dict[str, float], step: int) -> None:
        self.tracker.log({"step": step, **values})

    def log_table(self, columns: list[str], rows: list[list[Any]], name: str) -> None:
        import wandb

        shown = [[wandb.Image(cell) if is_image(cell) else cell for cell in row] for row in rows]
        self.tracker.log_table(name, columns=columns, data=shown)

    def log_summary(self, values: dict[str, Any]) -> None:
        self._run.summary.update(values)

    def finish(self, exit_code: int) -> None:
        """Finish the run; after a SIGTERM mark it as preempted, so that a sweep queues it again.

        A run that ended with SIGINT is not marked: that is Ctrl-C, or the client itself when the run is stopped in W&B.
        (In a sweep the agent may send SIGTERM first in that case; it cannot be told apart.)
        """
        if exit_code == 128 + signal.SIGTERM:
            self._run.mark_preempting()
        try:
            self._run.finish(exit_code=exit_code)
        except Exception:
            let_service_settle()
            raise
        finally:
            for name in self._own_variables:
                os.environ.pop(name, None)

    def upload_command(self, *, has_failed: bool) -> str | None:
        folder = shlex.quote(str(Path(self._run.dir).parent))
        if self._run.offline:
            return f"wandb sync {folder}"
        return f"wandb sync --include-online {folder}" if has_failed else None


def _start_wandb(settings: TrackingSettings, run_dir: Path, run_name: str) -> WandBTracker:
    """Start a run in the mode of the settings; if that fails, log a warning and start it offline."""
    import wandb

    def start(mode: str) -> WandBTracker:
        # Silent, because W&B's own messages would hide those of this package; warnings still show.
        client_settings = wandb.Settings(silent=True, finish_timeout_raises=True)
        identity = _wandb_identity(settings, run_dir, run_name)
        return started(
            WandBTracker(settings.wandb_project, mode=mode, dir=str(run_dir), settings=client_settings, **identity)
        )

    try:
        return start(wandb_mode(settings.wandb_mode))
    except Exception as error:
        logger.warning("W&B cannot be used as configured (%s); this run is recorded offline", error_line(error))
    let_service_settle()
    with suppress(Exception):  # the client's service still holds the run's id, or has crashed
        wandb.teardown()
    return start("offline")


def _log_tables_through_the_run_file(run: Any) -> None:
    """Make an online run write tables to its run file, as an offline run does; they are uploaded from there.

    By default the client first asks the server whether the table's name is taken, which blocks the training, and then
    sends the table without writing it to the run file, so an outage loses it. The replaced method is private to the
    client; with a version that lacks it, tables are logged in the default way.
    """
    default: Any = getattr(run, "_log_artifact", None)

    def log_artifact(artifact: Any, *args: Any, **options: Any) -> Any:
        if getattr(artifact, "type", None) != "run_table":
            return default(artifact, *args, **options)
        artifact.finalize()
        run._interface.publish_artifact(run, artifact, ["latest"])
        return artifact

    if default is not None and hasattr(getattr(run, "_interface", None), "publish_artifact"):
        run._log_artifact = log_artifact


def wandb_server() -> str:
    """Return the URL of the W&B server that this user's runs are sent to."""
    import wandb

    return str(wandb.setup().settings.base_url)


def wandb_mode(wanted: str) -> str:
    """Return the mode to start W&B in, never one in which it would prompt for a key.

    Args:
        wanted: `auto`, `online` or `offline`.

    Raises:
        LookupError: `online` is wanted, but nobody is logged in.
    """
    import wandb
    from wandb.sdk.lib import wbauth

    client = wandb.setup().settings  # WANDB_* variables and the settings files that `wandb offline` and others write
    if wanted == "offline":
        return wanted
    if wanted == "auto" and client.mode in ("offline", "dryrun", "disabled"):
        return str(client.mode)
    key = wbauth.authenticate_session(host=client.base_url, source="cifar10-accel", prompt=False, update_session=False)
    if wanted == "online" and not key:
        raise LookupError("nobody is logged in: `wandb login`")
    return "online" if key else "offline"


def _wandb_identity(settings: TrackingSettings, run_dir: Path, run_name: str) -> dict[str, Any]:
    """Return the arguments of wandb.init that identify the run; in a sweep the agent has set them."""
    if "WANDB_SWEEP_ID" in os.environ:
        return {"resume": "allow"}  # a preempted trial is started again under the same id
    id_file = run_dir / "wandb_run_id"
    stored_id = id_file.read_text().strip() if id_file.exists() else ""
    run_id = os.environ.get("WANDB_RUN_ID") or stored_id or secrets.token_hex(4)
    id_file.write_text(run_id)
    has_own_name = isinstance(settings, RunSettings) and settings.run_name is not None
    name = run_name if has_own_name else os.environ.get("WANDB_NAME") or run_name
    return {"entity": settings.wandb_entity, "name": name, "id": run_id, "resume": "allow"}


def _log_use_of_variables(settings: TrackingSettings, *, run_name: str) -> None:
    """Log which of W&B's variables decide project, entity and name, and which do not because a setting does."""
    used = {"PROJECT": settings.wandb_project, "ENTITY": settings.wandb_entity, "NAME": run_name}
    for word, value in used.items():
        given = os.environ.get(f"WANDB_{word}")
        if given and "WANDB_SWEEP_ID" not in os.environ:  # there the agent has set them
            source = f"from WANDB_{word}" if given == value else f"from the settings, not {given!r} from WANDB_{word}"
            logger.info("W&B: %s %r, %s", word.lower(), value, source)
