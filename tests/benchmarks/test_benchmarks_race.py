"""The race at its smallest: adaptation of scripts, trainers, results that are kept, table and picture."""

import itertools
import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner, Result
from test_benchmarks_front import name_synthetic_cifar10
from torch import nn
from training_commands import CHILD_ENVIRONMENT, TINY, flags

from benchmarks.race import __main__ as race
from benchmarks.race import scripts, trainers
from benchmarks.race.results import RaceFile, RaceResult, table
from benchmarks.race.scripts import AIRBENCH, FAST_SIMPLE, Length, PeerScript, check, prepare
from benchmarks.race.trainers import TRAINERS, AugmentedBatches, Task, TrainerRace, TrainingClock
from cifar10_accel.data.datasets import load_dataset
from cifar10_accel.errors import InputError, SettingsError
from cifar10_accel.runs.run_folder import RunFolder
from cifar10_accel.settings import Settings

# What the adaptation expects of airbench94_muon.py, in a script that trains nothing: batches of 16, a step takes 1/25
# second, and the accuracy grows with every epoch.
FAKE_AIRBENCH = """
import torch
from math import ceil
train_loader = range(len(torch.load("cifar10/train.pt")["images"]) // 16)

@torch.compile
def zeropower(G):
    X = G.bfloat16()
    return X

class CifarNet(torch.nn.Linear):
    def __init__(self):
        super().__init__(2, 2)
        mod = self
        mod.half()
    def forward(self, x):
        return super().forward(x)

def main(run, model):
    data = torch.load("cifar10/train.pt", map_location=torch.device("cuda"))
    images = data["images"].flatten(1)[:, :2]
    class Loader:
        pass
    self = Loader()
    self.images = images
    inputs = self.images.half()
    assert run == 0 and model(zeropower(inputs).float()).dtype == torch.float32
    starter = torch.cuda.Event(enable_timing=True)
    ender = torch.cuda.Event(enable_timing=True)
    starter.record()
    ender.record()
    torch.cuda.synchronize()
    assert starter.elapsed_time(ender) >= 0
    total = ceil(8 * len(train_loader))
    for epoch in range(ceil(total / len(train_loader))):
        seconds = min(total, len(train_loader) * (epoch + 1)) / 25
        print(f"|  {'0' if epoch == 0 else ''}  |  {epoch}  |  0.9  |  0.{min(9, epoch + 1)}  |    |  {seconds}  |")
    print(f"|    |  eval  |  0.9  |  0.9  |  0.95  |  {seconds + 1}  |")
    return 0.95

if __name__ == "__main__":
    model = CifarNet().cuda().to(memory_format=torch.contiguous_format)
    model.compile(mode="max-autotune")
    main("warmup", model)
    [main(run, model) for run in range(200)]
"""
# The same of the train.py of cifar10-fast-simple; batches of 20, a step takes 1/20 second.
FAKE_FAST_SIMPLE = """
import torch
import torchvision
import model

def train(seed):
    epochs = 10
    batch_size = 20
    data_dir = "nowhere"
    lr_schedule = torch.cat([
        torch.linspace(0e+0, 2e-3, 194),
        torch.linspace(2e-3, 2e-4, 582),
    ])
    train = torchvision.datasets.CIFAR10(root=data_dir, download=True)
    valid = torchvision.datasets.CIFAR10(root=data_dir, train=False)
    valid_data, valid_targets = torch.tensor(valid.data).flatten(1)[:, :2].float(), torch.tensor(valid.targets)
    valid_model = model.Model(2, 10)
    data = torch.tensor(train.data)
    data = data.permute(0, 3, 1, 2)
    data.view(len(data), -1)
    batch_count = 0
    for epoch in range(1, epochs + 1):
        for i in range(0, len(data), batch_size):
            if i + batch_size > len(data):
                break
            batch_count += 1
        train_time = batch_count / 20
        valid_correct = []
        for i in range(0, len(valid_data), batch_size):
            regular_inputs = flipped_inputs = valid_data[i : i + batch_size]
            logits1 = valid_model(regular_inputs).detach()
            logits2 = valid_model(flipped_inputs).detach()
            assert logits1.dtype == torch.float32
            valid_correct.append(((logits1 + logits2).argmax(1) == valid_targets[i : i + batch_size]).double())
        valid_acc = torch.mean(torch.cat(valid_correct)).item()
        print(f"{epoch:5} {batch_count:8d} {train_time:19.2f} {valid_acc:22.4f}")

for run in range(100):
    train(seed=run)
"""
FAKE_MODEL = "import torch\nModel = torch.nn.Linear\n"


