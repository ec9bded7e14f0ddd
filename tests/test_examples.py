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
MACHINES, SLURM, SWEEP = (EXAMPLES / name for name in ("machines.sh", "slurm.sbatch", "sweep.sbatch"))


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


def test_the_machines_script_uses_existing_flags() -> None:
    text = MACHINES.read_text().replace("\\\n", " ")
    (command,) = re.findall(r"^[^#\n]*?(accelerate launch .*)$", text, flags=re.M)
    command = re.sub(r'"\$\(\(.*?\)\)"', "8", command).replace('"$@"', "--recipe resnet9")
    check_launch(
        shlex.split(re.sub(r'"\$\{?\w+(:-[\w$]+\})?"', "1", command.replace('"${PRECISION:-$precision}"', "no")))
    )


@pytest.mark.parametrize("script", [MACHINES, SLURM, SWEEP], ids=lambda path: path.name)
def test_a_script_has_no_syntax_error(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)


def test_the_machines_script_passes_its_arguments_on(tmp_path: Path) -> None:
    """With a fake launcher that prints its arguments."""
    (tmp_path / "accelerate").write_text('#!/bin/bash\nprintf "%s\\n" "$@"\n')
    (tmp_path / "accelerate").chmod(0o755)
    path = {"PATH": f"{tmp_path}:/usr/bin:/bin", "PORT": "1234"}
    words = ["bash", str(MACHINES)]
    done = subprocess.run([*words, "1", "2", "4", "h", "--seed", "3"], env=path, capture_output=True, text=True)
    arguments = done.stdout.split()
    for flag, value in {
        "num_machines": "2",
        "num_processes": "8",
        "machine_rank": "1",
        "main_process_ip": "h",
        "main_process_port": "1234",
        "rdzv_conf": "timeout=120",
        "mixed_precision": "no",
    }.items():
        assert arguments[arguments.index(f"--{flag}") + 1] == value
    assert arguments[-2:] == ["--seed", "3"]
    done = subprocess.run(words, env=path, capture_output=True, text=True)
    assert (done.returncode, "RANK MACHINES" in done.stderr) == (2, True)


def with_fake_slurm(tmp_path: Path, script: Path, *words: str, code: int, **variables: str) -> tuple[int, list[str]]:
    """Run a batch script; return its exit code, and the commands of Slurm that it called, the first with its ranks."""
    for name in ("srun", "scontrol"):
        is_srun = name == "srun"
        body = f'env | grep -E "^(MASTER|WORLD|CIFAR|ACCEL)" >> calls; exit {code}' if is_srun else "echo nodea"
        (tmp_path / name).write_text(f'#!/bin/bash\necho "{name} $*" | tr "\\n" " " >> calls; echo >> calls\n{body}\n')
        (tmp_path / name).chmod(0o755)
    given = {
        "SLURM_JOB_ID": "20017",
        "SLURM_JOB_NODELIST": "node[a-b]",
        "SLURM_NTASKS": "2",
        "SLURM_CPUS_PER_TASK": "3",
    }
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"} | given | variables
    done = subprocess.run(["bash", str(script), *words], env=environment, cwd=tmp_path, capture_output=True, text=True)
    return done.returncode, (tmp_path / "calls").read_text().splitlines()


@pytest.mark.parametrize(("code", "is_requeued"), [(0, False), (1, False), (2, False), (137, False), (143, True)])
@pytest.mark.parametrize("script", [SLURM, SWEEP], ids=lambda path: path.name)
def test_a_job_keeps_its_exit_code_and_is_requeued_after_a_preemption_only(
    script: Path, code: int, is_requeued: bool, tmp_path: Path
) -> None:
    ended, calls = with_fake_slurm(tmp_path, script, "--seed", "3", code=code)
    assert ended == code
    assert any(call.strip() == "scontrol requeue 20017" for call in calls) == is_requeued
    assert any(call.startswith("srun ") and "--seed 3" in call for call in calls)


def test_a_task_of_an_array_requeues_itself_alone(tmp_path: Path) -> None:
    task = {"SLURM_ARRAY_JOB_ID": "20017", "SLURM_ARRAY_TASK_ID": "1"}
    _, calls = with_fake_slurm(tmp_path, SWEEP, "s.yaml", code=143, **task)
    assert calls[-1].strip() == "scontrol requeue 20017_1"


@pytest.mark.parametrize("gpus", ["", "4"])
def test_one_batch_script_serves_cpu_and_gpu(gpus: str, tmp_path: Path) -> None:
    variables = {"SLURM_NTASKS": "8", "SLURM_NTASKS_PER_NODE": "4"} | ({"SLURM_GPUS_ON_NODE": gpus} if gpus else {})
    _, calls = with_fake_slurm(tmp_path, SLURM, code=0, **variables)
    assert {"MASTER_ADDR=nodea", "MASTER_PORT=20017", "WORLD_SIZE=8"} <= set(calls)
    assert ("ACCELERATE_MIXED_PRECISION=fp16" in calls) == bool(gpus)
    assert ("CIFAR10_ACCEL_NUM_THREADS=3" in calls) == (not gpus)
