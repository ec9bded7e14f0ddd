"""The examples: the notebook runs from top to bottom, and the scripts use flags that launcher and training have."""

import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from documentation import ENVIRONMENT, check_launch
from training_commands import CHILD_ENVIRONMENT, REPOSITORY

EXAMPLES = REPOSITORY / "examples"
SCRIPTS = [EXAMPLES / "machines.sh", EXAMPLES / "slurm.sbatch"]


def test_the_notebook_is_committed_without_outputs() -> None:
    cells = json.loads((EXAMPLES / "walkthrough.ipynb").read_text())["cells"]
    assert [cell["id"] for cell in cells if cell.get("outputs") or cell.get("execution_count")] == []


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    small = {"CIFAR10_ACCEL_SYNTHETIC_SIZE": "500", "CIFAR10_ACCEL_BATCH_SIZE": "20"}
    for name, value in (ENVIRONMENT | small | CHILD_ENVIRONMENT).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(EXAMPLES / "walkthrough.ipynb", as_version=4)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    printed = "".join(output.get("text", "") for output in outputs)
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 5
    assert "max_lr: -1" in printed
    assert printed.count("'state': 'finished'") == 2, printed
    assert (tmp_path / "runs" / "walkthrough" / "report.html").exists()
    assert (tmp_path / "runs" / "sweeps" / "walkthrough" / "best.yaml").exists()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_uses_existing_flags(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)
    text = script.read_text().replace("\\\n", " ")
    (command,) = re.findall(r"^[^#\n]*?(accelerate launch .*)$", text, flags=re.M)
    command = command.partition("' train")[0]  # within quotes for srun
    command = re.sub(r'"\$\(\(.*?\)\)"', "8", command).replace('"$@"', "--recipe resnet9")
    check_launch(shlex.split(re.sub(r'"\$\{?\w+(:-\w+\})?"', "1", command)))


def test_the_machines_script_passes_its_arguments_on(tmp_path: Path) -> None:
    """With a fake launcher that prints its arguments."""
    (tmp_path / "accelerate").write_text('#!/bin/bash\nprintf "%s\\n" "$@"\n')
    (tmp_path / "accelerate").chmod(0o755)
    path = {"PATH": f"{tmp_path}:/usr/bin:/bin", "PORT": "1234"}
    words = ["bash", str(SCRIPTS[0])]
    done = subprocess.run([*words, "1", "2", "4", "h", "--seed", "3"], env=path, capture_output=True, text=True)
    arguments = done.stdout.split()
    for flag, value in {
        "num_machines": "2",
        "num_processes": "8",
        "machine_rank": "1",
        "main_process_ip": "h",
        "main_process_port": "1234",
    }.items():
        assert arguments[arguments.index(f"--{flag}") + 1] == value
    assert arguments[-2:] == ["--seed", "3"]
    done = subprocess.run(words, env=path, capture_output=True, text=True)
    assert (done.returncode, "RANK MACHINES" in done.stderr) == (2, True)
