"""The help texts: what is there, what is found first, and the answers to names that other programs have."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import yaml
from click.testing import CliRunner
from training_commands import CHILD_ENVIRONMENT, run_python

from cifar10_accel.cli import BY_USE, HIDDEN, main
from cifar10_accel.cli.help import COMMON, SettingsCommand, sections, with_dashes
from cifar10_accel.errors import FORMER_NAMES, NOT_SETTINGS, SYNONYMS, SettingsError
from cifar10_accel.settings import Settings


def shown(*args: str, width: int = 80) -> str:
    done = CliRunner().invoke(main, args, env={"COLUMNS": str(width)}, terminal_width=width)
    assert done.exit_code == 0, done.output
    return done.output


def commands(command: click.Command = main) -> Iterator[click.Command]:
    yield command
    for inner in command.commands.values() if isinstance(command, click.Group) else ():
        yield from commands(inner)


def test_commands_are_listed_by_use_with_train_first() -> None:
    listed = re.findall(r"^  ([a-z-]+)  +(.*)$", shown("--help").split("\n\n", 3)[3], flags=re.M)
    names = [name for name, _ in listed]
    assert names[0] == "train"
    assert sorted(names) == sorted(set(main.commands) - {str(command.name) for command in HIDDEN})
    assert all(re.fullmatch(r"[A-Z].*\.", text) for _, text in listed), listed
    assert not [text for _, text in listed if text.endswith("..")], "cut"
    assert sum(map(len, BY_USE.values())) == len(names)


def test_every_command_has_a_help_text_of_whole_sentences() -> None:
    for command in commands():
        assert re.fullmatch(r"[A-Z].*[.]|.*accelerate launch .*", command.help or ""), command.name


def test_the_settings_are_described_once_each() -> None:
    """`--help` describes the common settings and names the rest; `--help-all` describes all, by section."""
    brief, full = shown("train", "--help"), shown("train", "--help-all")
    assert set(COMMON) <= set(Settings.model_fields)
    for name in Settings.model_fields:
        flag = f"--{with_dashes(name)}"
        described = rf"^  {flag} [A-Z|a-z]"
        assert len(re.findall(described, full, flags=re.M)) == 1, flag
        assert len(re.findall(described, brief, flags=re.M)) == (name in COMMON), flag
        assert re.search(rf"{flag}(\s|$)", brief), flag
        assert f"--{name} " not in full or "_" not in name
    places = [full.index(f"\n{title} settings:") for title in sections()]
    assert places == sorted(places)
    assert brief.index("Common settings") < brief.index("More settings") < len(brief) < len(full)
    for flag in ("--epochs INT", "--max-lr FLOAT", "--time-budget DURATION", "--run-dir PATH"):
        assert re.search(rf"^ +{flag}\b", full, flags=re.M), flag


@pytest.mark.parametrize("args", [["--help"], ["train", "--help"], ["train", "--help-all"], ["repeat", "--help"]])
def test_help_fits_a_terminal_of_80_columns(args: list[str]) -> None:
    assert max(map(len, shown(*args).splitlines())) <= 80


def test_a_command_of_its_own_options_shows_them_first() -> None:
    text = shown("lr-range", "--help")
    assert text.index("--start-lr") < text.index("--help-all") < text.index("Common settings") < text.index("--max-lr")


def test_help_survives_without_docstrings(tmp_path: Path) -> None:
    """`python -OO` removes docstrings; every text of `--help` and `--help-all` stays."""
    for args in (["--help"], ["train", "--help-all"], ["sweep", "--help"], ["data", "preview", "--help"]):
        normal, stripped = (
            run_python(*options, "-m", "cifar10_accel", *args, cwd=tmp_path) for options in ((), ("-OO",))
        )
        assert normal.stdout == stripped.stdout
        assert normal.returncode == stripped.returncode == 0


@pytest.mark.parametrize("args", [["--help"], ["train", "--max-lr=-1"], ["train", "--help"], ["train", "--lr=1"]])
def test_help_and_invalid_settings_import_no_torch(args: list[str], tmp_path: Path) -> None:
    """None of the slow packages is imported, which keeps these commands fast on any machine."""
    program = (
        "import sys\nfrom cifar10_accel.cli import main\n"
        "try: main(sys.argv[1:])\nexcept SystemExit: pass\n"
        "slow = ('torch', 'numpy', 'accelerate', 'albumentations', 'wandb', 'matplotlib', 'rich')\n"
        "print([name for name in slow if name in sys.modules])"
    )
    done = run_python("-c", program, *args, cwd=tmp_path)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_training_says_something_before_torch_is_imported(tmp_path: Path) -> None:
    """The first line comes while a stand-in for torch, found before the real one, takes for ever to import."""
    (tmp_path / "torch.py").write_text("import time\ntime.sleep(1000)\n")
    environment = os.environ | CHILD_ENVIRONMENT | {"PYTHONPATH": f"{tmp_path}:{CHILD_ENVIRONMENT['PYTHONPATH']}"}
    command = [sys.executable, "-m", "cifar10_accel", "train", "--recipe=smoke"]
    start = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path, env=environment) as process:
        assert process.stdout is not None
        assert "loading PyTorch" in process.stdout.readline()
        assert time.monotonic() - start < 30
        process.kill()


@pytest.mark.parametrize(
    ("flag", "answer"),
    [
        ("--lr=0.1", "did you mean --max-lr?"),
        ("--learning-rate", "did you mean --max-lr?"),
        ("--learning_rate=1", "did you mean --max-lr?"),
        ("-lr", "No such option '-lr' (did you mean --max-lr?)"),
        ("--bs=8", "did you mean --batch-size?"),
        ("-b", "did you mean --batch-size?"),
        ("--wd=0", "did you mean --weight-decay?"),
        ("--fp16", "did you mean --precision=fp16?"),
        ("--gpus=2", "accelerate launch --multi_gpu --num_processes N -m cifar10_accel.train"),
        ("--resume", "the same command again resumes its run"),
        ("--max-lrr=1", "--max-lr"),
        ("--nothing-like-this", "No such option"),
    ],
)
def test_names_of_other_programs_are_answered(flag: str, answer: str) -> None:
    for command in ("train", "repeat"):
        done = CliRunner().invoke(main, [command, flag, "1"])
        assert done.exit_code == 2
        assert answer in done.output.splitlines()[-1]


def test_the_table_of_other_names_leads_to_settings_with_valid_values() -> None:
    assert not set(SYNONYMS) & {*Settings.model_fields, *NOT_SETTINGS, *FORMER_NAMES}
    assert not set(NOT_SETTINGS) & set(Settings.model_fields)
    for meant in SYNONYMS.values():
        name, equals, value = meant.partition("=")
        assert name in Settings.model_fields
        Settings(**{name: value} if equals else {})


def test_other_names_are_answered_in_files_variables_and_code_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump({"weight-decay": 0.1, "bs": 3}))
    for given in ({"recipe": str(path)}, {"bs": 3}):
        with pytest.raises(SettingsError, match=r"bs: no such setting \(did you mean 'batch_size'\?\)"):
            Settings(**given)
    monkeypatch.setenv("CIFAR10_ACCEL_NUM_GPUS", "2")
    with pytest.raises(SettingsError, match=r"CIFAR10_ACCEL_NUM_GPUS: no such setting \(the launcher starts"):
        Settings()


def test_arguments_of_components_are_flags_with_a_dot() -> None:
    seen = {}

    @click.command(cls=SettingsCommand, params=[click.Option(["--model-args"]), click.Option(["--max-lr"])])
    def show(**given: str) -> None:
        seen.update(given)

    args = ["--model-args.depth=3", "--max_lr", "0.1", "--model_args.block-size", "7"]
    assert CliRunner().invoke(show, args).exit_code == 0
    assert seen == {"model_args": None, "max_lr": "0.1", "model_args.depth": "3", "model_args.block-size": "7"}
