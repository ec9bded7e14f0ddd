"""What can be said of a machine before a training: one small function per question, each looking, none changing.

Each returns a `Check`. They hold for the process that asks; none of them waits for another rank.
"""

import os
import shutil
import socket
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import torch
from accelerate import Accelerator
from accelerate.commands.config.config_args import default_config_file
from filelock import FileLock, Timeout
from torch.utils.data import DataLoader

from cifar10_accel import checkpoint
from cifar10_accel.data import official
from cifar10_accel.data.augment import AugmentedImages, training_pipeline
from cifar10_accel.data.batches import choose_backend
from cifar10_accel.data.cifar10 import Split
from cifar10_accel.errors import InputError, UserError
from cifar10_accel.launch import has_bf16_instructions, launched_as
from cifar10_accel.recipes import read_yaml
from cifar10_accel.run_folder import RunFolder
from cifar10_accel.settings import Settings
from cifar10_accel.wandb_mirror import wandb_mode, wandb_server

Level = Literal["ok", "warning", "error"]
DEFAULT_PORT = 29500  # of every launcher that is not told another
CONNECT_SECONDS = 3.0
DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Check:
    """An answer: what was found and, unless all is well, what to do."""

    level: Level
    text: str
    remedy: str = ""
    exit_code: int = 2  # of the command, if this is an error


def failed(what: str, error: UserError) -> Check:
    """The check that a user error stands for; the error's own words say what to do."""
    return Check("error", f"{what}: {error}", exit_code=3 if isinstance(error, InputError) else 2)


def ranks(accelerator: Accelerator) -> Check:
    """How many processes there are; `make_accelerator` has compared that with WORLD_SIZE."""
    count = accelerator.num_processes
    backend = f", joined by {torch.distributed.get_backend()}" if count > 1 else ""
    return Check("ok", f"launch: {count} process(es), WORLD_SIZE {os.environ.get('WORLD_SIZE', 'not set')}{backend}")


def device(accelerator: Accelerator) -> Check:
    """The device in use, and whether there is a better one."""
    found = launched_as(accelerator)
    text = f"device: {found['device']}, {found['threads']} CPU threads a process"
    if accelerator.device.type == "cpu":
        if shutil.which("nvidia-smi"):
            return Check(
                "warning", f"{text}, though this machine has nvidia-smi",
                f"install a torch for its driver (this one: CUDA {torch.version.cuda}), or unset CUDA_VISIBLE_DEVICES",
            )  # fmt: skip
        return Check("ok", text)
    visible = torch.accelerator.device_count()
    if visible > accelerator.num_processes:
        remedy = f"use all: accelerate launch --multi_gpu --num_processes {visible} -m cifar10_accel.train ..."
        return Check("warning", f"{text}; {visible} of them, {accelerator.num_processes} used", remedy)
    return Check("ok", text)


def precision(accelerator: Accelerator) -> Check:
    """The precision that a matrix product is really computed in."""
    wanted = accelerator.mixed_precision
    square = torch.ones(8, 8, device=accelerator.device)
    with accelerator.autocast():
        found = (square @ square).dtype
    name = str(found).removeprefix("torch.")
    if found != DTYPES.get(wanted):
        return Check("error", f"precision: {wanted} is set but products are {name}", "give --precision no")
    if accelerator.device.type != "cpu":
        return Check("ok", f"precision: products in {name}")
    if wanted == "bf16" and not has_bf16_instructions():
        return Check("warning", "precision: bfloat16 without bf16 instructions: many times slower than float32",
                     "give --precision no")  # fmt: skip
    here = "has" if has_bf16_instructions() else "has no"
    return Check("ok", f"precision: products in {name}; this CPU {here} bf16 instructions")


