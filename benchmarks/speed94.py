"""Time to 94% beside airbench94_muon: `python -m benchmarks.speed94 --airbench CHECKOUT --data-dir DIR`, on one GPU.

The blocks alternate: ours, peer, ours, peer. Each is a process of its own that first makes a whole training to warm up
and compile. On both sides the time includes the whitening statistics, training and the last evaluation with TTA; it
does not include building model and optimizer, nor copying the images to the GPU. Neither side writes anything to disk
in that time. A line of its own has the training time that a user gets from `fit`, which also keeps metrics and the
training dynamics. The same command again continues.
"""

import json
import time
from collections.abc import Callable, Sequence
from contextlib import chdir
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks.machine import describe_machine
from benchmarks.peer import SCRIPT, prepare, read_peer
from benchmarks.timed import TimedRun, read_ours
from benchmarks.trainings import MINUTES, benchmark_flags, mean_and_interval, percent, wait
from cifar10_accel.cli.flags import handle_user_errors, settings_options
from cifar10_accel.cli.help import SettingsCommand
from cifar10_accel.commands.statistics import SampleStats
from cifar10_accel.data.datasets import ensure_dataset
from cifar10_accel.errors import SettingsError
from cifar10_accel.formatting import dataset_title
from cifar10_accel.runs.run_folder import RUNS
from cifar10_accel.settings import Settings
from cifar10_accel.subprocesses import python_command, require_no_launcher, running

