"""The list of checks."""

import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.gpu.check_functions import (
    PRECISIONS,
    CheckFailed,
    check_dir,
    little_memory,
    no_recompilation,
    no_waits,
    same_losses,
    same_pixels,
    same_with_graphs,
    short_flags,
    torchrun,
    train_short,
    two_gloo_ranks,
)
from benchmarks.gpu.session import Session
from cifar10_accel.cli import main as cli
from cifar10_accel.recipes import recipe_names
from cifar10_accel.subprocesses import settings_to_flags

RUN = "smoke-run"  # the finished run that later checks use
STOPPED = (130, 143)  # exit codes of a command that was asked to end


@dataclass(frozen=True)
class Check:
    """A check by its name.

    Args:
        run: Returns the telling line; raises an exception if the check does not hold.
        needs_cuda: On a CPU it would show nothing.
        in_tiny: It is fast enough for `--tiny`.
    """

    run: Callable[[Session], str]
    needs_cuda: bool = False
    in_tiny: bool = True


def list_checks() -> list[dict[str, Check]]:
    """Return the checks by name in two stages; those of the second use run folders of the first."""
    # The longest are first, so that they do not end alone.
    first = _resumes() | _device() | _recipes() | _variants() | _launches() | _commands()
    return [first, _on_runs()]


def _device() -> dict[str, Check]:
    waits = {
        f"no-waits-{name}": Check(partial(no_waits, precision=precision), needs_cuda=True)
        for name, precision in PRECISIONS.items()
    }
    compiled = {
        f"no-recompilation-{name}": Check(partial(no_recompilation, precision=precision), needs_cuda=True)
        for name, precision in PRECISIONS.items()
    }
    graphs = {
        f"graph-{recipe}": Check(partial(same_with_graphs, recipe=recipe), needs_cuda=True)
        for recipe in ("resnet9", "speed94", "accuracy96")
    }
    others = {"same-pixels": same_pixels, "little-memory": little_memory}
    return compiled | waits | graphs | {name: Check(run, needs_cuda=True) for name, run in others.items()}


def _recipes() -> dict[str, Check]:
    """Every recipe in every precision; those that compile by default are compiled."""
    found = {}
    for recipe in sorted(recipe_names(), key=lambda name: name not in ("accuracy96", "speed94")):
        for title, precision in PRECISIONS.items():
            name = f"{recipe}-{title}"
            run = partial(train_short, recipe=recipe, precision=precision, name=name)
            found[name] = Check(run, needs_cuda=precision == "fp16", in_tiny=precision == "no" or recipe == "smoke")
    return found


def _variants() -> dict[str, Check]:
    """Settings that no recipe has."""
    changes: dict[str, dict[str, Any]] = {
        "two-sizes-compiled": {
            "compile": True,
            "low_res_fraction": 0.5,
            "batch_size": 1000,
            "max_steps": None,
            "epochs": 4,
        },
        "resnet18-deterministic": {"model": "resnet18", "logit_scale": 1, "max_lr": 0.1, "deterministic": True},
        "depthwise-mixup-clip-accumulate": {
            "model": "depthwise_dilated",
            "mixup_alpha": 1,
            "cutmix_alpha": 1,
            "grad_clip": 1,
            "grad_accum_steps": 2,
        },
        "adamw-averaged": {"optimizer": "adamw", "max_lr": 0.002, "ema_decay": 0.9},
        "albumentations-workers": {"augment_backend": "albumentations", "num_workers": 2},
    }
    found = {}
    for name, values in changes.items():
        run = partial(_train_half, recipe="resnet9", name=name, changes=values)
        found[name] = Check(run, needs_cuda="compile" in values)
    return found


def _train_half(session: Session, recipe: str, name: str, changes: dict[str, Any]) -> str:
    return train_short(session, recipe, session.half, name, **changes)


def _resumes() -> dict[str, Check]:
    averaged = {"optimizer": "muon", "conv_lr_factor": 0.3, "ema_decay": 0.9}
    return {
        "resume-fp32": Check(partial(_resume, name="resume-fp32", precision="no", changes={})),
        "resume-fp16": Check(partial(_resume, name="resume-fp16", precision="fp16", changes=averaged), needs_cuda=True),
        "resume-compiled": Check(
            partial(_resume, name="resume-compiled", precision="fp16", changes={"compile": True}), needs_cuda=True
        ),
    }