def default_config(accelerator: Accelerator) -> Check:
    """Accelerate's own configuration file, which a launch without --config_file obeys unasked."""
    path = Path(default_config_file)
    if not path.exists():
        return Check("ok", "accelerate: no default configuration in the home folder")
    remedy = f"launch with --config_file accelerate_config.yaml, or delete {path}"
    try:
        saved = read_yaml(path)
    except UserError as error:
        return Check("warning", f"accelerate: {error}", remedy)
    used = {"mixed_precision": accelerator.mixed_precision, "num_processes": accelerator.num_processes,
            "use_cpu": accelerator.device.type == "cpu"}  # fmt: skip
    stale = [f"{name} {saved[name]} (here {used[name]})" for name in used if saved.get(name, used[name]) != used[name]]
    if stale:
        text = f"accelerate: {path} would be used by a launch without --config_file and says {', '.join(stale)}"
        return Check("warning", text, remedy)
    return Check("ok", f"accelerate: {path} agrees with what is used")


def port(accelerator: Accelerator) -> Check:
    """Whether this launch, or the next one on this machine, finds a port of its own."""
    remedy = "give the launcher a free port: --main_process_port 0 (torchrun: --standalone)"
    if accelerator.num_processes > 1:
        used = int(os.environ.get("MASTER_PORT", "0"))
        if used == DEFAULT_PORT:
            return Check("warning", f"port: this launch uses {used}, as any other on this machine would", remedy)
        return Check("ok", f"port: the processes meet at {os.environ.get('MASTER_ADDR')}:{used}")
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind(("127.0.0.1", DEFAULT_PORT))
        except OSError:
            return Check("warning", f"port: {DEFAULT_PORT}, every launcher's default, is taken", remedy)
    return Check("ok", f"port: {DEFAULT_PORT} is free (needed only by several processes)")


def data(settings: Settings) -> Check:
    """Whether the images are there and as published; nothing is downloaded."""
    if settings.dataset == "synthetic":
        return Check("ok", "data: SYNTHETIC, drawn at the start; says nothing about CIFAR-10")
    if settings.dataset == "folder":
        return Check("ok", f"data: class folders in {settings.data_dir}")  # reading them is the check
    fetch = f"run `cifar10-accel data fetch --data-dir {settings.data_dir}`"
    try:
        files = official.verify(settings.data_dir)
    except official.NoDataError:
        if settings.dataset == "auto":
            return Check("warning", f"data: no CIFAR-10 in {settings.data_dir}: a run downloads it or, where it "
                         "cannot, trains on SYNTHETIC images", fetch)  # fmt: skip
        return Check("error", f"data: no CIFAR-10 in {settings.data_dir}", fetch, exit_code=3)
    except UserError as error:
        return failed("data", error)
    return Check("ok", f"data: CIFAR-10 in {files[0][0].parent}, {len(files)} files with the published digests")


def run_folder(settings: Settings) -> Check:
    """Whether a training could write to its folder now, and whether it would start anew or go on."""
    folder = RunFolder.of(settings)
    other = "give another --run-name"
    try:
        with tempfile.TemporaryFile(dir=_existing(folder.path)):
            pass
    except OSError as error:
        return Check(
            "error", f"run folder: {folder.path} cannot be written ({error.strerror})", "give another --run-dir"
        )
    if not (folder.path / "settings.yaml").exists():
        return Check("ok", f"run folder: {folder.path} is new")
    if _is_locked(folder.path / ".lock"):
        return Check("error", f"run folder: a training is running in {folder.path}", other)
    try:
        if folder.settings().math() != settings.math():
            return Check("error", f"run folder: {folder.path} holds a run with other settings", other)
        newest = checkpoint.newest(folder.checkpoints)
    except UserError as error:
        return failed("run folder", error)
    if folder.is_finished():
        return Check("ok", f"run folder: {folder.path} holds this run (finished)")
    return Check(
        "ok", f"run folder: {folder.path} holds this run; it goes on from {newest.name if newest else 'the start'}"
    )


