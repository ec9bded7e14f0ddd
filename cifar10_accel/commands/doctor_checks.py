"""Read-only environment checks for `doctor`, one function each.

Each returns a `Check` of the calling process; none waits for another rank.
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

from cifar10_accel.data.augment.pipeline import AugmentedImages, training_pipeline
from cifar10_accel.data.cifar_files import NoDataError, official_files
from cifar10_accel.data.dataset import Dataset
from cifar10_accel.data.loader import lower_if_possible
from cifar10_accel.errors import UserError
from cifar10_accel.files import read_yaml
from cifar10_accel.runs import checkpoint
from cifar10_accel.runs.run_folder import RunFolder
from cifar10_accel.settings import Settings
from cifar10_accel.tracking.wandb import wandb_mode, wandb_server
from cifar10_accel.training.accelerator import launch_info, training_dtype
from cifar10_accel.training.launch.precision import explain_precision, is_computed_well

Level = Literal["ok", "warning", "error"]
DEFAULT_PORT = 29500  # of every launcher, unless another is given
CONNECT_SECONDS = 3.0


@dataclass(frozen=True)
class Check:
    """The result of a check and, unless it is ok, what to do."""

    level: Level
    text: str
    remedy: str = ""
    exit_code: int = 2  # of the command, if this is an error


def failed(subject: str, error: UserError) -> Check:
    """Return a failed check for a user error, whose message includes what to do."""
    return Check("error", f"{subject}: {error}", exit_code=error.exit_code)


def ranks(accelerator: Accelerator) -> Check:
    """Report the number of processes; `make_accelerator` has compared it with WORLD_SIZE."""
    count = accelerator.num_processes
    backend = f", joined by {torch.distributed.get_backend()}" if count > 1 else ""
    return Check("ok", f"launch: {count} process(es), WORLD_SIZE {os.environ.get('WORLD_SIZE', 'not set')}{backend}")


def device(accelerator: Accelerator) -> Check:
    """Check that no better device is unused."""
    found = launch_info(accelerator)
    text = f"device: {found['device']}, {found['threads']} CPU threads a process"
    if accelerator.device.type == "cpu":
        if shutil.which("nvidia-smi"):
            return Check(
                "warning",
                f"{text}, though this machine has nvidia-smi",
                f"install a torch for its driver (this one: CUDA {torch.version.cuda}), or unset CUDA_VISIBLE_DEVICES",
            )
        return Check("ok", text)
    visible = torch.accelerator.device_count()
    if visible > accelerator.num_processes:
        remedy = f"use all: accelerate launch --multi_gpu --num_processes {visible} -m cifar10_accel.train ..."
        return Check("warning", f"{text}; {visible} of them, {accelerator.num_processes} used", remedy)
    return Check("ok", text)


def precision(accelerator: Accelerator, settings: Settings) -> Check:
    """Report the precision and the reason for it; check that a matrix product is computed in it."""
    chosen, device = accelerator.mixed_precision, accelerator.device
    square = torch.ones(8, 8, device=device)
    with accelerator.autocast():
        found = (square @ square).dtype
    name = str(found).removeprefix("torch.")
    if found != training_dtype(accelerator):
        return Check("error", f"precision: {chosen} is set but products are {name}", "give --precision no")
    text = f"precision: products in {name} ({explain_precision(chosen, settings, device)})"
    if not is_computed_well(chosen, device):
        return Check("warning", f"{text}, which this device computes no faster than float32", "give --precision no")
    return Check("ok", text)


def default_config(accelerator: Accelerator) -> Check:
    """Check Accelerate's default configuration file, which a launch without --config_file uses."""
    path = Path(default_config_file)
    if not path.exists():
        return Check("ok", "accelerate: no default configuration in the home folder")
    remedy = f"launch with --config_file accelerate_config.yaml, or delete {path}"
    try:
        saved = read_yaml(path)
    except UserError as error:
        return Check("warning", f"accelerate: {error}", remedy)
    used = {
        "mixed_precision": accelerator.mixed_precision,
        "num_processes": accelerator.num_processes,
        "use_cpu": accelerator.device.type == "cpu",
    }
    if str(saved.get("mixed_precision")) in ("no", "False"):  # asks for nothing, so `auto` decides
        del used["mixed_precision"]
    stale = [f"{name} {saved[name]} (here {used[name]})" for name in used if saved.get(name, used[name]) != used[name]]
    if stale:
        text = f"accelerate: {path} is used by a launch without --config_file and has {', '.join(stale)}"
        return Check("warning", text, remedy)
    return Check("ok", f"accelerate: {path} has the same values as this launch")


