"""Whether a training with these settings would work here, and how well: checks of machine, data and speed.

Also under `accelerate launch`: then the ranks are examined together. What only one process need know is
looked at by the main one; before anything in which ranks wait for each other, all say whether they can
go on, so that one that cannot does not leave the others waiting.
"""

from collections.abc import Callable, Iterator

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from cifar10_accel import checks
from cifar10_accel.checks import Check
from cifar10_accel.console import format_seconds
from cifar10_accel.data import official
from cifar10_accel.data.batches import BatchPlan, choose_backend
from cifar10_accel.data.cifar10 import Dataset, load
from cifar10_accel.errors import SettingsError, UserError
from cifar10_accel.launch import make_accelerator, on_main, without_auto
from cifar10_accel.settings import Settings
from cifar10_accel.speed import Speed, measure
from cifar10_accel.training_state import TrainingState, build_state

LARGE_SHARE = 0.3  # of an update's time: more than that is worth loader workers


def examine(settings: Settings) -> Iterator[Check]:
    """Every check as soon as it is made, the same on all ranks. All ranks must go through it together."""
    try:
        accelerator = make_accelerator(settings)
    except SettingsError as error:
        yield Check("error", str(error))
        settings = without_auto(settings, on_cpu=not torch.accelerator.is_available())
        for check in (checks.data, checks.run_folder, checks.tracker):  # they need no other rank
            yield check(settings)
        return
    settings = without_auto(settings, on_cpu=accelerator.device.type == "cpu")
    for about_launch in (checks.ranks, checks.device, checks.precision, checks.default_config, checks.port):
        yield on_main(accelerator, lambda check=about_launch: check(accelerator))  # type: ignore[misc]
    yield on_main(accelerator, lambda: checks.data(settings))
    settings = _as_training_would(settings, accelerator)
    for about_run in (checks.run_folder, checks.tracker):
        yield on_main(accelerator, lambda check=about_run: check(settings))  # type: ignore[misc]
    yield from _examine_speed(settings, accelerator)


def _as_training_would(settings: Settings, accelerator: Accelerator) -> Settings:
    """With the data set and precision that training would put in for auto and none; nothing is downloaded."""
    dataset = settings.dataset
    if dataset == "auto":
        is_there = on_main(accelerator, lambda: official.locate(settings.data_dir) is not None)
        dataset = "cifar10" if is_there else "synthetic"
    return settings.model_copy(update={"dataset": dataset, "precision": accelerator.mixed_precision})


def _examine_speed(settings: Settings, accelerator: Accelerator) -> Iterator[Check]:
    """What needs images and a net: augmentation, disk space, speed, time and memory."""
    if settings.dataset == "cifar10" and on_main(accelerator, lambda: official.locate(settings.data_dir)) is None:
        return  # it was said; training would download it, a doctor does not
    loaded: list[tuple[Dataset, BatchPlan]] = []
    faults = _on_all(accelerator, lambda: loaded.append(_load(settings, accelerator)))
    if faults:
        yield faults[0]
        return
    ((dataset, plan),) = loaded
    yield on_main(accelerator, lambda: checks.augmentation(settings, dataset.train))
    state = build_state(settings, accelerator, dataset)
    try:
        speed = measure(state, dataset.train, plan, settings)
    except (torch.OutOfMemoryError, MemoryError) as error:
        yield Check("error", f"memory: {str(error).splitlines()[0]}", "raise --grad-accum-steps or lower --batch-size")
        return
    yield on_main(accelerator, lambda: checks.disk(settings, checkpoint_bytes=_checkpoint_bytes(state)))
    yield bottleneck(speed, settings)
    yield expected(speed, settings, plan, device=accelerator.device)


def bottleneck(speed: Speed, settings: Settings) -> Check:
    """Images/s of the loader and of the model, and which of them holds the other up."""
    loader, model = (settings.batch_size / seconds for seconds in (speed.loader_seconds, speed.model_seconds))
    text = f"speed: loader {loader:,.0f} images/s, model {model:,.0f} images/s; "
    if speed.in_workers:
        slower = "loader" if loader < model else "model"
        level: checks.Level = "warning" if loader < model else "ok"
        remedy = "raise --num-workers, or give --augment-backend batched" if loader < model else ""
        return Check(level, f"{text}side by side, and the {slower} is the bottleneck", remedy)
    share = speed.loader_seconds / speed.update_seconds
    text += f"one after the other: {share:.0%} of an update goes to the loader"
    if share > LARGE_SHARE and choose_backend(settings) == "albumentations":
        return Check("warning", text, "raise --num-workers, or give --augment-backend batched")
    return Check("ok", text)


def expected(speed: Speed, settings: Settings, plan: BatchPlan, *, device: torch.device) -> Check:
    """The time and memory of the whole training, from what a second of it took."""
    steps = settings.epochs * plan.steps_per_epoch
    steps = min(steps, settings.max_steps or steps)
    most = "at most" if settings.low_res_epochs else "about"  # measured with images of full size
    took = format_seconds(steps * speed.update_seconds)
    memory = f"{speed.memory_bytes / 1e9:.1f} GB of memory a process"
    if speed.gpu_bytes:
        total = torch.cuda.get_device_properties(device).total_memory
        memory += f", {speed.gpu_bytes / 1e9:.1f} of {total / 1e9:.0f} GB of GPU memory"
    text = f"expected: {most} {took} for {steps:,} updates, evaluations and saves not counted; {memory}"
    return Check("ok", text)


def _load(settings: Settings, accelerator: Accelerator) -> tuple[Dataset, BatchPlan]:
    dataset = load(settings, seed=settings.seed)
    return dataset, BatchPlan.of(settings, accelerator, num_images=len(dataset.train))


def _on_all(accelerator: Accelerator, action: Callable[[], None]) -> list[Check]:
    """Does something on every rank; what went wrong on any of them, for all to know. All ranks must call this."""
    found: list[Check] = []
    rank = f"rank {accelerator.process_index}"
    try:
        action()
    except UserError as error:
        found = [checks.failed(rank, error)]
    except Exception as error:  # its own traceback would come when the others wait for it already
        found = [Check("error", f"{rank}: {type(error).__name__}: {error}", "report this as a bug")]
    return list(gather_object(found))


def _checkpoint_bytes(state: TrainingState) -> int:
    average = {} if state.average is None else state.average.state_dict()
    return checks.tensor_bytes([state.net.state_dict(), average, state.optimizer.state_dict()])
