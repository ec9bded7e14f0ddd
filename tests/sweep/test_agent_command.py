"""A sweep file is accepted exactly if W&B's own agent starts the trial that a local sweep starts."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest
import yaml
from training_commands import REPOSITORY

from cifar10_accel.cli import main
from cifar10_accel.errors import SettingsError
from cifar10_accel.settings import Settings
from cifar10_accel.subprocesses import settings_to_flags
from cifar10_accel.sweep.file import read_sweep

wandb_agent = pytest.importorskip("wandb.wandb_agent")
sweep_utils = pytest.importorskip("wandb.sdk.launch.sweeps.utils")

PROGRAM = ["${env}", "${interpreter}", "-m", "cifar10_accel.train"]
OURS = "cifar10_accel/train.py"
# A value of every kind that a trial can have.
PARAMETERS: dict[str, Any] = {
    "recipe": "smoke",
    "val_size": 40,
    "max_lr": 1e-05,
    "nesterov": False,
    "whitening": True,
    "cutmix_alpha": None,
    "augment": "crop,flip",
    "wandb_project": "a project = b",
}
# Arguments of a model that is not built in, whose names keep their underscores.
WITH_ARGUMENTS = {
    "recipe": "smoke",
    "val_size": 40,
    "model": "own:Net",
    "model_args.num_heads": 2,
    "model_args.eps": 1e-8,
}
WITHOUT_FALSE = {name: value for name, value in PARAMETERS.items() if value is not False}


def sweep_file(folder: Path, parameters: dict[str, Any], **values: Any) -> Path:
    """Write a sweep file whose only trial has these parameters, but for a second value of val_size."""
    spaces = {name: {"value": value} for name, value in parameters.items()}
    spaces["val_size"] = {"values": [parameters["val_size"], 80]}
    given = {"method": "grid", "metric": {"name": "val/accuracy", "goal": "maximize"}, "parameters": spaces}
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump(given | values))
    return path


def argv_of_agent(file: Path, parameters: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return what W&B's agent runs for a trial of a file, by its own code."""
    started: list[list[str]] = []
    monkeypatch.setattr(wandb_agent, "AgentProcess", lambda command, **_: started.append(command) or SimpleNamespace())
    for name in ("WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH"):
        monkeypatch.setenv(name, "")  # which the agent sets, and the end of the test removes
    monkeypatch.setenv("WANDB_DIR", str(file.parent))
    values = sweep_utils.load_sweep_config(str(file))
    agent = object.__new__(wandb_agent.Agent)
    command = values.get("command")
    agent.__dict__ |= {
        "_sweep_command": command if isinstance(command, list) else [],
        "_in_jupyter": False,
        "_function": None,
        "_run_processes": {},
        "_forward_signals": False,
    }
    arguments = {name: {"value": value} for name, value in parameters.items()}
    agent._command_run({"run_id": "r", "program": values.get("program"), "args": arguments})
    return started[0]


def settings_of(argv: list[Any]) -> Settings | None:
    """Return the settings of the training that a command line starts; None if it is no training or fails."""
    if argv[:2] == ["/usr/bin/env", "python"]:
        argv = argv[2:]
    if argv[:2] == ["-m", "cifar10_accel.train"]:
        flags = argv[2:]
    elif argv[0] == OURS:
        flags = argv[1:]
    else:
        return None
    command = main.commands["train"]
    try:
        given = command.make_context("train", list(map(str, flags))).params
        known = {name: value for name, value in given.items() if name.partition(".")[0] in Settings.model_fields}
        return Settings(**{name: value for name, value in known.items() if value})
    except (click.ClickException, SettingsError):
        return None


def is_accepted(file: Path) -> bool:
    try:
        read_sweep(file)
    except SettingsError:
        return False
    return True


def macros() -> list[str]:
    """Return all macros that this version of W&B knows for parameters, and others that it does not."""
    known = sweep_utils.create_sweep_command_args({"args": {"a": {"value": 1}}})
    return [*known, "args_json_file", "args_nonsense", "ARGS", "", "args "]