def disk(settings: Settings, *, checkpoint_bytes: int) -> Check:
    """Whether the checkpoints that are kept, and the one being written, have room."""
    place = _existing(RunFolder.of(settings).path)
    need, free = (settings.keep_checkpoints + 1) * checkpoint_bytes, shutil.disk_usage(place).free
    text = (f"disk: {_size(free)} free, checkpoints need {_size(need)} "
            f"({settings.keep_checkpoints} kept and one being written, {_size(checkpoint_bytes)} each)")  # fmt: skip
    if free < need:
        return Check("error", text, "make room, or give a --run-dir on another disk")
    if free < 2 * need:
        return Check("warning", text, "make room: another run as large would not fit")
    return Check("ok", text)


def tracker(settings: Settings) -> Check:
    """Where metrics would go besides metrics.jsonl. Never asks for a key and waits a few seconds at most."""
    if settings.tracker != "wandb":
        return Check("ok", f"tracking: metrics.jsonl{'' if settings.tracker == 'none' else ' and ' + settings.tracker}")
    try:
        mode, server = wandb_mode(settings.wandb_mode), wandb_server()
    except Exception as error:  # whatever its client raises must not end the examination
        return Check("warning", f"tracking: W&B cannot be used as wanted ({error}); runs are recorded offline",
                     "`wandb login`, or --wandb-mode offline")  # fmt: skip
    if mode == "online" and not _answers(server):
        return Check("warning", f"tracking: {server} does not answer within {CONNECT_SECONDS:g} s; runs are recorded "
                     "offline", "mend the network, or give --wandb-mode offline")  # fmt: skip
    hint = "; `wandb sync` uploads them, `wandb login` makes them online" if mode == "offline" else ""
    return Check("ok", f"tracking: W&B, {mode}{hint}")


def augmentation(settings: Settings, train: Split) -> Check:
    """Whether loader workers make of an image what (seed, epoch, index) says, and something else in each epoch."""
    if choose_backend(settings) == "batched":
        return Check("ok", "augmentation: whole batches on the device, no workers")
    if not settings.augment:
        return Check("ok", "augmentation: none")
    images = AugmentedImages(train.images, train.labels, pipeline=training_pipeline(settings), seed=settings.seed)
    asked = [[(epoch, index) for index in range(8)] for epoch in (0, 0, 1, 1)]
    workers = min(settings.num_workers, 2)  # batches go to two workers in turn
    found = [batch[0] for batch in DataLoader(images, batch_sampler=asked, num_workers=workers)]
    if not (torch.equal(found[0], found[1]) and torch.equal(found[2], found[3])):
        return Check("error", "augmentation: two workers make different pixels of the same image and epoch",
                     "give --augment-backend batched, and report this as a bug")  # fmt: skip
    if torch.equal(found[0], found[2]):
        return Check("error", "augmentation: two epochs see the same pixels", "report this as a bug")
    return Check("ok", f"augmentation: Albumentations in {settings.num_workers} workers; the same pixels from each, "
                 "others in each epoch")  # fmt: skip


def _existing(path: Path) -> Path:
    """The folder itself or its nearest parent that exists."""
    return next(place for place in (path.absolute(), *path.absolute().parents) if place.is_dir())


def _is_locked(path: Path) -> bool:
    if not path.exists():
        return False
    try:
        with FileLock(path, timeout=0):
            return False
    except Timeout:
        return True


def _answers(url: str) -> bool:
    parts = urlsplit(url)
    address = (parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80))
    try:
        with socket.create_connection(address, timeout=CONNECT_SECONDS):
            return True
    except OSError:
        return False


def _size(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.1f} MB"


def tensor_bytes(tree: Any) -> int:
    """Bytes of all tensors in nested mappings and lists."""
    if isinstance(tree, torch.Tensor):
        return tree.numel() * tree.element_size()
    if isinstance(tree, dict):
        tree = list(tree.values())
    return sum(map(tensor_bytes, tree)) if isinstance(tree, list | tuple) else 0
