"""Reading a sweep from W&B and creating a report there, against a local stand-in for its server."""

import contextlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from wandb_backend import Backend
from wandb_records import Run, Sweep
from wandb_server import answering_401, refusing, serving

from cifar10_accel.cli import main
from cifar10_accel.errors import InputError
from cifar10_accel.sweep.wandb_pull import pull

wandb = pytest.importorskip("wandb")

SWEEP = """
method: random
metric: {name: val/accuracy, goal: maximize}
parameters:
  max_lr: {distribution: log_uniform_values, min: 0.01, max: 1.0}
  width: {values: [4, 8]}
  epochs: {value: 3}
"""


@pytest.fixture(autouse=True)
def _wandb_reads_its_environment_anew(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
    monkeypatch.delenv("NETRC", raising=False)
    wandb.teardown()
    yield
    with contextlib.suppress(ConnectionError):
        wandb.teardown()


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Iterator[Backend]:
    """A server with a sweep of four trials: finished, failed, preempted and running, and a run of its own."""
    with serving() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        server.backend.sweeps["s1"] = Sweep("s1", "p", SWEEP)
        for number, (exit_code, is_preempting) in enumerate([(0, False), (4, False), (143, True), (None, False)]):
            run = server.backend.runs[f"t{number}"] = Run(f"t{number}", "p", "s1")
            run.config = {"max_lr": {"value": 0.1 * 2**number}, "width": {"value": 4}, "epochs": {"value": 3}}
            run.history = [{"epoch": 0.5, "lr": 0.1}] + [{"epoch": e, "val/accuracy": e / 10} for e in (1, 2)]
            run.summary = {"val/accuracy": 0.25, "_runtime": 12.5} if exit_code == 0 else {}
            run.exit_code, run.is_preempting = exit_code, is_preempting
        server.backend.runs["mine"] = Run("mine", "p")
        yield server.backend


def test_a_sweep_comes_back_as_trials(backend: Backend) -> None:
    view = pull("me/p/s1")
    assert (view.title, view.metric, view.goal) == ("me/p/s1", "val/accuracy", "maximize")
    trials = view.trials
    assert [trial.state for trial in trials] == ["finished", "failed", "stopped", "running"]
    assert [trial.number for trial in trials] == [0, 1, 2, 3]
    first, second = trials[:2]
    assert first.parameters == {"max_lr": 0.1, "width": 4}  # searched parameters only, not fixed ones
    assert first.curve == ((1.0, 0.1), (2.0, 0.2))
    assert (first.value, first.seconds) == (0.25, 12.5)
    assert first.where == f"{backend.url}/me/p/runs/t0"
    assert (second.value, second.reason) == (0.2, "failed in W&B")
    assert backend.unknown == []


def test_parameters_and_values_of_any_kind_are_shown(backend: Backend, tmp_path: Path) -> None:
    """Those of a sweep of another program, too."""
    backend.sweeps["s1"] = Sweep("s1", "p", SWEEP + "  augment: {values: [[flip], [crop, flip]]}\n")
    given: list[Any] = [["flip"], ["crop", "flip"], {"a": [1]}, math.nan]
    for run, augment in zip(list(backend.runs.values()), given, strict=False):
        run.config["augment"] = {"value": augment}
    backend.runs["t0"].summary["val/accuracy"] = "NaN"
    backend.runs["t1"].history.append({"epoch": 3, "val/accuracy": "NaN"})
    trials = pull("me/p/s1").trials
    assert [trial.parameters["augment"] for trial in trials][:3] == ["flip", "crop,flip", '{"a": [1]}']
    assert str(trials[3].parameters["augment"]).lower() == "nan"
    assert [trial.value for trial in trials] == [None, None, 0.2, 0.2]
    assert trials[1].curve == ((1.0, 0.1), (2.0, 0.2))
    done = CliRunner().invoke(main, ["sweep", "report", "me/p/s1"])
    assert done.exit_code == 0, done.output
    assert "crop,flip" in (tmp_path / "runs/sweeps/s1/sweep.html").read_text()


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("me/p", "give entity/project/sweep-id"),
        ("me//s1", "give entity/project/sweep-id"),
        ("me/p/none", "me/p/none: not found at http://127"),
    ],
)
def test_a_path_that_does_not_exist_is_an_error_of_one_line(path: str, message: str, backend: Backend) -> None:
    with pytest.raises(InputError, match=message) as caught:
        pull(path)
    assert "\n" not in str(caught.value)


