"""The command line `cifar10-accel`: one function per command, with flags made from the settings.

The functions import what they need, so that `--help` and the message for an invalid setting import no torch. The help
text of a command is an argument of its decorator, because `python -OO` removes docstrings.
"""

import click

from cifar10_accel import __version__
from cifar10_accel.cli import checks, information, runs, training
from cifar10_accel.cli.data import data
from cifar10_accel.cli.help import CommandGroup, with_dashes
from cifar10_accel.cli.logging import escape_what_streams_cannot_encode, show_log_messages
from cifar10_accel.cli.sweep import sweep

BY_USE: dict[str, tuple[click.Command, ...]] = {
    "Train": (training.train, training.repeat, training.lr_range, sweep),
    "Use a trained model": (runs.evaluate, runs.predict, runs.robustness, runs.demo, runs.export),
    "Look at runs": (runs.list_runs, runs.report, runs.compare),
    "Check": (checks.doctor, checks.verify_resume, checks.verify_parallel),
    "Data, models, launching": (data, information.models, information.recipes, information.launch_config),
}
HIDDEN = (training.step_log,)  # started by other commands


@click.group(
    cls=CommandGroup,
    by_use={title: [str(command.name) for command in commands] for title, commands in BY_USE.items()},
    context_settings={
        "help_option_names": ["-h", "--help"],
        "max_content_width": 120,
        "token_normalize_func": with_dashes,
    },
    help="Train image classifiers on Hugging Face Accelerate: one loop, the same run everywhere.",
)
@click.version_option(__version__)
def main() -> None:
    escape_what_streams_cannot_encode()
    show_log_messages()


for command in (*(command for commands in BY_USE.values() for command in commands), *HIDDEN):
    main.add_command(command)
