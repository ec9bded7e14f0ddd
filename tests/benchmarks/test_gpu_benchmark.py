"""The benchmark for a GPU at its smallest, on a CPU: every piece runs, continues, and reports what fails."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from training_commands import TINY, flags, run_python

from benchmarks import timed
from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import check_functions, check_list, checks, profiling, seeds
from benchmarks.gpu.check_list import Check, list_checks
from benchmarks.gpu.session import Session, noise, read_json
from benchmarks.timed import TimedRun, timed_run
from cifar10_accel.errors import Preempted, SettingsError, UserError
from cifar10_accel.recipes import recipe_names
from cifar10_accel.settings import Settings
from cifar10_accel.training import cuda_graphs, state


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Session:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    return Session(out=tmp_path / "out", is_tiny=True, num_jobs=1, deadline=time.time() + 300)


@pytest.mark.long
def test_all_pieces_run_on_a_cpu_and_continue(tmp_path: Path) -> None:
    arguments = ["--device=cpu", "--tiny", "--jobs=2", "--out=out"]
    done = run_python("-m", "benchmarks.gpu", "all", *arguments, cwd=tmp_path, timeout=600, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stdout + done.stderr
    sections = dict(part.split(" (", 1) for part in done.stdout.split("\n== ")[1:])
    assert list(sections) == list(gpu.PIECES)
    assert "| copy, read and written |" in sections["machine"]
    lines = sections["checks"].splitlines()
    names = [name for stage in list_checks() for name in stage]
    assert sorted(line.split()[1] for line in lines if line.startswith("PASS")) == sorted(
        name
        for name in names
        if f"skipped (needs CUDA) {name}" not in lines and f"skipped (takes too long for --tiny) {name}" not in lines
    )
    passed = sum(line.startswith("PASS") for line in lines)
    assert f"checks: {passed} of {passed} passed" in lines
    assert passed >= len(recipe_names()) + 10
    for name in profiling.PROFILED:
        assert f"\n| {name}, no | 40 |" in sections["profile"]
        assert (tmp_path / "out" / "profile" / f"{name}-no.trace.json.gz").stat().st_size > 1000
    for recipe in ("resnet9", "resnet9_plus", "accuracy96"):
        assert "| seconds of training |" in sections[f"seeds-{recipe}"]
    assert "2 runs of ours" in sections["speed94"]
    assert "skipped (needs CUDA)" in sections["augmentation"]
    assert "| this project |" in sections["loop"]
    assert "missing" not in sections["fit"]

    again = run_python("-m", "benchmarks.gpu", "checks", "seeds-resnet9", "speed94", "fit", *arguments, cwd=tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr
    assert again.stdout.count("(before)") == passed
    assert f"checks: {passed} of {passed} passed" in again.stdout
    assert "warm-up" not in again.stdout
    assert "runs to make" not in again.stdout
    table = sections["fit"].partition("\n| CPU")[2].partition("\n\n")[0]
    assert table in again.stdout


def test_a_piece_that_fails_or_has_no_time_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    made = []

    def fail(session: Session) -> None:
        raise UserError("one line")

    def crash(session: Session) -> None:
        raise ValueError("a bug")

    monkeypatch.setitem(gpu.PIECES, "machine", fail)
    monkeypatch.setitem(gpu.PIECES, "loop", crash)
    monkeypatch.setitem(gpu.PIECES, "seeds-resnet9_plus", lambda session: made.append(session))
    pieces = ["machine", "loop", "seeds-resnet9_plus"]
    done = CliRunner().invoke(gpu.main, [*pieces, f"--out={tmp_path}", "--max-lr=0.01", "--tiny"])
    assert done.exit_code == 1
    assert "error: machine: one line" in done.stderr
    assert "error: loop: a bug" in done.stderr
    assert "failed: machine, loop" in done.stdout
    assert made[0].settings("resnet9").max_lr == 0.01
    assert Session.from_json(made[0].to_json()) == made[0]
    late = CliRunner().invoke(gpu.main, ["machine", f"--out={tmp_path}", "--minutes=0.000001"])
    assert late.exit_code == 0
    assert "missing: the time is over" in late.stdout


def test_cuda_is_refused_without_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    done = CliRunner().invoke(gpu.main, ["machine", "--device=cuda", f"--out={tmp_path}"])
    assert done.exit_code == SettingsError.exit_code
    assert "error: device: there is no CUDA GPU" in done.stderr


@pytest.mark.long
def test_checks_report_failures_crashes_and_what_was_not_made(
    session: Session, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The processes of the checks are real, but these checks are not in their list, so that each of them crashes."""
    monkeypatch.setattr(checks, "list_checks", lambda: [{"no such check": Check(str)}, {"on a GPU": Check(str, True)}])
    monkeypatch.setenv("PYTHONPATH", str(Path(checks.__file__).parents[2]))
    with pytest.raises(UserError, match="1 of 1 checks have not passed"):
        checks.run_checks(session)
    out = capfd.readouterr().out
    assert "skipped (needs CUDA) on a GPU" in out
    assert "FAIL no such check" in out
    assert "its process ended, exit code 1: KeyError: 'no such check'" in out
    assert "checks: 0 of 1 passed" in out

    over = Session(out=session.out, is_tiny=True, deadline=0)
    with pytest.raises(UserError, match="1 of 1 checks have not passed"):
        checks.run_checks(over)
    assert "missing: 1 checks; the same command continues" in capfd.readouterr().out