@pytest.fixture
def airbench(tmp_path: Path) -> Path:
    """A checkout with a script like airbench94_muon.py."""
    (tmp_path / "airbench").mkdir()
    (tmp_path / "airbench" / AIRBENCH.file).write_text(FAKE_AIRBENCH)
    return tmp_path / "airbench"


@pytest.fixture
def fast_simple(tmp_path: Path) -> Path:
    """A checkout with a script like the one of cifar10-fast-simple."""
    (tmp_path / "fast").mkdir()
    (tmp_path / "fast" / "train.py").write_text(FAKE_FAST_SIMPLE)
    (tmp_path / "fast" / "model.py").write_text(FAKE_MODEL)
    return tmp_path / "fast"


@pytest.fixture
def _small_race(monkeypatch: pytest.MonkeyPatch) -> None:
    """Synthetic images under the name of CIFAR-10, the batch sizes of the scripts above, and no Trainers."""
    name_synthetic_cifar10(monkeypatch)
    monkeypatch.setattr(scripts, "CALIBRATION_IMAGES", 80)
    monkeypatch.setattr(scripts, "AIRBENCH", replace(AIRBENCH, batch_size=16))
    monkeypatch.setattr(scripts, "FAST_SIMPLE", replace(FAST_SIMPLE, batch_size=20))
    monkeypatch.setattr(race, "find_spec", lambda name: None)
    for name, value in CHILD_ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


def run_race(*args: str) -> Result:
    """Run the command with a budget of 4.12 seconds, two epochs of this project and the tiniest settings."""
    given = TINY | {"val_size": 0, "tta": "flip", "epochs": 2, "precision": "no"}
    return CliRunner().invoke(race.main, ["--budget=4.12s", *args, *flags(given)], catch_exceptions=False)


@pytest.mark.usefixtures("_small_race")
def test_the_race_is_run_once_and_continues(tmp_path: Path, airbench: Path, fast_simple: Path) -> None:
    out = tmp_path / "out"
    args = [f"--airbench={airbench}", f"--out={out}"]
    first = run_race(*args)
    assert first.exit_code == 0, first.output
    assert "| cifar10-fast-simple | not given |" in first.output
    assert "| lightning | not installed |" in first.output
    assert "SYNTHETIC (not CIFAR-10), 400 training images" in first.output
    done = run_race(*args, f"--fast-simple={fast_simple}")
    assert done.exit_code == 0, done.output
    assert "this project, seed 0: done before" in done.output
    assert "airbench94_muon, seed 0: done before" in done.output
    results = {name: runs["0"] for name, runs in json.loads((out / "race.json").read_text())["results"].items()}
    assert list(results) == ["this project", "airbench94_muon", "cifar10-fast-simple"]

    ours = results["this project"]
    summary = json.loads((out / "seed-0" / "this-project" / "summary.json").read_text())
    assert (ours["plain"], ours["tta"]) == (summary["test/accuracy"], summary["test/accuracy_tta"])
    assert (ours["precision"], ours["epochs"], len(ours["points"])) == ("no", 1.8, 2)  # 6 of 6.67 batches an epoch
    assert ours["points"][-1] == [pytest.approx(ours["seconds"], rel=0.1), ours["plain"]]
    assert f"| {ours['plain']:.2%} | {ours['tta']:.2%} | {ours['seconds']:,.1f}" in done.output

    peer = results["airbench94_muon"]  # 25 steps an epoch
    assert (peer["plain"], peer["tta"], peer["num_images"], peer["epochs"]) == (0.5, 0.95, 103 * 16, 4.12)
    assert peer["points"] == [[1.0, 0.1], [2.0, 0.2], [3.0, 0.3], [4.0, 0.4], [4.12, 0.5]]
    fast = results["cifar10-fast-simple"]  # 20 steps an epoch
    assert (fast["num_images"], fast["epochs"], fast["precision"]) == (82 * 20, 4.1, "no")
    assert fast["plain"] == fast["tta"] > 0
    assert [seconds for seconds, _ in fast["points"]] == [1, 2, 3, 4, 4.1]
    assert (out / "race.png").read_bytes().startswith(b"\x89PNG")
    other = run_race("--budget=5s", *args)
    assert other.exit_code == 2
    assert "has a race with budget 4.12, this one has 5.0; give another --out" in other.stderr


