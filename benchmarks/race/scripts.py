"""The contestants that are scripts of others, from checkouts elsewhere: airbench94_muon.py and cifar10-fast-simple.

Nothing of them is kept in this repository. Their text is adapted while it is copied to the folder of the race: device,
data type and timer for a CPU, data from our verified copy, one run, and the number of steps. Their algorithms,
hyperparameters and LR schedules stay; the schedules are stretched to the number of steps.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peer import read_rows, write_data
from benchmarks.race.results import RaceResult
from cifar10_accel.errors import InputError
from cifar10_accel.settings import Settings

Changes = Sequence[tuple[str, str]]  # text that must be in a script exactly once, and what takes its place

CALIBRATION_IMAGES = 2000  # an epoch of the trainings in which a script is timed
CALIBRATION_TEST_IMAGES = 200

# Runs the model in bf16 autocast, or not; the loss is in float32 either way.
AUTOCAST = """
def _with_autocast(forward):
    autocast = torch.autocast("cpu", dtype=torch.bfloat16, enabled={enabled})(forward)
    return lambda *args, **kwargs: autocast(*args, **kwargs).float()

{model}.forward = _with_autocast({model}.forward)
"""
CPU_TIMER = """
class _CpuEvent:
    def record(self):
        import time
        self.seconds = time.perf_counter()

    def elapsed_time(self, end):
        return 1e3 * (end.seconds - self.seconds)  # milliseconds
"""
SAVED_CIFAR10 = """
def _saved_cifar10(name):
    import types
    saved = torch.load(f"cifar10/{name}.pt")
    return types.SimpleNamespace(data=saved["images"].numpy(), targets=saved["labels"].tolist())
"""


@dataclass(frozen=True)
class Progress:
    """A line of a script's output: the end of an epoch."""

    steps: int
    seconds: float
    plain: float
    tta: float | None


@dataclass(frozen=True, kw_only=True)
class Length:
    """The length of a training."""

    steps: int
    steps_per_epoch: int

    @property
    def epochs(self) -> int:
        """Epochs, of which the last may be a part."""
        return math.ceil(self.steps / self.steps_per_epoch)


@dataclass(frozen=True, kw_only=True)
class PeerScript:
    """A script of others, and how it is adapted and read."""

    name: str
    file: str
    other_files: tuple[str, ...]  # that it imports
    batch_size: int
    changes: Callable[[Length, str, int], Changes]  # for a length, precision and seed
    read: Callable[[str, Length], list[Progress]]  # of its output


def check(peer: PeerScript, checkout: Path) -> None:
    """Raise `InputError` unless the checkout has the script in the version that is known here."""
    _adapted(peer, checkout, Length(steps=1, steps_per_epoch=1), precision="no", seed=0)


def prepare(peer: PeerScript, checkout: Path, folder: Path, length: Length, *, precision: str, seed: int) -> Path:
    """Write the adapted script and the files that it imports to a folder, in which it has to be run.

    Raises:
        InputError: The checkout lacks a file, or has another version of the script.
    """
    texts = _adapted(peer, checkout, length, precision=precision, seed=seed)
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / name).write_text(text)
    return folder / peer.file


def write_calibration_data(folder: Path, settings: Settings) -> None:
    """Write the few images with which a script is timed."""
    write_data(folder / "cifar10", settings, num_train=CALIBRATION_IMAGES, num_test=CALIBRATION_TEST_IMAGES)


def calibration_length(peer: PeerScript, *, num_epochs: int) -> Length:
    """Return the length of a training in which a script is timed, after one epoch in which kernels are chosen."""
    steps_per_epoch = CALIBRATION_IMAGES // peer.batch_size
    return Length(steps=(1 + num_epochs) * steps_per_epoch, steps_per_epoch=steps_per_epoch)


def seconds_per_step(progress: Sequence[Progress]) -> float:
    """Return the mean seconds per step, without the first epoch."""
    first, *_, last = progress
    return (last.seconds - first.seconds) / (last.steps - first.steps)


def result(peer: PeerScript, progress: Sequence[Progress], length: Length, *, precision: str) -> RaceResult:
    """Return the result of a script whose training has ended."""
    end = progress[-1]
    return RaceResult(
        trained=peer.file,
        precision=precision,
        plain=end.plain,
        tta=end.tta,
        seconds=end.seconds,
        num_images=end.steps * peer.batch_size,
        epochs=end.steps / length.steps_per_epoch,
        points=[(one.seconds, one.plain) for one in progress],
    )


def _adapted(peer: PeerScript, checkout: Path, length: Length, *, precision: str, seed: int) -> dict[str, str]:
    """Return the texts of the script, adapted, and of the files that it imports, by name."""
    folder = checkout if checkout.is_dir() else checkout.parent
    texts = {name: _read(folder / name) for name in (peer.file, *peer.other_files)}
    original = adapted = texts[peer.file]
    for old, new in peer.changes(length, precision, seed):
        if original.count(old) != 1:
            line = old.strip().splitlines()[0]
            raise InputError(f"{folder / peer.file}: {line!r} is not in it exactly once; give the version of the docs")
        adapted = adapted.replace(old, new)
    return texts | {peer.file: adapted}


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); give a checkout that has it") from None


