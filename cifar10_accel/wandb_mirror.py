"""W&B as the mirror: online where one is logged in, offline otherwise, and no outage costs more than half a minute."""

import os
import secrets
import shlex
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

from accelerate.tracking import WandBTracker

from cifar10_accel.mirrors import Mirror, in_one_line, is_image, started, warn
from cifar10_accel.settings import TrackingSettings
from cifar10_accel.wandb_api import let_service_settle

# For the W&B client, where the user's environment does not say otherwise. Together they bound what an
# outage can cost. Its error reports are off because they go to the same server, at exit, without a limit.
WANDB_ENVIRONMENT = {
    "WANDB_INIT_TIMEOUT": "20",
    "WANDB_FINISH_TIMEOUT": "10",
    "WANDB_HTTP_TIMEOUT": "10",
    "WANDB_ERROR_REPORTING": "false",
}


class WandbMirror(Mirror):
    """A W&B run, its files under run_dir/wandb. A resumed run continues the run whose id the folder has."""

    def __init__(self, settings: TrackingSettings, run_dir: Path, run_name: str, config: dict[str, Any]) -> None:
        # Where the images of tables wait for the upload and the client's own logs go, whatever the home is like.
        folders = dict.fromkeys(("WANDB_DATA_DIR", "WANDB_CACHE_DIR"), str(run_dir / "wandb"))
        self._own_variables = [name for name in folders if name not in os.environ]
        for name, value in (WANDB_ENVIRONMENT | folders).items():
            os.environ.setdefault(name, value)
        tracker = _start_wandb(settings, run_dir, run_name)
        self._run = tracker.run
        if not (self._run.offline or self._run.disabled):
            _let_tables_survive_an_outage(self._run)
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

        shown = [[wandb.Image(cell) if is_image(cell) else cell for cell in row] for row in rows]
        self.tracker.log_table(name, columns=columns, data=shown)

    def log_summary(self, values: dict[str, Any]) -> None:
        self._run.summary.update(values)

    def finish(self, exit_code: int) -> None:
        """Ends the run; one that a SIGTERM took from the machine is marked so, and a sweep queues it again.

        Not one that was ended by Ctrl-C, nor by the client itself, which sends a SIGINT when W&B stops the
        run. In a sweep the agent's SIGTERM for that may be first, and is like any other.
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
    """A run in the mode that is wanted; offline, with a warning, if that cannot be had."""
    import wandb

    def start(mode: str) -> WandBTracker:
        # Silent: what W&B says about itself would bury what this project says. Warnings still show.
        quietly = wandb.Settings(silent=True, finish_timeout_raises=True)
        identity = _wandb_identity(settings, run_dir, run_name)
        return started(WandBTracker(settings.wandb_project, mode=mode, dir=str(run_dir), settings=quietly, **identity))

    try:
        return start(wandb_mode(settings.wandb_mode))
    except Exception as error:
        warn(f"W&B cannot be used as wanted ({in_one_line(error)}); it records this run offline")
    let_service_settle()
    with suppress(Exception):  # the client's service holds the run's id, or has died of what the server said
        wandb.teardown()
    return start("offline")


def _let_tables_survive_an_outage(run: Any) -> None:
    """Makes a table go into the log of the run, as it does offline: uploaded from there, now or by `wandb sync`.

    The client by itself first asks the server, in the training's own time, whether the table's name is
    already that of something else, and then sends the table past the log: in an outage it is lost. What
    this replaces is private to the client; a version without it loses tables as before.
    """
    as_usual: Any = getattr(run, "_log_artifact", None)

    def log_artifact(artifact: Any, *args: Any, **options: Any) -> Any:
        if getattr(artifact, "type", None) != "run_table":
            return as_usual(artifact, *args, **options)
        artifact.finalize()
        run._interface.publish_artifact(run, artifact, ["latest"])
        return artifact

    if as_usual is not None and hasattr(getattr(run, "_interface", None), "publish_artifact"):
        run._log_artifact = log_artifact


def wandb_server() -> str:
    """The URL of the W&B server that runs of this user go to."""
    import wandb

    return str(wandb.setup().settings.base_url)


def wandb_mode(wanted: str) -> str:
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
    """The arguments of wandb.init that say which run this is; inside a sweep the agent has said it."""
    if "WANDB_SWEEP_ID" in os.environ:
        return {"resume": "allow"}  # a trial that was preempted comes back under its old id
    id_file = run_dir / "wandb_run_id"
    stored_id = id_file.read_text().strip() if id_file.exists() else ""
    run_id = os.environ.get("WANDB_RUN_ID") or stored_id or secrets.token_hex(4)
    id_file.write_text(run_id)
    return {"entity": settings.wandb_entity, "name": run_name, "id": run_id, "resume": "allow"}