def test_a_check_that_does_not_hold_fails_with_its_line(session: Session) -> None:
    def broken(session: Session) -> str:
        raise check_functions.CheckFailed("two  of\nthree")

    assert checks._made(session, Check(broken))["outcome"] == "FAIL"
    assert checks._made(session, Check(broken))["line"] == "CheckFailed: two of three"
    good = checks._made(session, Check(lambda session: "fine"))
    assert (good["outcome"], good["line"], good["conditions"]) == ("PASS", "fine", session.conditions)


def test_a_check_that_is_stopped_has_no_result(session: Session) -> None:
    def stopped(session: Session) -> str:
        raise Preempted(15, step=1, stop_step=2)

    with pytest.raises(Preempted):
        checks._made(session, Check(stopped))


def test_resuming_is_checked_again_after_a_failure(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """verify-resume refuses a folder that is not empty."""
    left_over = check_functions.check_dir(session, "resume-fp32") / "left over"
    left_over.mkdir(parents=True)
    commands = []
    monkeypatch.setattr(check_list, "_command", lambda *arguments: commands.append(arguments))
    list_checks()[0]["resume-fp32"].run(session)
    assert not left_over.exists()
    assert commands[0][1] == "verify-resume"


@pytest.mark.parametrize("is_launched", [True, False])
def test_equal_losses_count_only_if_a_graph_was_launched(
    is_launched: bool, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(session: Session, recipe: str, precision: str, name: str, **given: Any) -> None:
        if given["cuda_graph"] and is_launched:
            cuda_graphs._Graph(lambda batches: torch.zeros(3), []).launch([])
        folder = check_functions.check_dir(session, name)
        folder.mkdir(parents=True)
        (folder / "metrics.jsonl").write_text(json.dumps({"step": 1, "train/loss": 2.0}) + "\n")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(check_functions, "train_short", train)
    monkeypatch.setattr(cuda_graphs._Graph, "__init__", lambda self, step, batches: None)
    monkeypatch.setattr(cuda_graphs._Graph, "launch", lambda self, batches: torch.zeros(3))
    if is_launched:
        assert check_functions.same_with_graphs(session, "resnet9").startswith("1 losses")
    else:
        with pytest.raises(check_functions.CheckFailed, match="no graph was launched"):
            check_functions.same_with_graphs(session, "resnet9")


class ReplayedStep:
    """Stands in for a CUDA graph."""

    def __init__(self, step: Any, batches: Any) -> None:
        self.launch = step


def test_recording_before_the_clock_changes_no_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(**TINY | {"recipe": "speed94", "compile": False, "precision": "no", "whitening": False})
    built, build_state = [], timed.build_state

    def build(setup: Any) -> Any:
        built.append(build_state(setup))
        return built[-1]

    monkeypatch.setattr(timed, "build_state", build)
    timed_run(settings, noise(180, 50))
    monkeypatch.setattr(state, "make_cuda_graphs", lambda *arguments: cuda_graphs.CudaGraphs(arguments[-1]))
    monkeypatch.setattr(cuda_graphs, "_Graph", ReplayedStep)
    timed_run(settings, noise(180, 50))
    plain, recorded = built
    assert recorded.cuda_graphs.num_recorded == 1
    assert recorded.step == plain.step
    for name, tensor in plain.model.state_dict().items():
        assert torch.equal(tensor, recorded.model.state_dict()[name]), name


@pytest.mark.long
def test_checks_for_cuda_compute_on_a_cpu_too(session: Session) -> None:
    """Waits cannot be seen here, and pixels are equal trivially, but the code of the checks runs."""
    assert check_functions.no_waits(session, "no").startswith(f"{len(recipe_names())} recipes")
    assert check_functions.same_with_graphs(session, "resnet9") == "2 losses, largest relative difference 0.0e+00"
    assert check_functions.same_pixels(session) == f"{9 * len(recipe_names())} times 64 images, the same bits"


def test_unequal_pixels_are_found(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = check_functions.image_keys
    monkeypatch.setattr(
        check_functions, "image_keys", lambda seed, epoch, indices: keys(int(torch.rand(()) * 1e6), epoch, indices)
    )
    with pytest.raises(check_functions.CheckFailed, match="differ"):
        check_functions.same_pixels(session)


def test_losses_of_the_precisions_are_compared(session: Session) -> None:
    with pytest.raises(check_functions.CheckFailed, match="no recipe was trained in two precisions"):
        check_functions.same_losses(session)
    for precision, loss in (("fp32", 2.0), ("fp16", 2.02)):
        folder = check_functions.check_dir(session, f"smoke-{precision}")
        folder.mkdir(parents=True)
        (folder / "metrics.jsonl").write_text(json.dumps({"step": 24, "train/loss": loss}) + "\n")
    assert check_functions.same_losses(session) == "largest difference 1.0%; smoke 2.000 2.020"
    (folder / "metrics.jsonl").write_text(json.dumps({"step": 24, "train/loss": 3.0}) + "\n")
    with pytest.raises(check_functions.CheckFailed, match=r"largest difference 50\.0%"):
        check_functions.same_losses(session)


def test_seeds_that_are_there_are_not_trained_again(
    session: Session, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trained: list[tuple[int, int]] = []

    def run(settings: Settings, dataset: Any) -> TimedRun:
        trained.append((settings.seed, settings.epochs))
        accuracy = 0.9 + settings.seed / 100
        return TimedRun(plain=accuracy, tta=accuracy + 0.01, seconds=3.0, train_seconds=2.0)

    monkeypatch.setattr(seeds, "timed_run", run)
    seeds.train_seeds(session, "resnet9_plus", default_seeds=5)
    assert trained == [(0, 1), (0, 2)]  # the warm-up of one epoch, then one seed
    assert "missing" not in capsys.readouterr().out
    over = Session(out=session.out, is_tiny=True, num_seeds=3, deadline=0)
    seeds.train_seeds(over, "resnet9_plus", default_seeds=5)
    assert "missing: 2 of 3 seeds; the same command continues" in capsys.readouterr().out
    more = Session(out=session.out, is_tiny=True, num_seeds=3, deadline=session.deadline)
    seeds.train_seeds(more, "resnet9_plus", default_seeds=5)
    assert trained[2:] == [(0, 1), (1, 2), (2, 2)]
    out = capsys.readouterr().out
    assert "| accuracy, plain | 91.00% +- 2.48% | 1.00% | 90.00% | 92.00% | 3 |" in out
    assert "| accuracy, TTA (multicrop) | 92.00% +- 2.48% | 1.00% | 91.00% | 93.00% | 3 |" in out
    assert "| seconds of training | 2.000 | 0.000 | 2.000 | 2.000 | 3 |" in out


def test_no_seed_is_trained_without_time_for_the_warm_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its time would include choosing kernels and compiling."""
    monkeypatch.setattr(seeds, "timed_run", lambda *_: pytest.fail("a cold run"))
    late = Session(out=tmp_path, given={"dataset": "synthetic", "synthetic_size": "200"}, deadline=time.time() + 30)
    seeds.train_seeds(late, "resnet9", default_seeds=2)
    assert "missing: 2 of 2 seeds" in capsys.readouterr().out


def test_the_profile_adds_up(session: Session, tmp_path: Path) -> None:
    given = TINY | {"recipe": "accuracy96", "compile": False, "precision": "no"}
    row = profiling.measure(session, Settings(**given), noise(180, 50), trace=str(tmp_path / "trace.json.gz"))
    assert row["wall"] > 0
    assert row["launches"] > 100
    assert 0 < row["phases"]["of which recorder"] < row["phases"]["forward, loss, recorder"]
    assert {"data", "backward", "optimizer", "averaged weights"} < set(row["phases"])
    assert all(milliseconds > 0 for milliseconds in row["phases"].values())
    assert read_json(tmp_path / "missing.json") == {}


def test_flags_reach_every_recipe(tmp_path: Path) -> None:
    session = Session(out=tmp_path, given={"max_lr": "0.3", "width": "8"}, is_tiny=True)
    for recipe in recipe_names():
        settings = session.settings(recipe, precision="bf16")
        assert (settings.max_lr, settings.width, settings.precision, settings.epochs) == (0.3, 8, "bf16", 2)
    assert flags({"max_lr": 0.3}) == ["--max-lr=0.3"]
