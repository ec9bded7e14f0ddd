"""The turn of each contestant of the race: a process of its own, alone, and its result."""

import json
from collections.abc import Callable, Mapping
from contextlib import chdir
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from benchmarks.peer import write_data
from benchmarks.race import scripts
from benchmarks.race.results import PRECISIONS, RaceResult
from benchmarks.race.scripts import Length, PeerScript, Progress
from benchmarks.race.trainers import CALIBRATION_SHARE
from cifar10_accel.errors import UserError
from cifar10_accel.runs.metrics_jsonl import read_metrics
from cifar10_accel.runs.run_folder import RunFolder
from cifar10_accel.settings import DataSettings, Settings
from cifar10_accel.subprocesses import python_command, run_to_end, settings_to_flags

FIRST_EPOCHS = 2  # of few images, for a first estimate of a script's speed


@dataclass(frozen=True, kw_only=True)
class Race:
    """The conditions of a race, equal for all contestants."""

    out: Path  # absolute
    given: Mapping[str, Any]  # flags of this project, with those of the user
    settings: Settings  # of these flags
    precision: str  # "bf16" or "no"
    num_threads: int
    num_train: int  # training images
    echo: Callable[[str], None]

    @property
    def budget(self) -> float:
        """Seconds of training."""
        return float(self.settings.time_budget or 0)

    def with_seed(self, seed: int) -> Self:
        """Return the race with another seed, in a folder of its own, which exists."""
        out = self.out / f"seed-{seed}"
        out.mkdir(exist_ok=True)
        settings = self.settings.model_copy(update={"seed": seed})
        return replace(self, out=out, given=dict(self.given) | {"seed": seed}, settings=settings)

    def start(self, arguments: list[str], *, log: Path, doing: str) -> None:
        """Run `python ARGUMENTS` to its end, with the threads of the race and without a GPU."""
        log.unlink(missing_ok=True)  # of an attempt that failed
        environment = {
            "CUDA_VISIBLE_DEVICES": "",
            "ACCELERATE_USE_CPU": "true",  # not the GPU of a Mac either
            "OMP_NUM_THREADS": str(self.num_threads),
            "PYTHONUNBUFFERED": "1",
        }
        run_to_end(python_command(arguments, num_processes=1), log=log, doing=doing, environment=environment)


def run_this_project(race: Race) -> RaceResult:
    """Train with this project's command line: the time budget chooses recipe and epochs, unless they are given.

    Plain accuracy is evaluated after every epoch, outside the time of training. An interrupted run continues.
    """
    folder = RunFolder(race.out / "this-project")
    flags = dict(race.given) | {"run_dir": folder.path, "num_threads": race.num_threads, "precision": race.precision}
    log = race.out / "this-project.log"
    race.start(["-m", "cifar10_accel", "train", *settings_to_flags(flags)], log=log, doing="this project")
    return read_run(folder, num_train=race.num_train)


def read_run(folder: RunFolder, *, num_train: int) -> RaceResult:
    """Return the result of a finished run folder.

    The seconds of a point are those between the lines of metrics.jsonl: images of these steps, divided by images/s.
    """
    settings, summary = folder.settings(), folder.read_json("summary.json")
    points, seconds, step = [], 0.0, 0
    for row in read_metrics(folder.metrics):
        if "images_per_second" in row:
            seconds += (row["step"] - step) * settings.batch_size / row["images_per_second"]
            step = int(row["step"])
        if "test/accuracy" in row:
            points.append((seconds, row["test/accuracy"]))
    num_images = int(summary["step"]) * settings.batch_size
    return RaceResult(
        trained=f"recipe {Path(settings.recipe).stem}",
        precision=settings.precision,
        plain=summary["test/accuracy"],
        tta=summary.get("test/accuracy_tta"),
        seconds=summary["train_seconds"],
        num_images=num_images,
        epochs=num_images / num_train,
        points=points,
    )


def run_script(race: Race, peer: PeerScript, checkout: Path) -> RaceResult:
    """Time a script of others on few images, in each precision that may be the fastest, and train for the budget."""
    seconds = {
        precision: _seconds_per_step(race, peer, checkout, precision=precision, num_epochs=FIRST_EPOCHS)
        for precision in dict.fromkeys((race.precision, "no"))
    }
    precision = min(seconds, key=lambda key: seconds[key])
    epoch_seconds = seconds[precision] * scripts.calibration_length(peer, num_epochs=0).steps_per_epoch
    longer = int(CALIBRATION_SHARE * race.budget / epoch_seconds)
    if longer > FIRST_EPOCHS:
        seconds[precision] = _seconds_per_step(race, peer, checkout, precision=precision, num_epochs=longer)
    steps = max(1, int(race.budget / seconds[precision]))
    length = Length(steps=steps, steps_per_epoch=max(1, race.num_train // peer.batch_size))
    for tried, value in seconds.items():
        race.echo(f"{peer.name}: {peer.batch_size / value:,.0f} images/s in {PRECISIONS[tried]}")
    race.echo(f"{peer.name}: {steps:,} steps in {PRECISIONS[precision]}")
    folder = race.out / peer.name
    write_data(folder / "cifar10", race.settings)
    progress = _run(race, peer, checkout, folder, length=length, precision=precision)
    return scripts.result(peer, progress, length, precision=precision)


def run_trainer(race: Race, name: str) -> RaceResult:
    """Train with a Trainer, which is timed in the same process before."""
    out = race.out / f"{name}.json"
    flags = {key: value for key, value in race.given.items() if key in DataSettings.model_fields or key == "seed"}
    request = json.dumps({"budget": race.budget, "precision": race.precision, "flags": flags}, default=str)
    arguments = ["-m", "benchmarks.race.trainers", name, request, str(out)]
    race.start(arguments, log=race.out / f"{name}.log", doing=name)
    return RaceResult.from_json(json.loads(out.read_text()))


def _seconds_per_step(race: Race, peer: PeerScript, checkout: Path, *, precision: str, num_epochs: int) -> float:
    folder = race.out / f"{peer.name}-calibration"
    scripts.write_calibration_data(folder, race.settings)
    length = scripts.calibration_length(peer, num_epochs=num_epochs)
    return scripts.seconds_per_step(_run(race, peer, checkout, folder, length=length, precision=precision))


def _run(
    race: Race, peer: PeerScript, checkout: Path, folder: Path, *, length: Length, precision: str
) -> list[Progress]:
    """Run an adapted script in its folder and return its progress; `UserError` if it fails or prints none."""
    script = scripts.prepare(peer, checkout, folder, length, precision=precision, seed=race.settings.seed)
    log = folder / "output.log"
    with chdir(folder):
        race.start([script.name], log=log, doing=peer.name)
    progress = peer.read(log.read_text(), length)
    if not progress:
        raise UserError(f"{peer.name}: its output has no accuracy ({log})")
    return progress