def _airbench_changes(length: Length, precision: str, seed: int) -> Changes:
    injected = CPU_TIMER + AUTOCAST.format(enabled=precision == "bf16", model="CifarNet")
    main = 'if __name__ == "__main__":\n'
    changes = [
        (main, f"{injected}\n{main}    torch.manual_seed({seed})\n"),
        ("@torch.compile\n", ""),
        ('model.compile(mode="max-autotune")', "pass"),
        ('main("warmup", model)', "pass"),
        ("range(200)", "range(1)"),
        ("ceil(8 * len(train_loader))", str(length.steps)),
        ('torch.device("cuda")', '"cpu"'),
        ("CifarNet().cuda()", "CifarNet()"),
        ("self.images.half()", "self.images.float()"),
        ("mod.half()", "mod.float()"),
        ("starter = torch.cuda.Event(enable_timing=True)", "starter = _CpuEvent()"),
        ("ender = torch.cuda.Event(enable_timing=True)", "ender = _CpuEvent()"),
        ("torch.cuda.synchronize()", "pass"),
    ]
    # A CPU without bf16 instructions would compute Muon's matrix products many times slower.
    return [*changes, ("X = G.bfloat16()", "X = G.bfloat16()" if precision == "bf16" else "X = G.float()")]


def _read_airbench(text: str, length: Length) -> list[Progress]:
    """Read the rows of the only run; the last one, of the epoch 'eval', has the accuracy with TTA."""
    progress: list[Progress] = []
    for row in read_rows(text):
        if row["epoch"] == "eval" and progress:
            end = progress.pop()
            progress.append(Progress(end.steps, end.seconds, end.plain, float(row["tta_val_acc"])))
        elif row["epoch"] != "eval":
            steps = min(length.steps, (int(row["epoch"]) + 1) * length.steps_per_epoch)
            progress.append(Progress(steps, float(row["time_seconds"]), float(row["val_acc"]), None))
    return progress


def _fast_simple_changes(length: Length, precision: str, seed: int) -> Changes:
    autocast = AUTOCAST.format(enabled=precision == "bf16", model="model.Model")
    logits = "logits2 = valid_model(flipped_inputs).detach()\n"
    plain = "            plain_correct += (logits1.argmax(1) == valid_targets[i : i + batch_size]).sum().item()\n"
    return [
        ("\nimport model\n", f"\nimport model\n{SAVED_CIFAR10}{autocast}"),
        ("range(100)", f"range({seed}, {seed + 1})"),
        ("    epochs = 10\n", f"    epochs = {length.epochs}\n"),
        ("2e-3, 194)", f"2e-3, {round(0.2 * length.steps)})"),  # of 970
        ("2e-4, 582)", f"2e-4, {round(0.6 * length.steps)})"),
        ("if i + batch_size > len(data):", f"if i + batch_size > len(data) or batch_count >= {length.steps}:"),
        ("torchvision.datasets.CIFAR10(root=data_dir, download=True)", '_saved_cifar10("train")'),
        ("torchvision.datasets.CIFAR10(root=data_dir, train=False)", '_saved_cifar10("test")'),
        # Its batch norm, a view of the channels, fails on images in channels_last order.
        ("data.permute(0, 3, 1, 2)", "data.permute(0, 3, 1, 2).contiguous()"),
        # Its accuracy is with TTA alone: the plain one is counted beside it, and printed at the end of the line.
        ("valid_correct = []\n", "valid_correct, plain_correct = [], 0\n"),
        (logits, logits + plain),
        ("{valid_acc:22.4f}", "{valid_acc:22.4f} {plain_correct / len(valid_targets):.4f}"),
    ]


def _read_fast_simple(text: str, length: Length) -> list[Progress]:
    """Read the lines of epoch, steps, seconds, accuracy with TTA (mirrored images) and plain accuracy."""
    progress = []
    for line in text.splitlines():
        cells = line.split()
        if len(cells) == 5 and cells[0].isdigit():
            _, steps, seconds, tta, plain = map(float, cells)
            progress.append(Progress(int(steps), seconds, plain, tta))
    return progress


AIRBENCH = PeerScript(
    name="airbench94_muon",
    file="airbench94_muon.py",
    other_files=(),
    batch_size=2000,
    changes=_airbench_changes,
    read=_read_airbench,
)
FAST_SIMPLE = PeerScript(
    name="cifar10-fast-simple",
    file="train.py",
    other_files=("model.py",),
    batch_size=512,
    changes=_fast_simple_changes,
    read=_read_fast_simple,
)
