"""Commands in the documentation: found in the pages, run with small settings or, where that is not possible, parsed.

As a program it runs the commands of pages with the first package on the path:

    python tests/support/documentation.py PAGE...
"""

import glob
import itertools
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
from click.testing import CliRunner
from PIL import Image

from cifar10_accel.cli import main
from cifar10_accel.settings import Settings
from cifar10_accel.sweep.file import read_sweep

REPOSITORY = Path(__file__).parent.parent.parent
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
# Settings that make any command fast, given in the environment, which wins over recipes.
SMALL = {
    "DATASET": "synthetic",
    "SYNTHETIC_SIZE": "300",
    "WIDTH": "4",
    "EPOCHS": "1",
    "PEAK_EPOCH": "0.5",
    "BATCH_SIZE": "8",
    "EVAL_BATCH_SIZE": "40",
    "LOG_EVERY": "5",
    "EVAL_EVERY": "1",
    "CHECKPOINT_EVERY": "1",
    "NUM_THREADS": "1",
    "COMPILE": "false",
    "TTA": "flip",
    "TRACKER": "none",
}
ENVIRONMENT = {f"CIFAR10_ACCEL_{name}": value for name, value in SMALL.items()}
Words = list[str]


def shell_commands(page: Path) -> Iterator[tuple[dict[str, str], Words]]:
    """Yield the commands in the page's shell blocks: the variables set in front of each, and its words."""
    for block in re.findall(r"^```sh\n(.*?)^```", page.read_text(), flags=re.M | re.S):
        for line in block.replace("\\\n", " ").splitlines():
            lexer = shlex.shlex(line, posix=True, punctuation_chars="&")
            lexer.whitespace_split = True
            for words in _split(list(lexer), "&&"):
                variables = list(itertools.takewhile(re.compile(r"[A-Z0-9_]+=").match, words))
                yield dict(word.split("=", 1) for word in variables), words[len(variables) :]


def python_blocks(page: Path) -> list[str]:
    """Return the page's Python blocks, without those that are the content of a file."""
    files = [content for _, _, content in file_blocks(page)]
    return [
        code for code in re.findall(r"^```python\n(.*?)^```", page.read_text(), flags=re.M | re.S) if code not in files
    ]


def file_blocks(page: Path) -> list[tuple[str, str, str]]:
    """Return (path, "python" or "diff", content) of blocks after a sentence that names a file and ends in a colon."""
    named = r"`(cifar10_accel/[\w/]+\.py)`[^`]*:\n\n^```(python|diff)\n(.*?)^```"
    return re.findall(named, page.read_text(), flags=re.M | re.S)


def apply_changes(page: Path, tree: Path) -> tuple[int, int]:
    """Apply the changes that the page shows to a copy of the sources.

    Returns:
        The numbers of new files, and of new or changed lines in existing ones.
    """
    num_files, num_lines = 0, 0
    for name, kind, content in file_blocks(page):
        path = tree / name
        if kind == "python":
            assert not path.exists(), path
            path.write_text(content)
            num_files += 1
            continue
        for hunk in content.split("@@\n"):
            lines = hunk.splitlines(keepends=True)
            assert {line[0] for line in lines} <= {" ", "+", "-"}
            before, after = ("".join(line[1:] for line in lines if line[0] in signs) for signs in (" -", " +"))
            assert path.read_text().count(before) == 1, before
            path.write_text(path.read_text().replace(before, after))
            num_lines += sum(line[0] == "+" for line in lines)
    return num_files, num_lines