@pytest.mark.usefixtures("_small_race")
def test_conditions_that_not_all_could_keep_are_refused(tmp_path: Path) -> None:
    for flag, message in {
        "--val-size=40": "val_size: 40, but all train on all training images; leave it out",
        "--precision=fp16": "precision: 'fp16', which a CPU does not compute",
        "--budget=soon": "time_budget: 'soon'",
    }.items():
        # The last of two equal flags counts.
        given = flags(TINY | {"val_size": 0, "precision": "no"})
        refused = CliRunner().invoke(race.main, [f"--out={tmp_path / 'out'}", *given, flag])
        assert refused.exit_code == 2
        assert message in refused.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("_small_race")
def test_a_failed_contestant_is_reported_and_tried_again(tmp_path: Path, airbench: Path) -> None:
    script = airbench / AIRBENCH.file
    script.write_text(
        FAKE_AIRBENCH.replace("    assert run == 0", "    raise OSError('no such luck')\n    assert run == 0")
    )
    args = [f"--airbench={airbench}", f"--out={tmp_path / 'out'}", "--only=airbench94_muon"]
    failed = run_race(*args)
    assert failed.exit_code == 2
    assert "| airbench94_muon | failed: airbench94_muon failed: OSError: no such luck" in failed.output
    assert "| this project | not trained |" in failed.output
    assert "1 contestant(s) failed; the same command tries them again" in failed.stderr
    script.write_text(FAKE_AIRBENCH)
    again = run_race(*args)
    assert again.exit_code == 0, again.output
    assert "| airbench94_muon | airbench94_muon.py | float32 | 1 | 50.00% | 95.00% | 4.1 | 400 | 4.12 |" in again.output


@pytest.mark.usefixtures("_small_race")
def test_seeds_take_turns_and_may_be_added(tmp_path: Path, airbench: Path) -> None:
    args = [f"--airbench={airbench}", f"--out={tmp_path / 'out'}"]
    assert run_race(*args, "--only=airbench94_muon").exit_code == 0
    done = run_race(*args, "--seeds=2")
    assert done.exit_code == 0, done.output
    turns = [line for line in done.output.splitlines() if ", seed " in line]
    assert turns == [
        "this project, seed 0 ...",
        "airbench94_muon, seed 0: done before",
        "this project, seed 1 ...",
        "airbench94_muon, seed 1 ...",
    ]
    results = json.loads((tmp_path / "out" / "race.json").read_text())["results"]
    assert [list(runs) for runs in results.values()] == [["0", "1"], ["0", "1"]]
    for seed in (0, 1):
        assert RunFolder(tmp_path / "out" / f"seed-{seed}" / "this-project").settings().seed == seed
        assert f"manual_seed({seed})" in (tmp_path / "out" / f"seed-{seed}" / AIRBENCH.name / AIRBENCH.file).read_text()
    assert "| airbench94_muon | airbench94_muon.py | float32 | 2 | 50.00% ± 0.00% |" in done.output
    other = run_race(*args, "--seed=1", "--only=this project")  # a seed is no condition
    assert "this project, seed 1: done before" in other.output


