"""The benchmarks of accuracy, speed and techniques at their smallest: they continue, and their tables are correct."""

import json
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from subprocess import Popen
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from training_commands import REPOSITORY, TINY, flags
from trainings import assert_same_bits

from benchmarks import accuracy, cpu, peer, speed94, techniques, trainings
from benchmarks.peer import prepare, read_peer
from benchmarks.speed94 import Comparison, run_blocks
from benchmarks.timed import TimedRun
from cifar10_accel.commands.repeat import SeedRun
from cifar10_accel.data.dataset import Dataset
from cifar10_accel.data.datasets import load_dataset
from cifar10_accel.errors import InputError, SettingsError
from cifar10_accel.runs.metrics_jsonl import read_metrics
from cifar10_accel.runs.run_folder import RunFolder
from cifar10_accel.settings import Settings
from cifar10_accel.train import fit

ROWS = """
----------------------------------------------------------------
|  run     |  epoch  |  train_acc  |  val_acc  |  tta_val_acc  |  time_seconds  |
|  warmup  |      0  |     0.1010  |   0.1002  |               |        9.1000  |
|          |   eval  |     0.1010  |   0.1002  |       0.1003  |        9.9000  |
|       0  |      0  |     0.5000  |   0.6000  |               |        0.3000  |
|          |      1  |     0.9000  |   0.9300  |               |        2.0000  |
|          |   eval  |     0.9000  |   0.9300  |       0.9410  |        2.2500  |
----------------------------------------------------------------
|       1  |      0  |     0.5000  |   0.6000  |               |        0.3100  |
"""
# The part of a peer's script that matters to this benchmark: it prints such rows for the number of runs in it.
SCRIPT = f"""
from pathlib import Path
assert Path("cifar10/train.pt").exists()
print({ROWS.split("|       0")[0]!r})
for run in range(200):
    print(f"|  {{run}}  |  7  |  0.9  |  0.93  |    |  2.0  |")
    print(f"|      |  eval  |  0.9  |  0.93  |  0.94{{run}}  |  2.5  |")
"""


@pytest.fixture(autouse=True)
def _can_start_benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    for name in ("CUDA_VISIBLE_DEVICES", "KINETO_LOG_LEVEL"):
        monkeypatch.setenv(name, "")