def copy_prerequisites(folder: Path, run: Path) -> None:
    """Create the files that the commands expect: finished runs, a photo, a recipe, the repository's files."""
    for name in ("runs/NAME", "runs/A", "runs/B"):
        shutil.copytree(run, folder / name)
    for name in ("sweeps", "examples"):
        shutil.copytree(REPOSITORY / name, folder / name)
    smoke = folder / "sweeps" / "smoke.yaml"
    smoke.write_text(smoke.read_text().replace("run_cap: 12", "run_cap: 1"))
    shutil.copy(REPOSITORY / "accelerate_config.yaml", folder)
    (folder / "my.yaml").write_text("max_lr: 0.1\n")
    for name in ("photo.jpg", "other.png", "photos/third.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (48, 40), "teal").save(folder / name)
    for split, name, number in itertools.product(("train", "test"), ("cat", "dog"), range(10)):
        path = folder / "pictures" / split / name / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((70, 64), 100).save(path)


def run(variables: dict[str, str], words: Words) -> str:
    """Run a command of cifar10-accel in this process, in the current folder, and return its output."""
    assert words[0] == "cifar10-accel", f"{shlex.join(words)}: no test can run this; see CANNOT_RUN"
    expanded = [name for word in words[1:] for name in (sorted(glob.glob(word)) if "*" in word else [word])]
    done = CliRunner().invoke(main, expanded, env=ENVIRONMENT | {"COLUMNS": "200"} | variables)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        traceback.print_exception(done.exception)
    assert done.exit_code == 0, f"{shlex.join(words)}: exit {done.exit_code}\n{done.output}"
    return done.output


def check_command(words: Words) -> None:
    """Check that the command exists, takes these arguments, and that their values are in their ranges."""
    command: click.Command = main
    rest = words[1:]
    while isinstance(command, click.Group):
        assert rest, f"{shlex.join(words)}: which command?"
        assert rest[0] in command.commands, f"{shlex.join(words)}: no {rest[0]!r}"
        command, rest = command.commands[rest[0]], rest[1:]
    given = command.make_context(shlex.join(words), rest).params
    Settings(**{name: value for name, value in given.items() if name in Settings.model_fields and value is not None})


def _make(words: Words) -> None:
    done = subprocess.run(["make", "-n", *words[1:]], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines():
        if "cifar10_accel.train" in line:
            check_launch(["accelerate", *shlex.split(line)[1:]])


def _pip(words: Words) -> None:
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    used = re.findall(r"\[(.*?)\]", words[2])
    assert words[1] == "install"
    assert re.match(r"(\.|cifar10-accel)(\[|$)", words[2])
    assert set(used) <= set(extras)


def check_launch(words: Words) -> None:
    """Check that the launcher takes its flags, and the training the rest."""
    if words[0] == "torchrun":
        from torch.distributed.run import get_args_parser as parser
    else:
        from accelerate.commands.launch import launch_command_parser as parser  # type: ignore[no-redef]
    arguments: Any = parser().parse_args(words[1 if words[0] == "torchrun" else 2 :])
    assert arguments.module
    assert arguments.training_script == "cifar10_accel.train"
    if getattr(arguments, "config_file", None):
        assert (REPOSITORY / arguments.config_file).is_file()
    check_command(["cifar10-accel", "train", *arguments.training_script_args])


def _script(words: Words) -> None:
    place = next(index for index, word in enumerate(words) if word.startswith("examples/"))
    subprocess.run(["bash", "-n", str(REPOSITORY / words[place])], check=True)
    arguments = words[place + 1 :]
    if words[place] == "examples/sweep.sbatch":
        _sweep(["cifar10-accel", "sweep", "run", *arguments])
        return
    settings = [word for word in arguments if word.startswith("--")]
    check_command(["cifar10-accel", "train", *(arguments[arguments.index(settings[0]) :] if settings else [])])


def _wandb(words: Words) -> None:
    assert words[1] in ("sweep", "agent", "sync", "login")
    if words[1] == "sweep":
        read_sweep(REPOSITORY / words[2])


def _sweep(words: Words) -> None:
    check_command(words)
    read_sweep(REPOSITORY / words[3])


# Commands that no test runs as they stand: the reason, and the check made instead. The longest prefix counts.
CANNOT_RUN: dict[str, tuple[str, Callable[[Words], None]]] = {
    "make ": ("installs, and then takes minutes", _make),
    "pip install ": ("needs the package index", _pip),
    "accelerate launch ": ("starts processes, or needs GPUs; test_distributed.py launches", check_launch),
    "torchrun ": ("starts processes; test_distributed.py does", check_launch),
    "bash examples/": ("needs several machines", _script),
    "sbatch ": ("needs a cluster; tests/cluster/test_slurm.py has one", _script),
    "wandb ": ("needs an account; test_wandb_sweep.py has a fake server", _wandb),
    "cifar10-accel demo ": ("serves a page until Ctrl-C; test_demo.py has a browser", check_command),
    "cifar10-accel report --wandb ": ("needs an account; test_wandb_api.py has a fake server", check_command),
    "cifar10-accel sweep report ENTITY/": (
        "needs an account; test_wandb_sweep.py has a fake server",
        check_command,
    ),
    "cifar10-accel sweep run sweeps/onecycle.yaml ": ("trains on the real data for hours", _sweep),
    "cifar10-accel sweep report runs/sweeps/onecycle ": ("needs a database; tests/cluster has one", check_command),
    "cifar10-accel data fetch ": ("needs the network; test_download.py has a server", check_command),
    "cifar10-accel data verify ": ("needs the real data; test_cli.py has it", check_command),
    "cifar10-accel repeat ": ("starts several trainings; test_repeat.py", check_command),
    "cifar10-accel verify-parallel ": ("starts several trainings; test_verify.py", check_command),
    "cifar10-accel verify-resume ": ("starts several trainings; test_verify.py", check_command),
}


def reason_not_to_run(words: Words) -> str | None:
    """Return the prefix in CANNOT_RUN that a command has, if any."""
    text = " ".join(words) + " "
    return max((start for start in CANNOT_RUN if text.startswith(start)), key=len, default=None)


def run_page(page: Path) -> list[str]:
    """Run or check every shell command of the page, then its Python, in the current folder; return what was run."""
    done = []
    for variables, words in shell_commands(page):
        entry = reason_not_to_run(words)
        if entry is None:
            run(variables, words)
            done.append(shlex.join(words))
        else:
            CANNOT_RUN[entry][1](words)
    names: dict[str, Any] = {"__name__": "documentation"}
    for code in python_blocks(page):
        exec(compile(code, str(page), "exec"), names)
    return done


def _split(words: Words, separator: str) -> Iterator[Words]:
    part: Words = []
    for word in [*words, separator]:
        if word == separator:
            if part:
                yield part
            part = []
        else:
            part.append(word)


if __name__ == "__main__":
    import cifar10_accel

    os.environ.update(ENVIRONMENT)
    for argument in sys.argv[1:]:
        print(cifar10_accel.__file__, *run_page(Path(argument)), sep="\n")