def port(accelerator: Accelerator) -> Check:
    """Check that this launch, or the next one on this machine, has a port of its own."""
    remedy = "give the launcher a free port: --main_process_port 0 (torchrun: --standalone)"
    if int(os.environ.get("LOCAL_WORLD_SIZE", "1")) < accelerator.num_processes:
        remedy = "if other launches share a machine with this one, give all machines another --main_process_port"
    if accelerator.num_processes > 1:
        used = int(os.environ.get("MASTER_PORT", "0"))
        if used == DEFAULT_PORT:
            return Check(
                "warning", f"port: this launch uses {used}, the default of every launch on this machine", remedy
            )
        return Check("ok", f"port: the processes meet at {os.environ.get('MASTER_ADDR')}:{used}")
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind(("127.0.0.1", DEFAULT_PORT))
        except OSError:
            return Check("warning", f"port: {DEFAULT_PORT}, every launcher's default, is in use", remedy)
    return Check("ok", f"port: {DEFAULT_PORT} is free (needed only by several processes)")


def data(settings: Settings) -> Check:
    """Check that the images are present and have the published digests; nothing is downloaded."""
    if settings.dataset == "synthetic":
        return Check("ok", "data: SYNTHETIC, generated at the start; no results for CIFAR-10")
    if settings.dataset == "folder":
        return Check("ok", f"data: class folders in {settings.data_dir}")  # they are checked when they are read
    official = official_files(settings.dataset)
    if official is None:
        return Check("ok", f"data: {settings.dataset}, which the run loads")
    fetch = f"run `{official.fetch_command} --data-dir {settings.data_dir}`"
    try:
        files = official.verify(settings.data_dir)
    except NoDataError:
        if settings.dataset == "auto":
            return Check(
                "warning",
                f"data: no CIFAR-10 in {settings.data_dir}: a run downloads it or, if it "
                "cannot, trains on SYNTHETIC images",
                fetch,
            )
        return Check("error", f"data: no {official.title} in {settings.data_dir}", fetch, exit_code=3)
    except UserError as error:
        return failed("data", error)
    return Check("ok", f"data: {official.title} in {files[0][0].parent}, {len(files)} files with the published digests")


def run_folder(settings: Settings) -> Check:
    """Check that a training can write to its folder, and whether it would start or continue a run there."""
    folder = RunFolder.of(settings)
    other = "give another --run-name"
    try:
        with tempfile.TemporaryFile(dir=existing_folder(folder.path)):
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
        length = folder.chosen_length(settings) if settings.has_open_length else None
        if length is not None:
            settings = settings.with_length(recipe=length[0], epochs=length[1])
        if folder.settings().weight_affecting() != settings.weight_affecting():
            return Check("error", f"run folder: {folder.path} holds a run with other settings", other)
        newest = checkpoint.newest(folder.checkpoints)
    except UserError as error:
        return failed("run folder", error)
    if folder.is_finished():
        return Check("ok", f"run folder: {folder.path} holds this run (finished)")
    return Check(
        "ok", f"run folder: {folder.path} holds this run; it continues from {newest.name if newest else 'the start'}"
    )


