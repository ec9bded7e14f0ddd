"""The benchmarks of the loop, of scaling and of startup, each at its smallest: that they measure something."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from training_commands import CHILD_ENVIRONMENT, run_python

from benchmarks import loop, scaling, startup
from cifar10_accel.models.registry import build_model
from cifar10_accel.settings import Settings

# Trains the same small model with every contestant that is installed; prints the difference of the final weights.
SAME_STEPS = """
import copy, json
from benchmarks import loop
settings = loop.Settings(width=4, batch_size=8, num_threads=1, dataset="synthetic", tracker="none", max_lr=0.1)
task = loop.make_task(loop.build_model(settings, num_classes=10), settings, steps=12)
weights = {}
for name, contestant in loop.CONTESTANTS.items():
    if name not in loop.PACKAGES or loop.find_spec(name):
        model = copy.deepcopy(task.model)
        assert contestant(task, model) > 0
        weights[name] = loop.torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
before = loop.torch.cat([parameter.detach().flatten() for parameter in task.model.parameters()])
bare = weights[loop.BARE]
print(json.dumps({name: float((w - bare).norm() / (bare - before).norm()) for name, w in weights.items()}))
"""


def rows_of(text: str) -> dict[str, list[str]]:
    """Return the rows of printed tables: the other cells by the first one."""
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {cells[0]: cells[1:] for cells in lines}


@pytest.fixture
def _small_subprocesses(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in CHILD_ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


def test_all_contestants_take_the_same_steps(tmp_path: Path) -> None:
    done = run_python("-c", SAME_STEPS, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    differences = json.loads(done.stdout.splitlines()[-1])
    assert {"bare PyTorch", "this project"} <= differences.keys()
    assert max(differences.values()) < 1e-3, differences


def test_loop_tables_show_contestants_that_are_not_installed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(loop, "find_spec", lambda name: None)
    settings = Settings(width=4, batch_size=8, num_threads=1, dataset="synthetic", tracker="none")
    resnet = loop.measure(loop.make_task(build_model(settings, num_classes=10), settings, steps=2), rounds=1)
    loop.print_speed("model", resnet, batch_size=8)
    rows = rows_of(capsys.readouterr().out)
    assert rows["lightning"][0] == rows["transformers"][0] == "not installed"
    assert rows["bare PyTorch"][1] == "1.000"
    assert float(rows["this project"][1]) > 0
    empty = loop.measure(loop.make_task(loop.Empty(), settings, steps=20), rounds=2)
    loop.print_overhead("empty model", empty)
    rows = rows_of(capsys.readouterr().out)
    assert rows["bare PyTorch"][1] == "0"
    assert rows["lightning"][0] == "not installed"


@pytest.mark.usefixtures("_small_subprocesses")
def test_scaling_launches_the_layouts_of_its_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "layouts", lambda: [(2, 1)])
    done = CliRunner().invoke(scaling.main, ["--width=4", "--batch-size=8", "--steps=1", "--rounds=1"])
    assert done.exit_code == 0, done.output
    speed, ratio = rows_of(done.output)["2 process(es), 1 thread(s) each"]
    assert float(speed.replace(",", "")) > 0
    assert ratio == "1.00"


@pytest.mark.usefixtures("_small_subprocesses")
def test_startup_times_commands_and_a_training(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = "a refused flag: cifar10-accel train --max-lr=-1"
    monkeypatch.setattr(startup, "COMMANDS", {title: startup.COMMANDS[title] for title in (startup.TORCH, refused)})
    done = CliRunner().invoke(startup.main, ["--rounds=1"])
    assert done.exit_code == 0, done.output
    seconds = {title: float(cells[0]) for title, cells in rows_of(done.output).items() if cells[0] != "seconds"}
    assert 0 < seconds[startup.FIRST_STEP] < seconds[startup.WHOLE_RUN]
    assert seconds[refused] > 0