@pytest.mark.parametrize("peer", [AIRBENCH, FAST_SIMPLE])
def test_another_version_of_a_script_is_refused(
    peer: PeerScript, airbench: Path, fast_simple: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkout = airbench if peer is AIRBENCH else fast_simple
    check(peer, checkout)
    check(peer, checkout / peer.file)
    original = (checkout / peer.file).read_text()
    for old, _ in peer.changes(Length(steps=1, steps_per_epoch=1), "bf16", 0):
        for text in (original.replace(old, ""), original.replace(old, old + old)):
            (checkout / peer.file).write_text(text)
            with pytest.raises(InputError, match="is not in it exactly once"):
                check(peer, checkout)
    (checkout / peer.file).unlink()
    with pytest.raises(InputError, match="cannot be read"):
        check(peer, checkout)


def test_schedules_are_stretched(airbench: Path, fast_simple: Path, tmp_path: Path) -> None:
    length = Length(steps=250, steps_per_epoch=97)
    adapted = prepare(FAST_SIMPLE, fast_simple, tmp_path / "a", length, precision="bf16", seed=7).read_text()
    assert "epochs = 3\n" in adapted
    assert "2e-3, 50)" in adapted
    assert "2e-4, 150)" in adapted
    assert "range(7, 8)" in adapted
    assert (tmp_path / "a" / "model.py").read_text() == FAKE_MODEL
    adapted = prepare(AIRBENCH, airbench, tmp_path / "b", length, precision="bf16", seed=7).read_text()
    assert "total = 250\n" in adapted
    assert "torch.manual_seed(7)" in adapted
    assert "G.bfloat16()" in adapted
    assert "cuda" not in adapted
    assert "enabled=True" in adapted


def test_seconds_per_step_are_without_the_first_epoch() -> None:
    progress = [scripts.Progress(steps, seconds, 0.1, None) for steps, seconds in ((2, 9.0), (4, 10.0), (6, 12.0))]
    assert scripts.seconds_per_step(progress) == 0.75


def test_evaluation_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("benchmarks.race.trainers.time.perf_counter", lambda: now)

    def evaluate(model: nn.Module) -> float:
        nonlocal now
        now += 100
        return 0.5

    clock = TrainingClock({2: evaluate, 3: evaluate})
    clock.start()
    for _ in range(3):
        now += 2
        clock.step_ended(nn.Identity())
    assert clock.seconds == [0, 2, 4, 6]
    assert clock.points == [(4, 0.5), (6, 0.5)]
    assert clock.seconds_per_step() == 2


def test_batches_are_crops_of_all_images_in_turn() -> None:
    train = load_dataset(Settings(**TINY | {"val_size": 0}), seed=0).train
    batches = list(AugmentedBatches(train, steps=9, seed=1, batch_size=100))
    assert [tuple(batch["images"].shape) for batch in batches] == [(100, 3, 32, 32)] * 9
    counts = torch.bincount(torch.cat([batch["labels"] for batch in batches[:4]]))
    assert counts.tolist() == np.bincount(train.labels).tolist()  # each image once in an epoch
    loader = AugmentedBatches(train, steps=1, seed=1, batch_size=1)
    image = torch.from_numpy(train.images[0])
    padded = torch.nn.functional.pad(image, (0, 0, 4, 4, 4, 4))
    crops = [padded[row : row + 32, column : column + 32] for row in range(9) for column in range(9)]
    expected = {crop.contiguous().numpy().tobytes() for view in crops for crop in (view, view.flip(1))}
    found = {loader._crops(torch.tensor([0]))[0].permute(1, 2, 0).contiguous().numpy().tobytes() for _ in range(40)}
    assert len(found) > 20
    assert found <= expected


def tiny_model() -> nn.Module:
    """A convolution and a linear layer."""
    return nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10))


def require_installed(name: str) -> None:
    """Skip the test if a Trainer's package is not installed."""
    if find_spec(name) is None:
        pytest.skip(f"{name} is not installed")


