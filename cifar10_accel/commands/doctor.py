"""Check machine, launch, data and speed for a training with the given settings.

Under `accelerate launch` all ranks are checked together. Checks that need one process only are made by the main one.
Before an operation in which ranks wait for each other, all ranks exchange their errors, so that a rank that fails does
not leave the others waiting.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from cifar10_accel.commands import doctor_checks
from cifar10_accel.commands.doctor_checks import Check
from cifar10_accel.commands.doctor_launch import examine_machines
from cifar10_accel.commands.throughput import Throughput, measure
from cifar10_accel.data.cifar_files import CIFAR10, official_files
from cifar10_accel.data.datasets import load_dataset
from cifar10_accel.errors import UserError
from cifar10_accel.formatting import format_seconds
from cifar10_accel.settings import Settings
from cifar10_accel.training.accelerator import make_accelerator, run_on_main
from cifar10_accel.training.compilation import require_compiler
from cifar10_accel.training.setup import RunSetup
from cifar10_accel.training.state import TrainingState, build_state

LARGE_SHARE = 0.3  # of a step's time: if the loader takes more, loader workers pay off


def examine(settings: Settings) -> Iterator[Check]:
    """Yield each check as soon as it is made, the same on all ranks. All ranks must iterate over it."""
    try:
        accelerator = make_accelerator(settings)
    except UserError as error:
        yield Check("error", str(error), exit_code=error.exit_code)
        settings = settings.resolve_recipe(on_cpu=not torch.accelerator.is_available())
        for check in (doctor_checks.data, doctor_checks.run_folder, doctor_checks.tracker):  # need no other rank
            yield check(settings)
        return
    settings = settings.resolve_recipe(on_cpu=accelerator.device.type == "cpu")
    for about_launch in (
        doctor_checks.ranks,
        doctor_checks.device,
        partial(doctor_checks.precision, settings=settings),
        doctor_checks.default_config,
        doctor_checks.port,
    ):
        yield run_on_main(accelerator, lambda check=about_launch: check(accelerator))  # type: ignore[misc]
    yield run_on_main(accelerator, lambda: doctor_checks.data(settings))
    settings = _resolve_without_download(settings, accelerator)
    for about_run in (doctor_checks.run_folder, doctor_checks.tracker):
        yield run_on_main(accelerator, lambda check=about_run: check(settings))  # type: ignore[misc]
    yield from examine_machines(settings, accelerator)
    yield from _examine_speed(settings, accelerator)


def _resolve_without_download(settings: Settings, accelerator: Accelerator) -> Settings:
    """Resolve data set and precision as training does, but download nothing."""
    dataset = settings.dataset
    if dataset == "auto":
        is_there = run_on_main(accelerator, lambda: CIFAR10.locate(settings.data_dir) is not None)
        dataset = "cifar10" if is_there else "synthetic"
    return settings.model_copy(update={"dataset": dataset, "precision": accelerator.mixed_precision})


def _examine_speed(settings: Settings, accelerator: Accelerator) -> Iterator[Check]:
    """Yield the checks that need images and a model: augmentation, disk space, speed, time and memory."""
    official = official_files(settings.dataset)
    if official is not None and run_on_main(accelerator, lambda: official.locate(settings.data_dir)) is None:
        return  # reported by the check of the data; training would download it
    loaded: list[RunSetup] = []
    faults = _run_on_all(accelerator, lambda: loaded.append(_load(settings, accelerator)))
    if faults:
        yield faults[0]
        return
    (setup,) = loaded
    yield run_on_main(accelerator, lambda: doctor_checks.augmentation(settings, setup.dataset))
    if settings.compile:
        faults = _run_on_all(accelerator, lambda: require_compiler(accelerator.device))
        yield faults[0] if faults else Check("ok", "compile: torch.compile works")
        if faults:
            return
    state = build_state(setup)
    try:
        speed = measure(state, setup)
    except (torch.OutOfMemoryError, MemoryError) as error:
        yield Check("error", f"memory: {str(error).splitlines()[0]}", "raise --grad-accum-steps or lower --batch-size")
        return
    yield run_on_main(accelerator, lambda: doctor_checks.disk(settings, checkpoint_bytes=_checkpoint_bytes(state)))
    yield bottleneck(speed, setup)
    yield expected(speed, setup)


def bottleneck(speed: Throughput, setup: RunSetup) -> Check:
    """Check the images/s of the loader and of the model, and which of them limits the speed."""
    loader, model = (setup.plan.batch_size / seconds for seconds in (speed.loader_seconds, speed.model_seconds))
    text = f"speed: loader {loader:,.0f} images/s, model {model:,.0f} images/s; "
    if speed.in_workers:
        slower = "loader" if loader < model else "model"
        level: doctor_checks.Level = "warning" if loader < model else "ok"
        remedy = "raise --num-workers, or give --augment-backend batched" if loader < model else ""
        return Check(level, f"{text}side by side, and the {slower} is the bottleneck", remedy)
    share = speed.loader_seconds / speed.step_seconds
    text += f"one after the other: {share:.0%} of a step goes to the loader"
    if share > LARGE_SHARE and setup.loader.batched_pipeline is None:
        return Check("warning", text, "raise --num-workers, or give --augment-backend batched")
    return Check("ok", text)


def expected(speed: Throughput, setup: RunSetup) -> Check:
    """Estimate the time and memory of the whole training."""
    settings = setup.settings
    steps = settings.epochs * setup.plan.steps_per_epoch
    steps = min(steps, settings.max_steps or steps)
    most = "at most" if settings.low_res_epochs else "about"  # measured with images of full size
    took = format_seconds(steps * speed.step_seconds)
    memory = f"{speed.memory_bytes / 1e9:.1f} GB of memory a process"
    if speed.gpu_bytes:
        total = torch.cuda.get_device_properties(setup.accelerator.device).total_memory
        memory += f", {speed.gpu_bytes / 1e9:.1f} of {total / 1e9:.0f} GB of GPU memory"
    text = f"expected: {most} {took} for {steps:,} steps, without evaluations and saves; {memory}"
    return Check("ok", text)


def _load(settings: Settings, accelerator: Accelerator) -> RunSetup:
    dataset = load_dataset(settings, seed=settings.seed)
    setup = RunSetup(accelerator, settings, dataset)
    assert setup.plan  # raises if the batch cannot be shared
    return setup


def _run_on_all(accelerator: Accelerator, action: Callable[[], None]) -> list[Check]:
    """Run `action` on every rank; return the errors of all ranks, on all ranks. All ranks must call this."""
    found: list[Check] = []
    rank = f"rank {accelerator.process_index}"
    try:
        action()
    except UserError as error:
        found = [doctor_checks.failed(rank, error)]
    except Exception as error:  # a traceback would leave the other ranks waiting
        found = [Check("error", f"{rank}: {type(error).__name__}: {error}", "report this as a bug")]
    return list(gather_object(found))


def _checkpoint_bytes(state: TrainingState) -> int:
    average = {} if state.average is None else state.average.state_dict()
    return doctor_checks.tensor_bytes([state.model.state_dict(), average, state.optimizer.state_dict()])