def output_of(command: Any, *args: str) -> str:
    """Return the output of a benchmark."""
    done = CliRunner().invoke(command, args, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_accuracy_continues_after_its_time_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted in the second of two runs of a process; then only the missing one is made, with the same bits."""
    given = TINY | {"epochs": 8, "eval_every": 8, "checkpoint_every": 8, "tta": "flip"}
    args = ["--seeds=2", "--bar=1", *flags(given)]
    original_wait = trainings.wait

    def wait_for_second_run(process: "Popen[str]", deadline: float, **_: Any) -> bool:
        while process.poll() is None and time.monotonic() < deadline:
            lines = [read_metrics(path) for path in tmp_path.rglob("seed-1/metrics.jsonl")]
            if lines and lines[0] and lines[0][-1]["step"] >= 2:
                break
            time.sleep(0.02)
        return False

    monkeypatch.setattr(trainings, "wait", wait_for_second_run)
    first = output_of(accuracy.main, *args)
    assert "2 of 2 runs to train" in first
    assert "missing: 1 of 2 runs; the same command continues" in first
    assert "SYNTHETIC (not CIFAR-10), hold-out of 40 training images" in first
    (group,) = (tmp_path / "runs" / "repeat").iterdir()
    made = (group / "seed-0" / "summary.json").stat().st_mtime_ns

    monkeypatch.setattr(trainings, "wait", original_wait)
    second = output_of(accuracy.main, *args)
    assert "1 of 2 runs to train" in second
    assert "missing" not in second
    assert made == (group / "seed-0" / "summary.json").stat().st_mtime_ns
    assert "resuming from" in (group / "worker-0.log").read_text()
    values = [json.loads((group / f"seed-{seed}" / "summary.json").read_text())["val/accuracy_tta"] for seed in (0, 1)]
    assert f"| TTA (flip) | {sum(values) / 2:.2%} +- " in second
    assert "| 2 | 2 |" in second  # n, and the number of runs that reach 1%
    fit(Settings(**given, seed=1, run_dir=tmp_path / "straight"))
    assert_same_bits(tmp_path / "straight", group / "seed-1")


def test_a_run_that_diverges_does_not_hold_up_the_others(tmp_path: Path) -> None:
    flags = TINY | {"max_lr": 1e3, "epochs": 2, "run_dir": str(tmp_path / "a")}
    queue = tmp_path / "queue.json"
    queue.write_text(
        json.dumps([flags | {"logit_scale": 1e9}, TINY | {"max_steps": 1, "run_dir": str(tmp_path / "b")}])
    )
    output_of(trainings.work, str(queue))
    assert trainings.has_diverged(SeedRun(0, {}, Settings(), RunFolder(tmp_path / "a")))
    assert RunFolder(tmp_path / "b").is_finished()


def test_techniques_are_removed_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    given = TINY | {"augment": "flip", "label_smoothing": 0.1, "tta": "flip"}
    chosen = ("label smoothing", "MixUp", "Muon")
    monkeypatch.setattr(techniques, "TECHNIQUES", {name: techniques.TECHNIQUES[name] for name in chosen})
    groups = techniques.plan_groups(given, num_seeds=2)
    assert list(groups) == ["", "label smoothing", "augmentation: flip"]  # neither MixUp nor Muon
    assert groups["label smoothing"][1].settings.label_smoothing == 0
    assert groups["augmentation: flip"][0].settings.augment == ()

    def all_but_the_last(minutes: float, runs: Sequence[SeedRun], **_: Any) -> list[SeedRun]:
        plain_and_seconds = [(0.80, 10.0), (0.79, 12.0), (0.70, 5.0), (0.82, 10.0), (0.80, 12.0)]
        for run, (plain, seconds) in zip(runs, plain_and_seconds, strict=False):
            finish(run, {"val/accuracy": plain, "val/accuracy_tta": plain + 0.05, "train_seconds": seconds})
        return list(runs[5:])

    monkeypatch.setattr(techniques, "train_for", all_but_the_last)
    text = output_of(techniques.main, "--seeds=2", *flags(given))
    assert "hold-out of 40 training images, with TTA (flip)" in text
    half = 12.7062 * 0.005  # Student's t of one degree of freedom; a mean of 0.01 and 0.02
    assert f"| label smoothing | 84.50% +- 6.35% | +1.50 +- {100 * half:.2f} | 2 | 1.20x |" in text
    assert "| augmentation: flip | 75.00% | +10.00 | 1 | 0.50x |" in text
    assert "| TTA | 81.00% +- 12.71% | +5.00 +- 0.00 | 2 | 1.00x |" in text
    assert "missing: 1 of 6 runs; the same command continues" in text

    monkeypatch.setattr(techniques, "train_for", lambda minutes, runs, **_: [run for run in runs if not run.is_done()])
    few = output_of(techniques.main, "--seeds=2", "--only=augmentation: flip", *flags(given))
    assert "label smoothing" not in few
    assert "| augmentation: flip | 75.00% | +10.00 | 1 | 0.50x |" in few
    refused = CliRunner().invoke(techniques.main, ["--only=Muon", *flags(given)])
    assert refused.exit_code == 2
    assert "the recipe has no 'Muon' to remove; it has 'label smoothing', 'augmentation: flip'" in refused.stderr


def finish(run: SeedRun, summary: dict[str, Any]) -> None:
    """Write the files of a finished training."""
    run.folder.path.mkdir(parents=True)
    (run.folder.path / "settings.yaml").write_text(run.settings.to_yaml())
    run.folder.write_json("status.json", {"state": "finished"})
    run.folder.write_json("summary.json", summary | {"dataset": "synthetic"})


def test_the_peers_rows_are_read() -> None:
    assert read_peer(ROWS) == [TimedRun(plain=0.93, tta=0.941, seconds=2.25, train_seconds=2.0)]
    assert read_peer("") == read_peer("Traceback | of | a | crash | in | it") == []


def test_the_peer_is_prepared_or_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(**TINY)
    script = tmp_path / peer.SCRIPT
    with pytest.raises(InputError, match="cannot be read"):
        prepare(tmp_path, tmp_path / "peer", settings, num_runs=3)
    script.write_text("for run in range(100): pass")
    with pytest.raises(InputError, match="not in it exactly once"):
        prepare(tmp_path, tmp_path / "peer", settings, num_runs=3)
    script.write_text(SCRIPT)
    with pytest.raises(InputError, match="synthetic is not the data set"):
        prepare(script, tmp_path / "peer", settings, num_runs=3)
    name_synthetic_cifar10(monkeypatch)
    made = prepare(script, tmp_path / "peer", settings, num_runs=3)
    assert made.read_text() == SCRIPT.replace("200", "3")
    saved = torch.load(made.parent / "cifar10" / "test.pt")
    assert (saved["images"].shape, saved["images"].dtype) == ((80, 32, 32, 3), torch.uint8)
    assert (len(saved["labels"]), saved["labels"].dtype, len(saved["classes"])) == (80, torch.int64, 10)


def test_ours_and_the_peer_alternate_and_add_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Block 1 and half of block 2 exist: the rest is made, once, and the table has both sides."""
    (tmp_path / peer.SCRIPT).write_text(SCRIPT)
    name_synthetic_cifar10(monkeypatch)
    given = TINY | {"val_size": 0, "max_lr": 0.01, "tta": "flip", "epochs": 2}
    comparison = Comparison(out=tmp_path / "out", given=given, settings=Settings(**given), device="CPU")
    comparison.out.mkdir()
    run = TimedRun(plain=0.5, tta=0.95, seconds=4.0, train_seconds=3.0)
    comparison.add("", [run, run], block=0)
    comparison.add("", [run], block=1)
    for _ in range(2):
        run_blocks(comparison, tmp_path, runs=2, minutes=9)
        assert [len(comparison.runs(block)) for block in range(4)] == [2, 2, 2, 2]
    ours = comparison.runs(2)
    assert all(0 <= run.plain <= 1 and run.tta is not None and 0 < run.train_seconds < run.seconds for run in ours)
    assert [run.tta for run in comparison.runs(1, 3)] == [0.95, 0.94, 0.94, 0.941]
    table = speed94.table(comparison)
    mean = (8 + sum(run.seconds for run in ours)) / 4
    assert f"| {mean:.3f} (sd " in table
    assert f"| {mean / ((4.0 + 3 * 2.5) / 4):.3f} |" in table
    assert len(comparison.fit_seconds()) == 1  # of block 3; block 1 was made before
    assert f"| {comparison.fit_seconds()[0]:.3f} (sd nan) | - | - |" in table
    assert "4 of 4 >= 94%" in table
    assert "2 of 4 >= 94%" in table


def test_ours_alone_where_the_peer_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed94, "run_blocks", lambda *_, **__: None)
    text = output_of(speed94.main, "--recipe=smoke", "--runs=1", "--airbench=nowhere")
    assert ("ours alone: the peer needs CUDA" in text) != torch.cuda.is_available()
    assert "missing: 2 of 2 runs" in text or torch.cuda.is_available()


