"""The command line in a subprocess: output, files and exit codes."""

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
from training_commands import REPOSITORY, TINY, flags, run_python
from trainings import assert_same_bits, started, status_of, wait_for_step

from cifar10_accel.cli.flags import handle_user_errors

TRAIN_COMMANDS = {"command": ("-m", "cifar10_accel", "train"), "module": ("-m", "cifar10_accel.train")}
LAUNCHER = "import subprocess, sys; subprocess.run([sys.executable, *sys.argv[1:]])"


def test_booleans_take_every_form(tmp_path: Path) -> None:
    program = (
        "import click\nfrom cifar10_accel.cli.flags import settings_options\n"
        "from cifar10_accel.cli.help import SettingsCommand\nfrom cifar10_accel.settings import Settings\n"
        "@click.command(cls=SettingsCommand)\n@settings_options\n"
        "def show(**flags): print(Settings(**flags).nesterov, flags)\nshow()"
    )
    for form, expected in [
        ("--nesterov", "True"),
        ("--no-nesterov", "False"),
        ("--nesterov=False", "False"),
        ("--nesterov=true", "True"),
        ("--no_nesterov", "False"),
    ]:
        assert run_python("-c", program, form, cwd=tmp_path).stdout.split()[0] == expected, form
    assert run_python("-c", program, "--max_lr=0.1", "--max-lr=0.2", cwd=tmp_path).stdout.endswith(
        "{'max_lr': '0.2'}\n"
    )


def test_ctrl_c_is_130(capsys: pytest.CaptureFixture[str]) -> None:
    @handle_user_errors
    def command() -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as ended:
        command()
    assert ended.value.code == 130
    assert capsys.readouterr().err == "stopped by Ctrl-C\n"


def test_train_evaluate_and_read_back(tmp_path: Path) -> None:
    """Train, evaluate the run folder, evaluate a checkpoint, with and without TTA."""
    done = run_python("-m", "cifar10_accel.train", *flags(TINY | {"run_dir": tmp_path / "a run"}), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "SYNTHETIC" in done.stdout
    assert "per class" in done.stdout
    summary = json.loads((tmp_path / "a run" / "summary.json").read_text())
    for source in ("a run", "a run/checkpoints/step-000018"):
        done = run_python("-m", "cifar10_accel", "evaluate", source, "--tta=flip", "--json", cwd=tmp_path)
        metrics = json.loads(done.stdout)
        assert metrics["test/accuracy"] == summary["test/accuracy"]
        assert 0 <= metrics["test/accuracy_tta"] <= 1


def test_both_train_commands_give_the_same_run(tmp_path: Path) -> None:
    outputs = []
    for name, command in TRAIN_COMMANDS.items():
        done = run_python(*command, *flags(TINY | {"run_dir": tmp_path / name / "run"}), cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        refused = run_python(*command, "--max-lr=-1", cwd=tmp_path)
        _, shown_help = run_python(*command, "--help", cwd=tmp_path).stdout.split("\n", 1)  # without the usage line
        outputs.append((refused.returncode, refused.stderr, shown_help))
    assert outputs[0][0] == 2
    assert outputs[0] == outputs[1]
    assert_same_bits(*(tmp_path / name / "run" for name in TRAIN_COMMANDS))


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="needs Linux's pidfd_open")
@pytest.mark.parametrize("command", TRAIN_COMMANDS.values(), ids=TRAIN_COMMANDS)
def test_both_train_commands_stop_when_their_launcher_dies(command: tuple[str, ...], tmp_path: Path) -> None:
    run_dir, variables = tmp_path / "run", {"ACCELERATE_MIXED_PRECISION": "no"}  # as `accelerate launch` sets it
    args = [*command, *flags(TINY | {"epochs": 1000, "run_dir": run_dir})]
    with started(tmp_path, *args, program=("-c", LAUNCHER), environment=variables) as launcher:
        wait_for_step(launcher, run_dir, 2)
        launcher.kill()
        deadline = time.monotonic() + 30
        while status_of(run_dir)["state"] == "running":
            assert time.monotonic() < deadline, "the training continues without its launcher"
            time.sleep(0.05)
    assert (status_of(run_dir)["state"], status_of(run_dir)["exit_code"]) == ("preempted", 143)


def test_evaluate_rejects_a_folder_that_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for path in ("nowhere", "empty"):
        done = run_python("-m", "cifar10_accel", "evaluate", path, cwd=tmp_path)
        assert (done.returncode, done.stderr.count("\n")) == (3, 1), done.stderr


def test_lr_range_writes_its_curve(tmp_path: Path) -> None:
    done = run_python("-m", "cifar10_accel", "lr-range", *flags(TINY), "--steps=40", "--out=found", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "found" / "lr_range.json").read_text())
    assert len(result["lr"]) == len(result["loss"]) == len(result["accuracy"]) > 10
    assert (tmp_path / "found" / "lr_range.png").stat().st_size > 10_000
    assert not (tmp_path / "runs").exists()