@pytest.mark.parametrize(
    "parameters",
    [PARAMETERS, WITHOUT_FALSE, WITH_ARGUMENTS],
    ids=["with false", "without false", "with arguments"],
)
@pytest.mark.parametrize("macro", macros())
def test_a_macro_is_accepted_if_the_agent_passes_the_same_trial_on(
    macro: str, parameters: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = sweep_file(tmp_path, parameters, command=[*PROGRAM, f"${{{macro}}}"])
    local = settings_of(["-m", "cifar10_accel.train", *settings_to_flags(parameters)])
    assert local is not None
    assert local.nesterov is ("nesterov" not in parameters)
    assert local.model_args == ({"num_heads": 2, "eps": 1e-8} if parameters is WITH_ARGUMENTS else {})
    theirs = settings_of(argv_of_agent(file, parameters, monkeypatch))
    assert is_accepted(file) is (theirs == local)


def test_the_table_of_macros_is_not_all_one_way(tmp_path: Path) -> None:
    accepted = {
        macro
        for macro in macros()
        if is_accepted(sweep_file(tmp_path, WITHOUT_FALSE, command=[*PROGRAM, f"${{{macro}}}"]))
    }
    assert accepted == {"args", "args_no_equals", "args_no_boolean_flags"}


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"program": OURS},
        {"program": "my_train.py"},
        {"program": OURS, "command": ["${env}", "${interpreter}", "${program}", "${args}"]},
        {"program": OURS, "command": ["python", "x.py", "${args}"]},
        {"command": ["${interpreter}", "${program}", "${args}"]},
        {"command": [*PROGRAM]},
        {"command": [*PROGRAM, "${args}", "--epochs=9"]},
        {"command": [*PROGRAM, "--max_lr=${args}"]},
        {"command": ["${args}", *PROGRAM]},
        {"command": ["bash", "-c", "python -m cifar10_accel.train ${args}"]},
    ],
    ids=lambda values: str(values)[:60],
)
def test_a_command_is_accepted_if_the_agent_starts_the_same_trial(
    values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = sweep_file(tmp_path, PARAMETERS, **values)
    if not values:  # for local sweeps: the agent has nothing to run
        assert is_accepted(file)
        return
    try:
        theirs = settings_of(argv_of_agent(file, PARAMETERS, monkeypatch))
    except TypeError:  # no program: the agent fails
        theirs = None
    local = settings_of(["-m", "cifar10_accel.train", *settings_to_flags(PARAMETERS)])
    assert is_accepted(file) is (theirs == local)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"command": [*PROGRAM, "${args_no_hyphens}"]}, "replaces ${args_no_hyphens} by words like max_lr=0.1"),
        ({"command": [*PROGRAM, "${args_json}"]}, "by one word of JSON, which is no flag; give ${args}"),
        ({"command": [*PROGRAM, "${args_nonsense}"]}, "would leave out ${args_nonsense}"),
        ({"command": [*PROGRAM, "${arg}"]}, "would leave out ${arg} (did you mean 'args'?)"),
        ({"command": [*PROGRAM, "${args_no_boolean_flags}"]}, "leaves nesterov out of ${args_no_boolean_flags}"),
        (
            {"program": OURS, "command": "python -m cifar10_accel.train ${args}"},
            "is no list, which W&B's agent ignores",
        ),
        ({"command": [*PROGRAM, "${args}", "${envvar:lower}"]}, "would leave out ${envvar:lower}"),
        ({"program": "my.py"}, "would start another program my.py than a local sweep"),
        ({"command": ["${env}", "CIFAR10_ACCEL_EPOCHS=3", *PROGRAM[1:], "${args}"]}, "as a parameter with `value:`"),
        ({"command": ["accelerate", "launch", "--mixed_precision=fp16", *PROGRAM[2:], "${args}"]}, "give precision"),
        (
            {"command": ["accelerate", "launch", "--gradient-accumulation-steps", "4", *PROGRAM[2:], "${args}"]},
            "--gradient-accumulation-steps (4) would not reach a local run; give grad_accum_steps",
        ),
        ({"command": ["accelerate", "launch", "--config_file", "half.yaml", *PROGRAM[2:], "${args}"]}, "in half.yaml"),
        ({"job": "team/project/job:latest"}, "job: W&B starts another program"),
        ({"metrics": []}, "metrics: W&B compares trials by several metrics"),
        ({"scheduler": {"engine": "optuna"}}, "scheduler: W&B takes the trials from another search"),
        ({"metric": {"name": "val/loss", "goal": "minimize", "target": 0.1}}, "metric: W&B acts on 'target'"),
        ({"early_terminate": {"type": "hyperband", "min_iter": 2, "strict": False}}, "strict is false"),
        ({"early_terminate": {"type": "hyperband", "max_iter": 10, "s": 1, "eta": 3}}, "no multiple of 3**1; give 9"),
    ],
)
def test_what_wandb_does_otherwise_is_refused_with_what_to_write(
    values: dict[str, Any], message: str, tmp_path: Path
) -> None:
    Path("half.yaml").write_text("mixed_precision: fp16\n")
    file = sweep_file(tmp_path, PARAMETERS, **values)
    with pytest.raises(SettingsError) as refused:
        read_sweep(file)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "launch",
    [
        ["--multi_gpu", "--num_processes=2"],
        ["--mixed_precision", "no"],
        ["--config_file", str(REPOSITORY / "accelerate_config.yaml")],
        ["--config_file=elsewhere.yaml"],
    ],
    ids=lambda launch: launch[0],
)
def test_a_launcher_that_changes_nothing_is_accepted(launch: list[str], tmp_path: Path) -> None:
    command = ["${env}", "PATH=${envvar:PATH}", "accelerate", "launch", *launch, "-m", "cifar10_accel.train", "${args}"]
    assert is_accepted(sweep_file(tmp_path, PARAMETERS, command=command))


def test_the_launchers_precision_does_not_matter_where_the_sweep_sets_it(tmp_path: Path) -> None:
    command = ["accelerate", "launch", "--mixed_precision=fp16", "-m", "cifar10_accel.train", "${args}"]
    assert is_accepted(sweep_file(tmp_path, PARAMETERS | {"precision": "bf16"}, command=command))
