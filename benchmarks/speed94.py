"""Time to 94% beside airbench94_muon: `python -m benchmarks.speed94 --airbench CHECKOUT --data-dir DIR`, on one GPU.

Alternating blocks, ours, peer, ours, peer, each a process of its own that first makes a whole training to warm up
and compile. On both sides the clock counts the whitening statistics, training and the last evaluation with TTA;
ours also counts building net and optimizer and copying the images to the GPU. The same command again continues.
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
from cifar10_accel.children import refuse_launcher
from cifar10_accel.flags import WIDE, exits_with_one_line, settings_flags
from cifar10_accel.launch import without_auto
from cifar10_accel.processes import python_command, running
from cifar10_accel.results import labelled
from cifar10_accel.run_folder import RUNS
from cifar10_accel.settings import Settings
from cifar10_accel.spread import Spread

SIDES = ("ours", "peer", "ours", "peer")  # of the blocks
BAR = 0.94
SEEDS_A_BLOCK = 10_000  # so that no two blocks have a seed in common
LEAST_SHARE = 0.25  # of a call's time: with less left, another block would not get past its warm-up


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where everything of one comparison is: these settings, on this device."""

    out: Path
    given: dict[str, Any]
    settings: Settings
    device: str

    @property
    def results(self) -> Path:
        """One JSON line per run: device, block and a `TimedRun`."""
        name = f"{Path(self.settings.recipe).stem}-{self.settings.fingerprint()}-{self.settings.tta}"
        return self.out / f"{name}.jsonl"

    def runs(self, *blocks: int) -> list[TimedRun]:
        """The runs so far of some blocks."""
        lines = self.results.read_text().splitlines() if self.results.exists() else []
        found = [json.loads(line) for line in lines]
        mine = [row["run"] for row in found if row["device"] == self.device and row["block"] in blocks]
        return [TimedRun(**run) for run in mine]

    def add(self, runs: Sequence[TimedRun], *, block: int) -> None:
        """Appends runs to the results."""
        with self.results.open("a") as file:
            for run in runs:
                file.write(json.dumps({"device": self.device, "block": block, "run": asdict(run)}) + "\n")


@click.command(context_settings=WIDE)
@click.option("--airbench", type=click.Path(path_type=Path), help=f"checkout of cifar10-airbench, or its {SCRIPT}")
@click.option("--runs", type=click.IntRange(min=1), default=10, show_default=True, help="runs in each of four blocks")
@click.option("--out", type=click.Path(path_type=Path), default=RUNS / "speed94", show_default=True,
              help="folder for results, logs and what the peer needs")  # fmt: skip
@MINUTES
@settings_flags
@exits_with_one_line
def main(airbench: Path | None, runs: int, out: Path, minutes: float, **flags: Any) -> None:
    """Ours and the peer in alternating blocks on one GPU, on the same clock; where that cannot be, ours alone."""
    refuse_launcher("a benchmark")
    given = {"recipe": "speed94"} | benchmark_flags(flags)
    settings = without_auto(Settings(**given), on_cpu=not torch.cuda.is_available())
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    place = Place(out=out.resolve(), given=given | {"recipe": settings.recipe}, settings=settings, device=device)
    place.out.mkdir(parents=True, exist_ok=True)
    if airbench is None or not torch.cuda.is_available():
        click.echo("ours alone: the peer needs CUDA and a checkout of it (--airbench)")
        airbench = None
    run_blocks(place, airbench, runs=runs, minutes=minutes)
    click.echo(f"\n{describe_machine()}\n")
    click.echo(table(place))
    blocks = [block for block, side in enumerate(SIDES) if side == "ours" or airbench]
    if missing := sum(max(0, runs - len(place.runs(block))) for block in blocks):
        click.echo(f"missing: {missing} of {runs * len(blocks)} runs; the same command continues")


def run_blocks(place: Place, airbench: Path | None, *, runs: int, minutes: float) -> None:
    """Makes the runs that are missing, block by block, until the time is over."""
    start, is_first = time.monotonic(), True
    for block, side in enumerate(SIDES):
        done = len(place.runs(block))
        left = 60 * minutes - (time.monotonic() - start)
        if done >= runs or (side == "peer" and airbench is None):
            continue
        if not is_first and left < LEAST_SHARE * 60 * minutes:
            break
        is_first = False
        click.echo(f"block {block + 1}, {side}: {runs - done} of {runs} runs to make")
        if airbench is not None and side == "peer":
            script = prepare(airbench, place.out / "peer", place.settings, num_runs=runs - done)
            _run(place, [script.name], read_peer, block=block, cwd=script.parent, seconds=left)
        else:
            flags = place.given | {"seed": place.settings.seed + SEEDS_A_BLOCK * block + done}
            arguments = ["-m", "benchmarks.timed", json.dumps(flags, default=str), str(runs - done)]
            _run(place, arguments, read_ours, block=block, cwd=Path.cwd(), seconds=left)


def table(place: Place) -> str:
    """Both sides beside each other, over all their blocks."""
    sides = [place.runs(*(block for block, side in enumerate(SIDES) if side == wanted)) for wanted in ("ours", "peer")]
    ours, peer = sides
    split = f"hold-out of {place.settings.val_size:,}" if place.settings.val_size else "test set"
    return "\n".join([
        f"{place.device}, {place.settings.recipe} on {labelled(place.settings.dataset)}, {split}; "
        f"{len(ours)} runs of ours, {len(peer)} of {SCRIPT}",
        "\n| | ours | peer | ours / peer |\n|---|---:|---:|---:|",
        _seconds("seconds, whitening to evaluation with TTA", [[run.seconds for run in side] for side in sides]),
        _seconds("seconds without the evaluation", [[run.train_seconds for run in side] for side in sides]),
        _accuracy("accuracy with TTA", [[run.tta for run in side if run.tta is not None] for side in sides]),
        _accuracy("accuracy, plain", [[run.plain for run in side] for side in sides]),
    ])  # fmt: skip


def _seconds(title: str, sides: list[list[float]]) -> str:
    spreads = [Spread.of(values) if values else None for values in sides]
    cells = ["-" if one is None else f"{one.mean:.3f} (sd {one.sd:.3f})" for one in spreads]
    ours, peer = spreads
    ratio = f"{ours.mean / peer.mean:.3f}" if ours and peer else "-"
    return f"| {title} | {' | '.join(cells)} | {ratio} |"


def _accuracy(title: str, sides: list[list[float]]) -> str:
    cells = []
    for values in sides:
        reach = sum(value >= BAR for value in values)
        cells.append(
            f"{mean_and_interval(Spread.of(values))}, sd {percent(Spread.of(values).sd)}, "
            f"{reach} of {len(values)} >= {BAR:.0%}" if values else "-"
        )  # fmt: skip
    return f"| {title} | {' | '.join(cells)} | |"


def _run(
    place: Place, arguments: list[str], read: Callable[[str], list[TimedRun]], *, block: int, cwd: Path, seconds: float
) -> None:
    """Runs a block in a process of its own, for so long at most, and keeps the runs that were whole."""
    log = place.out / f"block-{block + 1}.log"
    log.unlink(missing_ok=True)
    command = python_command(arguments, num_processes=1)
    environment = {"PYTHONUNBUFFERED": "1", "TORCHINDUCTOR_CACHE_DIR": str(place.out / "compiled")}
    try:
        with chdir(cwd), running(command, log=log, environment=environment) as process:
            wait(process, time.monotonic() + seconds, log=log, doing=f"block {block + 1}")
    finally:
        place.add(read(log.read_text()), block=block)


if __name__ == "__main__":
    main()