def disk(settings: Settings, *, checkpoint_bytes: int) -> Check:
    """Check that the disk has space for the checkpoints that are kept and the one being written."""
    place = existing_folder(RunFolder.of(settings).path)
    need, free = (settings.keep_checkpoints + 1) * checkpoint_bytes, shutil.disk_usage(place).free
    text = (
        f"disk: {_size(free)} free, checkpoints need {_size(need)} "
        f"({settings.keep_checkpoints} kept and one being written, {_size(checkpoint_bytes)} each)"
    )
    if free < need:
        return Check("error", text, "make room, or give a --run-dir on another disk")
    if free < 2 * need:
        return Check("warning", text, "make room: another run of this size would not fit")
    return Check("ok", text)


def tracker(settings: Settings) -> Check:
    """Check the experiment tracker. Never prompts for a key; waits for a few seconds at most."""
    if settings.tracker != "wandb":
        return Check("ok", f"tracking: metrics.jsonl{'' if settings.tracker == 'none' else ' and ' + settings.tracker}")
    try:
        mode, server = wandb_mode(settings.wandb_mode), wandb_server()
    except Exception as error:  # an error of its client must not end the other checks
        return Check(
            "warning",
            f"tracking: W&B cannot be used as set ({error}); runs are recorded offline",
            "`wandb login`, or --wandb-mode offline",
        )
    if mode == "online" and not _is_reachable(server):
        return Check(
            "warning",
            f"tracking: {server} does not respond within {CONNECT_SECONDS:g} s; runs are recorded offline",
            "check the network, or give --wandb-mode offline",
        )
    hint = "; `wandb sync` uploads them, `wandb login` makes them online" if mode == "offline" else ""
    return Check("ok", f"tracking: W&B, {mode}{hint}")


def augmentation(settings: Settings, dataset: Dataset) -> Check:
    """Check that loader workers augment an image as a function of (seed, epoch, index)."""
    train, image_format = dataset.train, dataset.image_format
    pipeline = training_pipeline(settings, image_format, num_classes=len(dataset.class_names))
    if lower_if_possible(pipeline, settings, image_format) is not None:
        return Check("ok", "augmentation: whole batches on the device, no workers")
    if not settings.augment:
        return Check("ok", "augmentation: none")
    images = AugmentedImages(train.images, train.labels, pipeline=pipeline, seed=settings.seed)
    requested = [[(epoch, index) for index in range(8)] for epoch in (0, 0, 1, 1)]
    workers = min(settings.num_workers, 2)  # batches go to two workers in turn
    found = [batch[0] for batch in DataLoader(images, batch_sampler=requested, num_workers=workers)]
    if not (torch.equal(found[0], found[1]) and torch.equal(found[2], found[3])):
        return Check(
            "error",
            "augmentation: two workers produce different pixels for the same image and epoch",
            "give --augment-backend batched, and report this as a bug",
        )
    if torch.equal(found[0], found[2]):
        return Check("error", "augmentation: two epochs have the same pixels", "report this as a bug")
    return Check(
        "ok",
        f"augmentation: Albumentations in {settings.num_workers} workers; the same pixels from each, "
        "other pixels in each epoch",
    )


def existing_folder(path: Path) -> Path:
    """Return the folder itself or its nearest parent that exists."""
    return next(place for place in (path.absolute(), *path.absolute().parents) if place.is_dir())


def _is_locked(path: Path) -> bool:
    if not path.exists():
        return False
    try:
        with FileLock(path, timeout=0):
            return False
    except Timeout:
        return True


def _is_reachable(url: str) -> bool:
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
    """Return the bytes of all tensors in nested mappings and lists."""
    if isinstance(tree, torch.Tensor):
        return tree.numel() * tree.element_size()
    if isinstance(tree, dict):
        tree = list(tree.values())
    return sum(map(tensor_bytes, tree)) if isinstance(tree, list | tuple) else 0