def test_the_peer_is_compared_on_its_data_set_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    arguments = ["--recipe=smoke", f"--airbench={tmp_path}", f"--out={tmp_path / 'out'}"]
    refused = CliRunner().invoke(speed94.main, arguments)
    assert refused.exit_code == SettingsError.exit_code
    assert "the peer trains on cifar10" in refused.stderr
    assert not (tmp_path / "out").exists()


def test_runs_under_other_conditions_are_not_counted(tmp_path: Path) -> None:
    run = TimedRun(plain=0.5, tta=0.95, seconds=4.0, train_seconds=3.0)
    given = {"recipe": "smoke"}
    comparison = Comparison(out=tmp_path, given=given, settings=Settings(**given), device="CPU")
    comparison.add("", [run], block=0)
    assert len(comparison.runs(0)) == 1
    assert not replace(comparison, given=given | {"cuda_graph": False}).runs(0)
    assert not replace(comparison, device="a GPU").runs(0)


def test_the_cpu_loop_is_compared_with_matrix_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "MATRIX", 128)
    text = output_of(cpu.main, "--seconds=0.1", *flags(TINY | {"synthetic_size": 120}))
    settings = Settings(**TINY)
    assert "| images/s of the loop | " in text
    shares = [float(line.split("|")[2].strip(" %")) for line in text.split("| share of a step")[1].splitlines()[2:]]
    assert math.isclose(sum(shares), 100, abs_tol=1)
    assert "| convolutions | " in text
    # The last layer alone: 3 products (forward, two backward) of 32 features and 10 classes, per image.
    flops = cpu.count_flops(settings)
    assert flops > settings.batch_size * 3 * 2 * 32 * 10
    assert flops == cpu.count_flops(settings)


def test_the_cpu_loop_is_compared_with_another_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "PAIRS", 1)
    args = [f"--against={REPOSITORY}", "--seconds=0.1", "--precision=no", *flags(TINY | {"synthetic_size": 120})]
    row = output_of(cpu.main, *args).splitlines()[-1]
    name, *cells = [cell.strip() for cell in row.strip("|").split("|")]
    old, old_share, new, new_share, ratio = [float(cell.replace(",", "").rstrip("%")) for cell in cells]
    assert name == "float32"
    assert new / old == pytest.approx(ratio, abs=0.02)
    assert 0 <= old_share <= 100
    assert 0 <= new_share <= 100


def name_synthetic_cifar10(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the peer synthetic images under the name cifar10."""

    def load_as_cifar10(settings: Settings, *, seed: int) -> Dataset:
        synthetic = load_dataset(settings, seed=seed)
        return Dataset(name="cifar10", train=synthetic.train, test=synthetic.test, class_names=synthetic.class_names)

    monkeypatch.setattr(peer, "load_dataset", load_as_cifar10)