def _resume(session: Session, name: str, precision: str, changes: dict[str, Any]) -> str:
    size = {} if session.is_tiny else {"synthetic_size": 6000}
    flags = session.flags("smoke", precision=precision, deterministic=True, **(size | changes))
    kills, folder = ("1" if session.is_tiny or "compile" in changes else "2"), check_dir(session, name)
    shutil.rmtree(folder, ignore_errors=True)  # of an attempt that failed
    return _command("the same bits", "verify-resume", "--kills", kills, "--dir", str(folder), *settings_to_flags(flags))


def _launches() -> dict[str, Check]:
    muon: dict[str, Any] = {"compile": True, "optimizer": "muon", "conv_lr_factor": 0.3}
    return {
        "nccl-one-rank": Check(partial(torchrun, name="nccl", ema_decay=0.9), needs_cuda=True),
        "nccl-one-rank-compiled": Check(partial(torchrun, name="nccl-compiled", **muon), needs_cuda=True),
        "two-gloo-ranks": Check(two_gloo_ranks),
    }


def _commands() -> dict[str, Check]:
    return {
        RUN: Check(partial(_train_half, recipe="smoke", name=RUN, changes={"max_steps": None})),
        "doctor": Check(_doctor),
        "lr-range": Check(_lr_range),
    }


def _doctor(session: Session) -> str:
    flags = short_flags(session, "resnet9")
    return _command("precision", "doctor", *settings_to_flags(flags))


def _lr_range(session: Session) -> str:
    flags = session.flags("smoke")
    folder = check_dir(session, "lr-range")
    return _command(
        "LR", "lr-range", "--steps", "12" if session.is_tiny else "100", "--out", str(folder), *settings_to_flags(flags)
    )


def _on_runs() -> dict[str, Check]:
    def on(run: str, *arguments: str, expected: str) -> Check:
        return Check(partial(_on_run, run=run, arguments=arguments, expected=expected))

    return {
        "same-losses": Check(same_losses, needs_cuda=True),
        "evaluate": on(RUN, "evaluate", "{run}", "--tta", "multicrop", expected="accuracy"),
        "evaluate-compiled-run": Check(
            partial(_on_run, run="speed94-fp16", arguments=("evaluate", "{run}"), expected="accuracy"), needs_cuda=True
        ),
        "report-grad-cam": on(RUN, "report", "{run}", "--grad-cam", expected="report.html"),
        "robustness": on(RUN, "robustness", "{run}", "--images", "40", expected="%"),
        "export": Check(_export),
        "finished-run-again": Check(_again),
    }


def _on_run(session: Session, run: str, arguments: Sequence[str], expected: str) -> str:
    folder = str(check_dir(session, run))
    return _command(expected, *(argument.replace("{run}", folder) for argument in arguments))


def _export(session: Session) -> str:
    folder = check_dir(session, RUN)
    exported = folder / "model.pt2"
    exported.unlink(missing_ok=True)  # of an earlier call
    return _command("model.pt2", "export", str(folder), "--format", "torch-export", "--out", str(exported))


def _again(session: Session) -> str:
    flags = short_flags(session, "smoke", max_steps=None, run_dir=check_dir(session, RUN))
    return _command("nothing to train", "train", *settings_to_flags(flags))


def _command(expected: str, *arguments: str) -> str:
    """Run a command of the package in this process; return the last line of its output that has the expected text.

    The standard output of a check is a file, see benchmarks/gpu/checks.py.
    """
    log = Path(f"/proc/self/fd/{sys.stdout.fileno()}")
    try:
        cli(list(arguments), standalone_mode=False)
    except SystemExit as end:
        if end.code in STOPPED:
            raise
        if end.code:
            raise CheckFailed(f"exit code {end.code}") from None
    sys.stdout.flush()
    lines = [line.strip() for line in log.read_text().splitlines() if expected in line]
    if not lines:
        raise CheckFailed(f"{expected!r} is not in the output")
    return lines[-1]
