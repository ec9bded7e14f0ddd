"""Checks that call the package itself. Each returns the telling line and raises `CheckFailed` if it does not hold."""

import logging
import math
import os
import shutil
import subprocess
import sys
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any
from unittest.mock import patch

import torch
import torch._dynamo

from benchmarks.gpu.profiling import Trainer
from benchmarks.gpu.session import Session, noise, read_json
from benchmarks.timed import timed_run
from cifar10_accel.data.augment.batched import lower
from cifar10_accel.data.augment.pipeline import image_keys, training_pipeline
from cifar10_accel.recipes import recipe_names
from cifar10_accel.runs.metrics_jsonl import read_metrics
from cifar10_accel.subprocesses import settings_to_flags
from cifar10_accel.train import fit
from cifar10_accel.training.cuda_graphs import _Graph
from cifar10_accel.training.run import load_run

PRECISIONS = {"fp32": "no", "fp16": "fp16", "bf16": "bf16"}
SHORT_STEPS = 24
FIRST_STEPS = 5  # whose mean loss is compared
LARGEST_DIFFERENCE = 0.03  # of the losses of the precisions, relative
OOM_GIB = 1.0
OOM_SPLIT = "out of memory: using"


class CheckFailed(Exception):
    """A check does not hold."""


def check_dir(session: Session, name: str) -> Path:
    """Return the run folder of a check."""
    return session.folder("checks") / "runs" / name


def short_flags(session: Session, recipe: str, **more: Any) -> dict[str, Any]:
    """Return the flags of a training of a few steps on synthetic images."""
    size = {"max_steps": 2} if session.is_tiny else {"max_steps": SHORT_STEPS, "synthetic_size": 10_000}
    short = {"dataset": "synthetic", "eval_every": 100, "log_every": 1}
    return session.flags(recipe, **(short | size | more))


def train_short(session: Session, recipe: str, precision: str, name: str, **more: Any) -> str:
    """Train a few steps into a new run folder, with evaluation and report."""
    run_dir = check_dir(session, name)
    shutil.rmtree(run_dir, ignore_errors=True)
    flags = short_flags(session, recipe, precision=precision, run_dir=run_dir, **more)
    settings = session.settings(**flags)
    run = fit(settings)
    if settings.max_steps is not None and run.summary["step"] != settings.max_steps:
        raise CheckFailed(f"{run.summary['step']} steps instead of {settings.max_steps}")
    losses = [line["train/loss"] for line in run.metrics if "train/loss" in line]
    accuracy = run.summary["test/accuracy"]
    return f"loss {losses[0]:.3f} to {losses[-1]:.3f} in {len(losses)} steps, accuracy {accuracy:.1%}"


def same_losses(session: Session) -> str:
    """Compare the mean losses of each recipe's first steps in the three precisions; weights and images are the same."""
    found, worst = [], 0.0
    for recipe in recipe_names():
        paths = [check_dir(session, f"{recipe}-{precision}") / "metrics.jsonl" for precision in PRECISIONS]
        lines = [[line for line in read_metrics(path) if "train/loss" in line] for path in paths if path.exists()]
        # Later a recipe with a high LR may be chaotic.
        losses = [fmean(row["train/loss"] for row in rows[:FIRST_STEPS]) for rows in lines if rows]
        if len(losses) > 1:
            found.append(f"{recipe} {' '.join(f'{loss:.3f}' for loss in losses)}")
            worst = max(worst, max(losses) / min(losses) - 1)
    if not found:
        raise CheckFailed("no recipe was trained in two precisions")
    line = f"largest difference {worst:.1%}; {', '.join(found)}"
    if not worst <= LARGEST_DIFFERENCE:
        raise CheckFailed(line)
    return line


def no_waits(session: Session, precision: str) -> str:
    """Take steps of every recipe while it is an error that the host waits for the GPU."""
    dataset = noise(*((200, 40) if session.is_tiny else (20_000, 100)))
    failures = []
    for recipe, graph in product(recipe_names(), (False, True)):
        given = {"precision": precision, "compile": False, "cuda_graph": graph, "dataset": "synthetic"}
        trainer = Trainer(session.settings(recipe, **given), dataset)
        trainer.steps(5)  # within them the CUDA graph is recorded
        name = f"{recipe}{', CUDA graph' * graph}"
        graphs = trainer.state.cuda_graphs
        if graph and torch.cuda.is_available() and (graphs is None or not graphs.num_recorded):
            failures.append(f"{name}: no graph was recorded")
        try:
            _without_waits(trainer, num_steps=9)  # over the end of a group of batches that are augmented together
        except RuntimeError as error:
            failures.append(f"{name}: {str(error).splitlines()[0]} at {_place(error)}")
        totals = trainer.state.metrics_since_log.tolist()
        if not all(map(math.isfinite, totals)):
            failures.append(f"{name}: the loss is not finite")
    if failures:
        raise CheckFailed("; ".join(failures))
    return f"{len(recipe_names())} recipes, 9 steps each without a wait, with and without CUDA graphs"