@pytest.mark.parametrize("name", ["lightning", "transformers"])
def test_a_trainer_takes_the_steps_of_a_plain_loop(name: str) -> None:
    require_installed(name)
    train = load_dataset(Settings(**TINY | {"val_size": 0}), seed=0).train
    trained, by_hand = tiny_model(), tiny_model()
    by_hand.load_state_dict(trained.state_dict())
    ended: list[nn.Module] = []

    def task(model: nn.Module) -> Task:
        loader = AugmentedBatches(train, steps=12, seed=3, batch_size=20)
        return Task(model=model, loader=loader, precision="no", on_step_end=ended.append)

    started = []
    TRAINERS[name](task(trained), lambda: started.append(len(ended)))
    optimizer, scheduler = task(by_hand).optimizer()
    for batch in task(by_hand).loader:
        F.cross_entropy(by_hand(batch["images"]), batch["labels"]).backward()
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
    assert started == [0]
    assert ended == [trained] * 12
    torch.testing.assert_close(trained.state_dict(), by_hand.state_dict())


@pytest.mark.parametrize("name", ["lightning", "transformers"])
def test_a_trainer_fills_the_budget(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps that take 0.1 seconds of a clock of their own."""
    require_installed(name)
    dataset = load_dataset(Settings(**TINY | {"val_size": 0}), seed=0)
    ticks = itertools.count()
    monkeypatch.setattr(
        trainers, "time", SimpleNamespace(perf_counter=lambda: next(ticks) / 10)
    )  # is asked once in a step, and once after an evaluation
    result = TrainerRace(
        name=name,
        budget=20.01,
        precision="no",
        seed=0,
        train=dataset.train,
        test=dataset.test,
        make_model=tiny_model,
        batch_size=20,
    ).run()
    assert (result.num_images, result.epochs) == (200 * 20, 10)
    assert result.seconds == pytest.approx(20)
    assert [round(10 * seconds) for seconds, _ in result.points] == [33, 67, 100, 133, 167, 200]
    assert result.points[-1][1] == result.plain


def test_a_result_is_read_back_and_the_table_names_the_first(tmp_path: Path) -> None:
    def result(**values: Any) -> RaceResult:
        defaults = {"trained": "x", "precision": "bf16", "tta": None, "seconds": 10.0, "num_images": 50, "epochs": 1.0}
        return RaceResult(**defaults | {"points": [(10.0, 0.8)]} | values)

    file = RaceFile(tmp_path / "race.json", {"budget": 9.0})
    file.add("a", 0, result(plain=0.8, tta=0.95))
    file.add("b", 0, result(plain=0.9))
    assert RaceFile(tmp_path / "race.json", {"budget": 9.0}).results == file.results
    with pytest.raises(SettingsError, match="with budget 9"):
        RaceFile(tmp_path / "race.json", {"budget": 8.0})
    file.add("late", 0, result(plain=0.99, seconds=10.5))
    text = table(file.results, {"c": "not given"}, budget=9.5)
    assert "| late | x | bf16 autocast | 1 | 99.00% | - | 10.5 (too long) | 5 | 1.00 |" in text
    assert "| a | x | bf16 autocast | 1 | 80.00% | 95.00% | 10.0 | 5 | 1.00 |" in text
    assert "first plain: b, 10.00 points before a" in text
    assert "first with TTA where a contestant has it: a, 5.00 points before b" in text
    assert "interval" not in text
    assert "| c | not given | | | | | | | |" in text
    file.add("a", 1, result(plain=0.82, tta=0.93, seconds=8.0, trained="y"))
    file.add("b", 1, result(plain=0.91))
    text = table(file.results, {}, budget=9.5)
    assert "| a | x, y | bf16 autocast | 2 | 81.00% ± 1.41% | 94.00% ± 1.41% | 9.0 | 6 | 1.00 |" in text
    # Welch's interval of 90, 91 and 80, 82: 1.47 degrees of freedom.
    assert "first plain: b, 9.50 points before a (95% interval of the difference +2.58 to +16.42)" in text
    equal = {name: dict.fromkeys((0, 1), file.results[name][0]) for name in ("a", "b")}
    assert table(equal, {}, budget=9.5).endswith("5.00 points before b")  # no spread, no interval
    file.add("a", 2, result(plain=0.8, tta=0.95, seconds=10.6))  # one that took too long
    assert "before" not in table(file.results, {}, budget=9.5)
