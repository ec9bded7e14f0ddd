"""repeat: seeds are trained once; their statistics, and the verdict on the difference of two recipes."""

import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from training_commands import TINY, flags, run_python

from cifar10_accel.commands.repeat import plan, repeat, summary_lines
from cifar10_accel.commands.statistics import SampleStats, verdict
from cifar10_accel.errors import SettingsError
from cifar10_accel.runs.run_folder import RunFolder


def test_statistics_equal_those_by_hand() -> None:
    found = SampleStats.of([0.90, 0.92, 0.94, 0.96])  # mean 0.93; squares 9, 1, 1, 9 (1e-4), their sum / 3
    assert found.mean == pytest.approx(0.93)
    assert found.sd == pytest.approx(math.sqrt(20e-4 / 3))
    assert found.standard_error == pytest.approx(math.sqrt(20e-4 / 12))
    assert found.high - found.mean == pytest.approx(3.182446 * math.sqrt(20e-4 / 12), rel=1e-6)  # t(0.975, 3)
    assert (found.minimum, found.maximum, found.num) == (0.90, 0.96, 4)
    assert "mean 93.00%, sd 2.58%, standard error 1.29%, min 90.00%, max 96.00% (4 seeds)" in found.summary()
    one = SampleStats.of([0.9])
    assert math.isnan(one.sd)
    assert one.summary() == "mean 90.00%, min 90.00%, max 90.00% (1 seed)"


def test_the_verdict_without_enough_seeds() -> None:
    assert "one seed: too few" in verdict(SampleStats.of([0.01]))
    # sd 0.02 around 0.01: (t(0.975, n - 1) + t(0.8, n - 1)) * 2 / sqrt(n) < 1 first holds at n = 34: 2.887 * 2 / 5.831
    text = verdict(SampleStats.of([-0.01, 0.01, 0.03]))
    assert "+1.00 points, 95% interval -3.97 to +5.97: too few seeds" in text  # 4.302653 * 0.02 / sqrt(3)
    assert "about 34 would show it in four of five cases" in text
    assert "more than chance" in verdict(SampleStats.of([0.010, 0.011, 0.012, 0.011, 0.010]))
    assert "only if accuracies are normally" in verdict(SampleStats.of([0.010, 0.011]))
    assert "would show" not in verdict(SampleStats.of([-0.01, 0.01]))  # no difference at all: no number helps


def test_seeds_are_trained_once_and_compared(tmp_path: Path) -> None:
    shorter = {"epochs": 2, "max_steps": 3}
    (tmp_path / "other.yaml").write_text("dataset: synthetic\nmax_lr: 0.01\n")
    tiny = {name: value for name, value in TINY.items() if name != "recipe"} | shorter
    args = ["-m", "cifar10_accel", "repeat", "--seeds=2", "--workers=2", *flags(tiny), "--recipe=smoke"]
    done = run_python(*args, "--against=other.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "4 of 4 runs to train" in done.stdout
    assert "difference" in done.stdout
    assert "val/accuracy of SYNTHETIC images" in done.stdout
    (written,) = (tmp_path / "runs" / "repeat").rglob("repeat.json")
    outcome = json.loads(written.read_text())
    values = list(outcome["recipe"]["values"].values())
    summaries = [RunFolder(written.parent / f"seed-{seed}").read_json("summary.json") for seed in (0, 1)]
    assert values == [summary["val/accuracy"] for summary in summaries]
    assert outcome["recipe"]["spread"]["mean"] == pytest.approx(sum(values) / 2)
    assert outcome["difference"]["num"] == 2
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("summary.json")}
    assert len(before) == 4
    _, runs = plan(tiny | {"recipe": "smoke"}, num_seeds=3)
    assert [run.is_done() for run in runs] == [True, True, False]
    for changes in ({"max_lr": 0.3}, {"max_steps": None}):  # as when the name is given and the settings are others
        assert not replace(runs[0], settings=runs[0].settings.model_copy(update=changes)).is_done()
    again = run_python(*args, cwd=tmp_path)
    assert (again.returncode, "0 of 2 runs to train" in again.stdout) == (0, True), again.stderr
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("summary.json")}


def test_what_cannot_be_compared_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(**changes: object) -> None:
        repeat(TINY | changes, num_seeds=2, against="smoke", num_workers=1, echo=print)

    with pytest.raises(SettingsError, match="'smoke' resolves to the same settings"):
        run()
    (tmp_path / "other.yaml").write_text("val_size: 20\n")
    without_size = {name: value for name, value in TINY.items() if name != "val_size"} | {"recipe": "other.yaml"}
    with pytest.raises(SettingsError, match="val_size: 20 and 0 differ"):
        repeat(without_size, num_seeds=2, against="smoke", num_workers=1, echo=print)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SettingsError, match="starts its own processes"):
        run()
    assert not (tmp_path / "runs").exists()


