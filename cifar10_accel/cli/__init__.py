"""The command line `cifar10-accel`: one function per command, with flags made from the settings.

The functions import what they need, so that `--help` and the message for an invalid setting import no torch.
"""

import click

from cifar10_accel import __version__
from cifar10_accel.cli import checks, information, runs, training
from cifar10_accel.cli.data import data
from cifar10_accel.cli.flags import WIDE_HELP
from cifar10_accel.cli.logging import show_log_messages
from cifar10_accel.cli.sweep import sweep

COMMANDS = (
    training.train,
    training.step_log,
    training.lr_range,
    training.repeat,
    runs.evaluate,
    runs.predict,
    runs.export,
    runs.report,
    runs.compare,
    runs.robustness,
    runs.demo,
    checks.doctor,
    checks.verify_parallel,
    checks.verify_resume,
    information.models,
    information.recipes,
    data,
    sweep,
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], **WIDE_HELP})
@click.version_option(__version__)
def main() -> None:
    """CIFAR-10 training on Hugging Face Accelerate: one loop, the same run everywhere."""
    show_log_messages()


for command in COMMANDS:
    main.add_command(command)