def test_lr_range_prints_why_there_is_no_suggestion(tmp_path: Path) -> None:
    args = ["--start-lr=1e-9", "--end-lr=1e-8", "--steps=12"]
    done = run_python("-m", "cifar10_accel", "lr-range", *flags(TINY), *args, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "no suggestion: the loss never fell" in done.stdout


@pytest.mark.parametrize("bounds", [("0.1", "0.1"), ("0.1", "0.01"), ("1", "1.0000000001"), ("nan", "1")])
def test_lr_range_refuses_bounds_before_torch_is_imported(bounds: tuple[str, str], tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise SystemExit(99)\n")
    args = ["lr-range", f"--start-lr={bounds[0]}", f"--end-lr={bounds[1]}", "--steps=1000000"]
    done = run_python("-m", "cifar10_accel", *args, cwd=tmp_path, PYTHONPATH=f"{tmp_path}:{REPOSITORY}")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "end-lr: " in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["torch.py"]


def test_recipes_and_models_describe(tmp_path: Path) -> None:
    listed = run_python("-m", "cifar10_accel", "recipes", cwd=tmp_path).stdout
    for name in ("resnet9", "resnet9_original", "cpu", "smoke"):
        assert name in listed
    described = run_python("-m", "cifar10_accel", "models", cwd=tmp_path).stdout
    assert "6,573,120" in described


def test_the_launcher_with_the_shipped_configuration(tmp_path: Path) -> None:
    config = REPOSITORY / "accelerate_config.yaml"
    command = ["-m", "accelerate.commands.launch", "--config_file", str(config), "-m", "cifar10_accel.train"]
    done = run_python(*command, *flags(TINY | {"max_steps": 2, "num_threads": "none"}), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "runs").iterdir()
    threads = json.loads((folder / "environment.json").read_text())["threads"]
    assert threads == len(os.sched_getaffinity(0))  # the launcher's OMP_NUM_THREADS=1 does not win


def test_the_configuration_for_the_launcher_can_be_had_anywhere(tmp_path: Path) -> None:
    """`launch-config` writes the file of the repository, and never over another one."""
    done = run_python("-m", "cifar10_accel", "launch-config", cwd=tmp_path)
    assert done.stdout == "accelerate launch --config_file accelerate_config.yaml -m cifar10_accel.train\n"
    written = tmp_path / "accelerate_config.yaml"
    assert written.read_bytes() == (REPOSITORY / "accelerate_config.yaml").read_bytes()
    assert run_python("-m", "cifar10_accel", "launch-config", cwd=tmp_path).returncode == 0
    written.write_text("mine: true\n")
    refused = run_python("-m", "cifar10_accel", "launch-config", cwd=tmp_path)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1), refused.stderr
    assert written.read_text() == "mine: true\n"


def test_a_wrong_setting_under_the_launcher_is_one_line(tmp_path: Path) -> None:
    """With --quiet, the launcher has no traceback of its own; without its configuration, no warnings."""
    run_python("-m", "cifar10_accel", "launch-config", cwd=tmp_path)
    launch = ["-m", "accelerate.commands.launch", "--quiet", "--config_file", "accelerate_config.yaml"]
    done = run_python(*launch, "-m", "cifar10_accel.train", "--max-lr=-1", cwd=tmp_path)
    assert done.returncode != 0
    assert done.stderr == "error: max_lr: '-1' is wrong: input should be greater than 0\n"


def test_preview_draws_both_backends(tmp_path: Path) -> None:
    shown = ["--epoch=0", "--epoch=3", "--index=5", "--low-res-fraction=0.5", "--out=p.png"]
    command = ["-m", "cifar10_accel", "data", "preview", "--compare", *shown]
    done = run_python(*command, *flags(TINY), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    done = run_python(*command, *flags(TINY), "--index=360", cwd=tmp_path)
    assert (done.returncode, "index: 360 is not a training image" in done.stderr) == (2, True)


def test_data_verify_without_data_names_the_command_to_run(tmp_path: Path) -> None:
    done = run_python("-m", "cifar10_accel", "data", "verify", "--data-dir=here", cwd=tmp_path)
    assert done.returncode == 3
    assert "cifar10-accel data fetch" in done.stderr


def test_data_verify_checks_the_real_files(real_data_dir: Path, tmp_path: Path) -> None:
    done = run_python("-m", "cifar10_accel", "data", "verify", f"--data-dir={real_data_dir}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("as published") >= 6


def test_importing_all_modules_needs_no_network(tmp_path: Path) -> None:
    program = (
        "import importlib, pkgutil, socket\n"
        "def refuse(*args): raise AssertionError(f'a connection at import: {args}')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        "import cifar10_accel\n"
        "for module in pkgutil.walk_packages(cifar10_accel.__path__, 'cifar10_accel.'):\n"
        "    is_program = module.name.endswith(('__main__', 'modeling_cifar10_accel'))  # the latter of transformers\n"
        "    if not is_program: importlib.import_module(module.name)\n"
    )
    done = run_python("-c", program, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_real_images_train(real_data_dir: Path, tmp_path: Path) -> None:
    """Half an epoch on the real data set is already far better than chance."""
    short = {"width": 8, "max_steps": 50, "epochs": 1, "num_threads": 1}
    kept_short = {"recipe": "cpu", "tta": "none", "tracker": "none", "run_dir": "run", "data_dir": real_data_dir}
    done = run_python("-m", "cifar10_accel.train", *flags(short | kept_short), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["dataset"] == "cifar10"
    assert len(np.load(tmp_path / "run" / "predictions.npz")["label"]) == 10_000
    assert summary["test/accuracy"] > 0.3  # it was 0.42


def test_bf16_on_a_cpu_is_real_and_warned_about(tmp_path: Path) -> None:
    import torch

    from cifar10_accel.training.launch.precision import choose_precision

    args = flags(TINY | {"precision": "bf16", "max_steps": 2, "run_dir": "run"})
    done = run_python("-m", "cifar10_accel.train", *args, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "environment.json").read_text())["precision"] == "bf16"
    capabilities = torch.cpu.get_capabilities()
    if capabilities.get("amx_bf16") or not capabilities.get("avx512_bf16"):  # else each process measures for itself
        is_chosen = choose_precision(torch.device("cpu"))[0] == "bf16"
        assert ("bf16 is no faster than float32 on this CPU" in done.stderr) is not is_chosen
