"""The examples: the notebook runs from top to bottom, and the scripts ask launcher and training for what they know."""

import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from conftest import CHILD_ENVIRONMENT, REPOSITORY
from documentation import ENVIRONMENT, launched

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
    said = "".join(output.get("text", "") for output in outputs)
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 5
    assert "max_lr: -1" in said
    assert said.count("'state': 'finished'") == 2, said
    assert (tmp_path / "runs" / "walkthrough" / "report.html").exists()
    assert (tmp_path / "runs" / "sweeps" / "walkthrough" / "best.yaml").exists()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_asks_for_what_there_is(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)
    text = script.read_text().replace("\\\n", " ")
    (command,) = re.findall(r"^[^#\n]*?(accelerate launch .*)$", text, flags=re.M)
    command = command.partition("' train")[0]  # within quotes for srun
    command = re.sub(r'"\$\(\(.*?\)\)"', "8", command).replace('"$@"', "--recipe resnet24")
    launched(shlex.split(re.sub(r'"\$\{?\w+(:-\w+\})?"', "1", command)))


def test_the_machines_script_passes_its_numbers_on(tmp_path: Path) -> None:
    """With a launcher that only says what it was asked."""
    (tmp_path / "accelerate").write_text('#!/bin/bash\nprintf "%s\\n" "$@"\n')
    (tmp_path / "accelerate").chmod(0o755)
    path = {"PATH": f"{tmp_path}:/usr/bin:/bin", "PORT": "1234"}
    words = ["bash", str(SCRIPTS[0])]
    done = subprocess.run([*words, "1", "2", "4", "h", "--seed", "3"], env=path, capture_output=True, text=True)
    asked = done.stdout.split()
    for flag, value in {"num_machines": "2", "num_processes": "8", "machine_rank": "1", "main_process_ip": "h",
                        "main_process_port": "1234"}.items():  # fmt: skip
        assert asked[asked.index(f"--{flag}") + 1] == value
    assert asked[-2:] == ["--seed", "3"]
    done = subprocess.run(words, env=path, capture_output=True, text=True)
    assert (done.returncode, "RANK MACHINES" in done.stderr) == (2, True)
