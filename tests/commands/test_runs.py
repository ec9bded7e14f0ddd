"""The command `runs`: filters, order, table, JSON and CSV."""

import csv
import io
import json
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result
from listed_runs import make_run
from rich.console import Console
from training_commands import run_python

from cifar10_accel.cli import main
from cifar10_accel.commands.runs import output, query
from cifar10_accel.errors import SettingsError
from cifar10_accel.runs.listing import list_runs


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four runs: two finished with TTA, one with a hold-out only, one that has just begun."""
    runs = tmp_path / "runs"
    make_run(runs / "repeat/cpu-45b379/seed-2", test=0.9, tta=0.91, seed=2, age=40, max_lr=0.2)
    make_run(runs / "repeat/cpu-45b379/seed-10", test=0.8, tta=0.81, seed=10, age=30, max_lr=0.4)
    make_run(runs / "tuned [bold]", val=0.85, seed=3, age=20, max_steps=7, max_lr=0.1)
    make_run(runs / "begun", state="running", seed=0, age=10, nesterov=False, max_lr=0.05)
    return runs


def invoke(*args: str | Path) -> Result:
    return CliRunner().invoke(main, ["runs", *map(str, args)])


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ([], "begun tuned seed-10 seed-2"),
        (["accuracy>0.8"], "tuned seed-2"),
        (["accuracy >= 80%"], "tuned seed-10 seed-2"),
        (["accuracy<0.85"], "seed-10"),
        (["accuracy<=85%"], "tuned seed-10"),
        (["accuracy=0.9"], "seed-2"),
        (["accuracy!=0.9"], "begun tuned seed-10"),
        (["tta>0"], "seed-10 seed-2"),
        (["val>0.5"], "tuned"),
        (["recipe=smoke", "seed>=3"], "tuned seed-10"),
        (["recipe=cpu"], ""),
        (["name=*seed*"], "seed-10 seed-2"),
        (["name=tuned [bold]"], "tuned"),
        (["state!=finished"], "begun"),
        (["max-lr==0.4"], "seed-10"),
        (["max_lr<4e-1", "dataset=synth*", "max_lr>0.1"], "seed-2"),
        (["max_steps=none"], "begun seed-10 seed-2"),
        (["nesterov=false"], "begun"),
        (["date>2020-01-01"], "begun tuned seed-10 seed-2"),
        (["date<2020"], ""),
    ],
)
def test_filters(filters: list[str], expected: str, folder: Path) -> None:
    found = query.select(list_runs(folder).runs, filters=filters, order=())
    assert " ".join(run.name.split("/")[-1].split(" ")[0] for run in found) == expected


@pytest.mark.parametrize(
    ("condition", "accepted"),
    [
        ("date=2026-11-05", True),
        ("date=2026-11", True),
        ("date!=2026-11-05", False),
        ("date>2026-11-05", False),
        ("date>=2026-11-05", True),
        ("date<=2026-11-05", True),
        ("date<2026-11-05", False),
        ("date>2026-11-04", True),
        ("date>2026-10", True),
        ("date<=2026-11-05 10:00", True),
        ("date>2026-11-05 10:00", False),
        ("date=2026-1?-*", True),
    ],
)
def test_a_shortened_date_is_all_of_that_day_or_month(condition: str, accepted: bool) -> None:
    begun = datetime(2026, 11, 5, 10, 0, 30)
    run = SimpleNamespace(value=lambda name: begun)
    assert query.Filter.parse(condition).accepts(run) is accepted  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [3500, 6900, 9400, 9401, 9456, 10_000])
@pytest.mark.parametrize("operator", ["=", ">=", "<="])
def test_a_percentage_is_the_accuracy_that_is_shown_so(operator: str, count: int, tmp_path: Path) -> None:
    make_run(tmp_path / "run", test=count / 10_000)
    assert query.select(list_runs(tmp_path).runs, filters=[f"accuracy{operator}{count / 100}%"], order=())


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        (["date"], "seed-2 seed-10 tuned begun"),
        (["-date"], "begun tuned seed-10 seed-2"),
        (["accuracy"], "seed-10 tuned seed-2 begun"),
        (["-accuracy"], "seed-2 tuned seed-10 begun"),
        (["name"], "begun seed-2 seed-10 tuned"),
        (["state", "-seed"], "seed-10 tuned seed-2 begun"),
        (["-max_lr"], "seed-10 seed-2 tuned begun"),
        (["max_steps", "name"], "tuned begun seed-2 seed-10"),
    ],
)
def test_order(order: list[str], expected: str, folder: Path) -> None:
    """Missing values are last in either direction; equal ones are in the order of their names."""
    found = query.select(list_runs(folder).runs, filters=(), order=order)
    names = " ".join(run.name.split("/")[-1].split(" ")[0] for run in found)
    assert names == expected


@pytest.mark.parametrize(
    ("option", "text", "hint"),
    [
        ("--filter", "acuracy>0.9", "did you mean 'accuracy'"),
        ("--filter", "accuracy>high", "give a number"),
        ("--filter", "max_lr>", "give a number"),
        ("--filter", "accuracy", "no condition"),
        ("--filter", "=0.9", "no condition"),
        ("--filter", "accuracy ~ 0.9", "no condition"),
        ("--sort", "max-lrr", "did you mean 'max_lr'"),
        ("--sort", "--accuracy", "did you mean 'accuracy'"),
        ("--sort", "zzzzz", "give one of name, recipe"),
    ],
)
def test_wrong_conditions_are_one_line(option: str, text: str, hint: str, folder: Path) -> None:
    done = invoke(folder, f"{option}={text}")
    assert done.exit_code == SettingsError.exit_code
    assert len(done.stderr.splitlines()) == 1
    assert hint in done.stderr


def printed(folder: Path, width: int, monkeypatch: pytest.MonkeyPatch, **terminal: Any) -> str:
    text = io.StringIO()
    options: dict[str, Any] = {"force_terminal": True, "color_system": None, "markup": False} | terminal
    monkeypatch.setattr(output, "LiteralConsole", lambda: Console(file=text, width=width, **options))
    output.print_table(query.select(list_runs(folder).runs, filters=(), order=["name"]), folder=folder)
    return text.getvalue()


def test_the_table_fits_a_terminal_of_80_columns(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(folder / ("long-" * 30) / "another", test=0.123, recipe="cpu94", age=10**8, seed=123456)
    make_run(folder / "broken", state="failed", recipe="resnet9_original")
    make_run(folder / "stopped", state="preempted")
    text = printed(folder, 80, monkeypatch)
    assert max(map(len, text.splitlines())) <= 79
    joined = "".join(line.split(" ")[0] for line in text.splitlines())
    for whole in ("long-" * 30, "repeat/cpu-45b379/seed-10", "resnet9_original"[:7]):
        assert whole in joined or whole in text
    for cell in ("90.00%", "91.00%", "85.00%*", "failed", "running", "preempted", "123456"):
        assert cell in text, cell
    assert "…" not in text


def test_what_all_runs_share_is_said_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wide, narrow = printed(folder, 200, monkeypatch), printed(folder, 80, monkeypatch)
    assert wide.count("synthetic") == 4
    assert narrow.count("synthetic") == 1
    assert "all: recipe smoke, data set synthetic" in " ".join(narrow.split())
    assert "hold-out" in wide
    assert "hold-out" in narrow


def test_columns_without_values_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(tmp_path / "run", test=0.5)
    text = printed(tmp_path, 200, monkeypatch)
    assert "TTA" not in text
    assert "hold-out" not in text


def test_each_run_is_one_line_where_a_program_reads_the_table(folder: Path) -> None:
    done = invoke(folder, "--sort=name")
    assert done.exit_code == 0
    names = [run.name for run in query.select(list_runs(folder).runs, filters=(), order=["name"])]
    assert [line[: len(name)] for line, name in zip(done.stdout.splitlines()[3:], names, strict=False)] == names


def test_json_and_csv_have_the_same_values(folder: Path) -> None:
    for name in ("broken", "line\nbreak"):
        (folder / name).mkdir()
        (folder / name / "status.json").write_text("{")
    runs = json.loads(invoke(folder, "--json").stdout)
    rows = list(csv.DictReader(io.StringIO(invoke(folder, "--csv").stdout)))
    assert [{name: "" if value is None else str(value) for name, value in run.items()} for run in runs] == rows
    assert len(rows) == 4
    best = next(run for run in runs if run["name"].endswith("seed-2"))
    expected = {"recipe": "smoke", "dataset": "synthetic", "seed": 2, "split": "test", "accuracy": 0.9, "tta": 0.91}
    assert expected.items() <= best.items()
    assert Path(best["path"]) == folder / best["name"]
    for form in ("--json", "--csv", "--sort=name"):
        line = invoke(folder, form).stderr
        assert line.startswith("not listed: 2 damaged folders, the first: ")
        assert line.count("\n") == 1


def test_nothing_to_list(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "no runs there yet" in invoke(tmp_path / "empty").stdout
    assert json.loads(invoke(tmp_path / "empty", "--json").stdout) == []
    assert "none of 4 runs" in invoke(folder, "--filter=seed>99").stdout
    missing = invoke(tmp_path / "missing")
    assert (missing.exit_code, len(missing.stderr.splitlines())) == (3, 1)


def test_a_page_that_cannot_be_written_is_one_line(folder: Path) -> None:
    (folder / "index.html").mkdir()
    done = invoke(folder, "--html")
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    (folder / "index.html").rmdir()
    assert "index.html" in invoke(folder, "--html").stdout


def test_listing_imports_no_torch(folder: Path, tmp_path: Path) -> None:
    """Loading torch would take longer than listing a thousand runs."""
    program = (
        "import sys\nfrom cifar10_accel.cli import main\n"
        "try: main(sys.argv[1:])\nexcept SystemExit: pass\n"
        "slow = ('torch', 'numpy', 'accelerate', 'matplotlib', 'scipy')\n"
        "print([name for name in slow if name in sys.modules])"
    )
    for form in ("--sort=-accuracy", "--html"):
        done = run_python("-c", program, "runs", str(folder), form, cwd=tmp_path)
        assert done.stdout.splitlines()[-1] == "[]", done.stdout + done.stderr