SIDES = ("ours", "peer", "ours", "peer")  # of the blocks
BAR = 0.94
SEEDS_PER_BLOCK = 10_000  # so that no two blocks have a seed in common
MIN_SHARE = 0.25  # of a call's time: with less left, another block would not finish its warm-up


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The settings, device and results folder of one comparison."""

    out: Path
    given: dict[str, Any]
    settings: Settings
    device: str

    @property
    def results(self) -> Path:
        """File with one JSON line per run: conditions, block and a `TimedRun`, or the seconds of a run of `fit`."""
        name = f"{Path(self.settings.recipe).stem}-{self.settings.fingerprint()}-{self.settings.tta}"
        return self.out / f"{name}.jsonl"

    def runs(self, *blocks: int) -> list[TimedRun]:
        """Return the runs of some blocks so far."""
        return [TimedRun(**row["run"]) for row in self._rows() if "run" in row and row["block"] in blocks]

    def fit_seconds(self) -> list[float]:
        """Return the training times of `fit` so far, one of each of our blocks."""
        return [row["fit_seconds"] for row in self._rows() if "fit_seconds" in row]

    def add(self, log: str, runs: Sequence[TimedRun], *, block: int) -> None:
        """Append the runs of a block to the results, and the training time of `fit` in its log, if there is one."""
        found: list[dict[str, Any]] = [{"run": asdict(run)} for run in runs]
        found += [json.loads(line) for line in log.splitlines() if line.startswith('{"fit_seconds"')]
        with self.results.open("a") as file:
            for row in found:
                file.write(json.dumps({"conditions": self._conditions, "block": block} | row) + "\n")

    def _rows(self) -> list[dict[str, Any]]:
        lines = self.results.read_text().splitlines() if self.results.exists() else []
        return [row for row in map(json.loads, lines) if row.get("conditions") == self._conditions]

    @property
    def _conditions(self) -> dict[str, Any]:
        given = {name: str(value) for name, value in self.given.items()}
        return {"device": self.device, "given": given}


@click.command(cls=SettingsCommand)
@click.option("--airbench", type=click.Path(path_type=Path), help=f"checkout of cifar10-airbench, or its {SCRIPT}")
@click.option("--runs", type=click.IntRange(min=1), default=10, show_default=True, help="runs in each of four blocks")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=RUNS / "speed94",
    show_default=True,
    help="folder for results, logs and the peer's files",
)
@MINUTES
@settings_options
@handle_user_errors
def main(airbench: Path | None, runs: int, out: Path, minutes: float, **flags: Any) -> None:
    """Time ours and the peer in alternating blocks on one GPU; without a GPU or a checkout of the peer, ours alone."""
    require_no_launcher("a benchmark")
    given = {"recipe": "speed94"} | benchmark_flags(flags)
    settings = Settings(**given).resolve_recipe(on_cpu=not torch.cuda.is_available())
    found = {"recipe": settings.recipe, "dataset": ensure_dataset(settings)}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    comparison = Comparison(
        out=out.resolve(), given=given | found, settings=settings.model_copy(update=found), device=device
    )
    if airbench is None or not torch.cuda.is_available():
        click.echo("ours alone: the peer needs CUDA and a checkout of it (--airbench)")
        airbench = None
    elif found["dataset"] != "cifar10":
        raise SettingsError(f"dataset: {found['dataset']}, but the peer trains on cifar10; give --data-dir")
    comparison.out.mkdir(parents=True, exist_ok=True)
    run_blocks(comparison, airbench, runs=runs, minutes=minutes)
    click.echo(f"\n{describe_machine()}\n")
    click.echo(table(comparison))
    blocks = [block for block, side in enumerate(SIDES) if side == "ours" or airbench]
    if missing := sum(max(0, runs - len(comparison.runs(block))) for block in blocks):
        click.echo(f"missing: {missing} of {runs * len(blocks)} runs; the same command continues")


def run_blocks(comparison: Comparison, airbench: Path | None, *, runs: int, minutes: float) -> None:
    """Make the runs that are missing, block by block, until the time is over."""
    start, is_first = time.monotonic(), True
    for block, side in enumerate(SIDES):
        done = len(comparison.runs(block))
        left = 60 * minutes - (time.monotonic() - start)
        if done >= runs or (side == "peer" and airbench is None):
            continue
        if not is_first and left < MIN_SHARE * 60 * minutes:
            break
        is_first = False
        click.echo(f"block {block + 1}, {side}: {runs - done} of {runs} runs to make")
        if airbench is not None and side == "peer":
            script = prepare(airbench, comparison.out / "peer", comparison.settings, num_runs=runs - done)
            _run(comparison, [script.name], read_peer, block=block, cwd=script.parent, seconds=left)
        else:
            flags = comparison.given | {"seed": comparison.settings.seed + SEEDS_PER_BLOCK * block + done}
            arguments = ["-m", "benchmarks.timed", json.dumps(flags, default=str), str(runs - done)]
            _run(comparison, arguments, read_ours, block=block, cwd=Path.cwd(), seconds=left)


def table(comparison: Comparison) -> str:
    """Return a table of both sides, over all their blocks."""
    sides = [
        comparison.runs(*(block for block, side in enumerate(SIDES) if side == wanted)) for wanted in ("ours", "peer")
    ]
    ours, peer = sides
    settings = comparison.settings
    split = f"hold-out of {settings.val_size:,}" if settings.val_size else "test set"
    return "\n".join(
        [
            f"{comparison.device}, {settings.recipe} on {dataset_title(settings.dataset)}, {split}; "
            f"{len(ours)} runs of ours, {len(peer)} of {SCRIPT}",
            "\n| | ours | peer | ours / peer |\n|---|---:|---:|---:|",
            _seconds("seconds, whitening to evaluation with TTA", [[run.seconds for run in side] for side in sides]),
            _seconds("seconds without the evaluation", [[run.train_seconds for run in side] for side in sides]),
            _seconds("seconds of training in `fit`, with metrics and dynamics", [comparison.fit_seconds(), []]),
            _accuracy("accuracy with TTA", [[run.tta for run in side if run.tta is not None] for side in sides]),
            _accuracy("accuracy, plain", [[run.plain for run in side] for side in sides]),
        ]
    )


def _seconds(title: str, sides: list[list[float]]) -> str:
    stats = [SampleStats.of(values) if values else None for values in sides]
    cells = ["-" if one is None else f"{one.mean:.3f} (sd {one.sd:.3f})" for one in stats]
    ours, peer = stats
    ratio = f"{ours.mean / peer.mean:.3f}" if ours and peer else "-"
    return f"| {title} | {' | '.join(cells)} | {ratio} |"


def _accuracy(title: str, sides: list[list[float]]) -> str:
    cells = []
    for values in sides:
        reach = sum(value >= BAR for value in values)
        cells.append(
            f"{mean_and_interval(SampleStats.of(values))}, sd {percent(SampleStats.of(values).sd)}, "
            f"{reach} of {len(values)} >= {BAR:.0%}"
            if values
            else "-"
        )
    return f"| {title} | {' | '.join(cells)} | |"


def _run(
    comparison: Comparison,
    arguments: list[str],
    read: Callable[[str], list[TimedRun]],
    *,
    block: int,
    cwd: Path,
    seconds: float,
) -> None:
    """Run a block in a process of its own, for at most `seconds`, and keep the runs that are complete."""
    log = comparison.out / f"block-{block + 1}.log"
    log.unlink(missing_ok=True)
    command = python_command(arguments, num_processes=1)
    environment = {"PYTHONUNBUFFERED": "1", "TORCHINDUCTOR_CACHE_DIR": str(comparison.out / "compiled")}
    try:
        with chdir(cwd), running(command, log=log, environment=environment) as process:
            wait(process, time.monotonic() + seconds, log=log, doing=f"block {block + 1}")
    finally:
        text = log.read_text()
        comparison.add(text, read(text), block=block)


if __name__ == "__main__":
    main()