def same_with_graphs(session: Session, recipe: str) -> str:
    """Compare the losses of every step with and without CUDA graphs, in float32 with deterministic kernels."""
    losses = []
    for graph in (False, True):
        name = f"{recipe}-graph-{graph}"
        with patch.object(_Graph, "launch", autospec=True, side_effect=_Graph.launch) as launch:
            train_short(session, recipe, "no", name, cuda_graph=graph, compile=False, deterministic=True)
        if graph and torch.cuda.is_available() and not launch.called:
            raise CheckFailed("no graph was launched")
        lines = read_metrics(check_dir(session, name) / "metrics.jsonl")
        losses.append([line["train/loss"] for line in lines if "train/loss" in line])
    worst = max(abs(one - other) / one for one, other in zip(*losses, strict=True))
    line = f"{len(losses[0])} losses, largest relative difference {worst:.1e}"
    if worst != 0:
        raise CheckFailed(line)
    return line


def _without_waits(trainer: Trainer, *, num_steps: int) -> None:
    if not torch.cuda.is_available():
        trainer.steps(num_steps)
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        trainer.steps(num_steps)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def _place(error: BaseException) -> str:
    """Return the lines of this package that an error came through, the innermost first."""
    frames, trace = [], error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        frames.append(f"{Path(code.co_filename).name}:{trace.tb_lineno} {code.co_name}")
        trace = trace.tb_next
    return " < ".join(reversed(frames[-4:]))


def same_pixels(session: Session) -> str:
    """Compare augmented images of the CPU and the device bit for bit, in every recipe, precision and three epochs."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    num_images = 64 if session.is_tiny else 4096
    images = torch.from_numpy(noise(num_images, 10).train.images).permute(0, 3, 1, 2)
    on_device, indices = images.to(device), torch.arange(num_images)
    failures, num_compared = [], 0
    for recipe in recipe_names():
        augment = lower(training_pipeline(session.settings(recipe)))
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            for epoch in range(3):
                expected = augment(images, image_keys(0, epoch, indices), dtype)
                found = augment(on_device, image_keys(0, epoch, indices.to(device)), dtype).cpu()
                num_compared += 1
                if not torch.equal(expected, found):
                    failures.append(f"{recipe} {dtype} epoch {epoch}: {(expected != found).float().mean():.2%} differ")
    if failures:
        raise CheckFailed("; ".join(failures[:4]))
    return f"{num_compared} times {num_images:,} images, the same bits"


def no_recompilation(session: Session, precision: str) -> str:
    """Train three models one after another, compiled, with small images first; only the first may compile."""
    dataset = noise(*((120, 40) if session.is_tiny else (8_000, 2_000)))
    settings = session.settings("speed94", precision=precision, compile=True, low_res_fraction=0.5, dataset="synthetic")
    first = timed_run(settings, dataset)
    with torch._dynamo.config.patch(error_on_recompile=True):
        seconds = [timed_run(settings.model_copy(update={"seed": seed}), dataset).seconds for seed in (1, 2)]
    return f"first model {first.seconds:.1f} s, then {', '.join(f'{one:.2f} s' for one in seconds)}"


def little_memory(session: Session) -> str:
    """Train with a batch that does not fit into the memory: it has to be split, and the run goes on."""
    share = OOM_GIB * 2**30 / torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(share)
    messages = _Messages()
    logging.getLogger("cifar10_accel").addHandler(messages)
    line = train_short(session, "resnet9", "fp16", "oom", synthetic_size=4000, batch_size=2000, epochs=12)
    splits = [text for text in messages.texts if OOM_SPLIT in text]
    if not splits:
        raise CheckFailed(f"a batch of 2,000 fitted into {OOM_GIB:g} GiB, so nothing was tried ({line})")
    peak = torch.cuda.max_memory_allocated() / 2**20
    return f"{splits[-1].partition(';')[0]}; peak {peak:.0f} MiB of {1024 * OOM_GIB:.0f}; {line}"


class _Messages(logging.Handler):
    """Keeps the texts of all messages."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the text of a message."""
        self.texts.append(record.getMessage())


def two_gloo_ranks(session: Session) -> str:
    """Train with two processes on one device; they talk by gloo, because NCCL refuses two ranks on one GPU."""
    run_dir = check_dir(session, "two-ranks")
    shutil.rmtree(run_dir, ignore_errors=True)
    base = os.environ | {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": "0"}
    base |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29577"}
    flags = short_flags(session, "smoke", run_dir=run_dir, ema_decay=0.9)
    command = [sys.executable, "-m", "benchmarks.gpu.gloo_rank", *settings_to_flags(flags)]
    ranks = [subprocess.Popen(command, env=base | {"RANK": str(rank)}) for rank in range(2)]
    codes = [rank.wait() for rank in ranks]
    if any(codes):
        raise CheckFailed(f"exit codes {codes}")
    return _result(run_dir)


def torchrun(session: Session, name: str, **more: Any) -> str:
    """Train as one process under torchrun: DDP over NCCL on a GPU, over gloo on a CPU."""
    run_dir = check_dir(session, name)
    shutil.rmtree(run_dir, ignore_errors=True)
    flags = short_flags(session, "smoke", run_dir=run_dir, **more)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "1"]
    done = subprocess.run([sys.executable, *launcher, "-m", "cifar10_accel.train", *settings_to_flags(flags)])
    if done.returncode:
        raise CheckFailed(f"exit code {done.returncode}")
    return _result(run_dir)


def _result(run_dir: Path) -> str:
    run, launched = load_run(run_dir), read_json(run_dir / "environment.json")
    launch = f"{launched['processes']} process(es), {launched['precision']}"
    return f"{launch}, {run.summary['step']} steps, accuracy {run.summary['test/accuracy']:.1%}"