def test_image_folders_are_not_mixed(tmp_path: Path) -> None:
    """A run on images of another folder is not done, and two recipes are compared on the images of one folder."""
    settings = {name: value for name, value in TINY.items() if name != "synthetic_size"} | {"dataset": "folder"}
    _, (run,) = plan(settings | {"data_dir": tmp_path / "a"}, num_seeds=1)
    run.folder.open(run.settings)
    with run.folder.record_status(is_main=True):
        pass
    _, (same,) = plan(settings | {"data_dir": Path("a")}, num_seeds=1)
    _, (other,) = plan(settings | {"data_dir": tmp_path / "b"}, num_seeds=1)
    assert (run.is_done(), same.is_done(), other.is_done()) == (True, True, False)
    (tmp_path / "other.yaml").write_text("dataset: folder\ndata_dir: b\nmax_lr: 0.01\n")
    del settings["val_size"], settings["dataset"]
    (tmp_path / "first.yaml").write_text("dataset: folder\ndata_dir: a\nmax_lr: 0.02\n")
    with pytest.raises(SettingsError, match="data_dir: a and b differ"):
        repeat(settings | {"recipe": "first.yaml"}, num_seeds=1, against="other.yaml", num_workers=1, echo=print)


def write_folder(folder: Path, *, seed: int) -> None:
    """Two classes of random images, for training, hold-out and test."""
    random = np.random.default_rng(seed)
    for split in ("train", "val", "test"):
        for name in ("cat", "dog"):
            (folder / split / name).mkdir(parents=True, exist_ok=True)
            for number in range(20):
                pixels = random.integers(0, 255, (16, 16, 3), np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{number}.png")


def run_folder_of(runs: Path) -> Path:
    """Return the only finished run there."""
    (summary,) = runs.rglob("summary.json")
    return summary.parent


def test_a_setting_that_the_optimizer_does_not_take_is_another_run(tmp_path: Path) -> None:
    settings = TINY | {"run_name": "x", "optimizer": "torch.optim:RMSprop"}
    _, (run,) = plan(settings, num_seeds=1)
    run.folder.open(run.settings)
    with run.folder.record_status(is_main=True):
        pass
    assert run.is_done()
    assert not plan(settings | {"momentum": 0.8}, num_seeds=1)[1][0].is_done()


def test_a_folder_with_a_hold_out_is_compared_by_it_and_may_not_change(tmp_path: Path) -> None:
    changes = {"dataset": "folder", "data_dir": tmp_path / "images", "image_size": 16, "max_steps": 2, "batch_size": 20}
    tiny = {name: value for name, value in TINY.items() if name not in ("synthetic_size", "val_size")} | changes
    write_folder(tmp_path / "images", seed=0)
    repeat_it = partial(repeat, tiny, against=None, num_workers=1, echo=print)
    result = repeat_it(num_seeds=1)
    summary = RunFolder(run_folder_of(tmp_path / "runs")).read_json("summary.json")
    assert (result.metric, result.recipe.values) == ("val/accuracy", {0: summary["val/accuracy"]})
    assert all("--val-size" not in line for line in summary_lines(result))
    environment = run_folder_of(tmp_path / "runs") / "environment.json"
    values = json.loads(environment.read_text())
    del values["test_images"]  # as in a run of an earlier version
    environment.write_text(json.dumps(values))
    assert repeat_it(num_seeds=2).recipe.spread.num == 2
    write_folder(tmp_path / "images", seed=1)
    with pytest.raises(SettingsError, match=r"seed-2 was trained on other images than .*; give another --run-name"):
        repeat_it(num_seeds=3)


def test_recipes_under_one_run_name_have_folders_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "other.yaml").write_text("dataset: synthetic\nmax_lr: 0.01\n")
    named = TINY | {"run_name": "mine"}
    first, (run,) = plan(named, num_seeds=1)
    second, (other,) = plan(named, num_seeds=1, against="other.yaml")
    assert (first, second) == ("mine", "mine-other")
    assert [each.folder.path.parts[-2:] for each in (run, other)] == [("mine", "seed-0"), ("mine-other", "seed-0")]
    with pytest.raises(SettingsError, match="'smoke' resolves to the same settings"):
        repeat(named, num_seeds=1, against="smoke", num_workers=1, echo=print)


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match=r"^run_dir: file/\S+ cannot be written \(.+\); give another --run-dir$"):
        repeat(TINY | {"run_dir": Path("file")}, num_seeds=1, against=None, num_workers=1, echo=print)