def test_a_missing_login_is_an_error_without_a_prompt(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY")
    with pytest.raises(InputError, match=r"nobody is logged in to http://127.*`wandb login`"):
        pull("me/p/s1")


@pytest.mark.parametrize("outage", [refusing, answering_401])
def test_a_server_outage_is_an_error_of_one_line(outage: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cifar10_accel.tracking.wandb_api.TIMEOUT_SECONDS", 1)
    with outage() as url:
        monkeypatch.setenv("WANDB_BASE_URL", getattr(url, "url", url))
        with pytest.raises(InputError, match="check the network and `wandb login`") as caught:
            pull("me/p/s1")
    assert "\n" not in str(caught.value)


def shown(blocks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """All panels of a report, in order."""
    grids = [block["metadata"] for block in blocks if block["type"] == "panel-grid"]
    return [panel for grid in grids for panel in grid["panelBankSectionConfig"]["panels"]]


@pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince20")  # raised within wandb_workspaces
def test_a_report_of_a_sweep_shows_curves_settings_and_mistakes(backend: Backend) -> None:
    pytest.importorskip("wandb_workspaces")
    from cifar10_accel.commands import wandb_report

    url = wandb_report.create("me/p", sweep="s1")
    (report,) = backend.reports
    assert url.startswith(f"{backend.url}/me/p/reports/Sweep-s1-of-p--")
    assert (report["entityName"], report["projectName"]) == ("me", "p")
    assert report["displayName"] == "Sweep s1 of p"
    blocks = report["spec"]["blocks"]
    headings = [block["children"][0]["text"] for block in blocks if block["type"] == "heading"]
    assert headings == ["Training", "Settings", "Misclassified images"]

    panels = shown(blocks)
    curves = {p["config"]["chartTitle"]: p["config"] for p in panels if p["viewType"] == "Run History Line Plot"}
    assert list(curves) == ["accuracy", "loss", "learning rate", "images per second"]
    assert {curve["xAxis"] for curve in curves.values()} == {"epoch"}
    assert curves["accuracy"]["metrics"] == ["train/accuracy", "val/accuracy", "test/accuracy"]
    assert curves["learning rate"]["metrics"] == ["lr"]
    parallel, importance, table = panels[4:]
    assert [(column["accessor"], column.get("log")) for column in parallel["config"]["columns"]] == [
        ("config:max_lr.value", True),
        ("config:width.value", False),
        ("summary:val/accuracy", None),
    ]
    assert importance["config"]["targetKey"] == "val/accuracy"
    assert "misclassified" in json.dumps(table)
    run_sets = [block["metadata"]["runSets"] for block in blocks if block["type"] == "panel-grid"]
    sweep = {"section": "run", "name": "sweep"}
    for (run_set,) in run_sets:
        assert [(f["key"], f["op"], f["value"]) for f in run_set["filters"]["filters"]] == [(sweep, "=", "s1")]
    assert backend.unknown == []


@pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince20")
def test_a_report_of_a_project_has_all_its_runs(backend: Backend) -> None:
    pytest.importorskip("wandb_workspaces")
    from cifar10_accel.commands import wandb_report

    assert wandb_report.create("me/p").startswith(f"{backend.url}/me/p/reports/")
    (report,) = backend.reports
    columns = next(panel for panel in shown(report["spec"]["blocks"]) if "columns" in panel["config"])["config"]
    assert [column["accessor"] for column in columns["columns"]] == [
        "config:max_lr.value",
        "config:weight_decay.value",
        "summary:val/accuracy",
    ]
    for path, sweep, message in (
        ("me", None, "give entity/project"),
        ("me/none", None, "not found"),
        ("me/p", "s9", "not found"),
    ):
        with pytest.raises(InputError, match=message):
            wandb_report.create(path, sweep=sweep)
    assert len(backend.reports) == 1
