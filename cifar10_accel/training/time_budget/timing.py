"""Timed steps before a run, with everything that the run's own steps do, on a state that is thrown away.

Precision, threads, memory format, compilation, micro-batches and processes are those of the run. Nothing that the run
computes with is changed: its bits are those of the same run without a budget.
"""

import logging
import math
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from accelerate import Accelerator

from cifar10_accel.components import is_import_path
from cifar10_accel.data.batch_plan import BatchPlan
from cifar10_accel.errors import UserError
from cifar10_accel.formatting import format_duration
from cifar10_accel.models.registry import build_model
from cifar10_accel.runs.run_folder import RunFolder
from cifar10_accel.settings import Settings
from cifar10_accel.training.accelerator import run_on_main
from cifar10_accel.training.dynamics_recorder import DynamicsRecorder
from cifar10_accel.training.oom import explain_out_of_memory, fit_micro_batch
from cifar10_accel.training.process_state import restored_random_numbers
from cifar10_accel.training.setup import RunSetup, require_sizes_that_fit
from cifar10_accel.training.state import TrainingState, build_state
from cifar10_accel.training.step import train_step
from cifar10_accel.training.time_budget.choice import LEAST_SHARE_OF_A_CANDIDATE, Choice, StepTimes, choose

# The recipes that a budget chooses from for `auto` with a built-in model, the most accurate one first.
CPU_RECIPES = ("cpu94", "cpu")
ACCELERATOR_RECIPES = ("resnet9", "cpu94", "cpu")

# The time for all timed steps: a share of the budget, but at most so many seconds.
MEASURED_SHARE, MEASURED_SECONDS = 0.03, 20.0
LEAST_LAPS, MOST_LAPS = 3, 20
# A recipe is given up early only if it were too slow with steps that take so much less than the first, or the median.
COLD_FACTOR, MEDIAN_FACTOR = 2.0, 1.25
ALL_STEPS = 10**9  # as many as anyone asks for
PREFETCHED = 2  # batches that each worker of torch's DataLoader makes ahead

logger = logging.getLogger(__name__)


def within_time_budget(setup: RunSetup, folder: RunFolder) -> tuple[RunSetup, Choice | None]:
    """Return the setup of a run that ends within `time_budget`, and the choice. All ranks must call this.

    Args:
        setup: Of the run, with the recipe's own number of epochs.
        folder: Of the run. One that continues there keeps the recipe and the number of epochs that it began with.

    Returns:
        The setup with the recipe and the number of epochs, and the choice. The setup is unchanged if there is no
        budget or the number of epochs is given. There is no choice if nothing was measured.
    """
    accelerator, settings = setup.accelerator, setup.settings
    if settings.time_budget is None:
        return setup, None
    if not settings.has_open_length:
        _log(accelerator, f"{_title(settings)}: the given number of epochs, {settings.epochs}, is kept")
        return setup, None
    length = run_on_main(accelerator, lambda: folder.chosen_length(settings))
    choice = None
    if length is None:
        choice = choose(_timed_candidates(setup), budget=settings.time_budget)
        length = choice.times.recipe, choice.epochs
        _log(accelerator, str(choice), is_warning=not choice.fits)
    else:
        _log(accelerator, f"{_title(settings)}: recipe {length[0]}, {length[1]} epochs, as chosen when the run began")
    settings = settings.with_length(recipe=length[0], epochs=length[1])
    require_sizes_that_fit(settings, setup.dataset)  # another number of epochs may have other image sizes
    return replace(setup, settings=settings), choice


def _title(settings: Settings) -> str:
    return f"time budget {format_duration(settings.time_budget or 0)}"


def _log(accelerator: Accelerator, message: str, *, is_warning: bool = False) -> None:
    if accelerator.is_main_process:
        logger.log(logging.WARNING if is_warning else logging.INFO, message)


def _timed_candidates(setup: RunSetup) -> Iterator[StepTimes]:
    """Time the recipes that come into question, one after another. All ranks must iterate over it."""
    settings, accelerator = setup.settings, setup.accelerator
    assert settings.time_budget is not None
    recipes: tuple[str, ...] = (settings.recipe,)
    if settings.has_open_recipe and not is_import_path(settings.model):
        recipes = CPU_RECIPES if accelerator.device.type == "cpu" else ACCELERATOR_RECIPES
        with _undone(accelerator):
            recipes = tuple(name for name in recipes if name == settings.recipe or _can_train(setup, name))
    seconds = min(MEASURED_SECONDS, MEASURED_SHARE * settings.time_budget) / len(recipes)
    for recipe in recipes:
        with _undone(accelerator), explain_out_of_memory():
            times = time_steps(_with_recipe(setup, recipe), seconds=seconds, may_give_up=recipe != recipes[-1])
        yield times


def _with_recipe(setup: RunSetup, recipe: str) -> RunSetup:
    own_epochs = setup.settings.replace(recipe=recipe).epochs
    return replace(setup, settings=setup.settings.with_length(recipe=recipe, epochs=own_epochs))


def _can_train(setup: RunSetup, recipe: str) -> bool:
    """Return False for a recipe whose model, image sizes or batch size do not fit this data set or launch."""
    dataset = setup.dataset
    try:
        settings = _with_recipe(setup, recipe).settings
        require_sizes_that_fit(settings, dataset)
        BatchPlan.of(settings, setup.accelerator, len(dataset.train))
        if not is_import_path(settings.model):
            build_model(settings, num_classes=len(dataset.class_names), image_format=dataset.image_format)
    except UserError:
        return False
    return True


@contextmanager
def _undone(accelerator: Accelerator) -> Iterator[None]:
    """Context after which random numbers, the loss scale and Accelerate's list of models are as before."""
    scaler = accelerator.scaler
    loss_scale = None if scaler is None else scaler.state_dict()
    try:
        with restored_random_numbers():
            yield
    finally:
        accelerator.free_memory()
        if scaler is not None and loss_scale is not None:
            scaler.load_state_dict(loss_scale)


def time_steps(setup: RunSetup, *, seconds: float, may_give_up: bool) -> StepTimes:
    """Return the seconds of a step at each image size. All ranks must call this; all get the slowest rank's.

    Args:
        setup: Its settings have the recipe and its own number of epochs.
        seconds: Time for the timed steps; slow ones take more, as a few are needed.
        may_give_up: Stop as soon as even the fewest epochs would clearly take more than the budget.
    """
    settings = setup.settings
    state = build_state(setup)
    num_classes = len(setup.dataset.class_names)
    state.recorder = DynamicsRecorder(setup.accelerator, setup.dataset.train.labels, num_classes=num_classes)
    setup = fit_micro_batch(state, setup)
    times = StepTimes(
        recipe=settings.recipe,
        epochs=settings.epochs,
        low_res_fraction=settings.low_res_fraction,
        steps_per_epoch=setup.plan.steps_per_epoch,
        seconds=0.0,
    )
    full_size = setup.with_plan(replace(setup.plan, low_res_epochs=0))
    laps = _laps(state, full_size)
    warm_up = [next(laps) for _ in range(_warm_up_laps(setup))]  # they prepare kernels, memory and loader workers
    least = _lower_bound(times, setup, min(warm_up) / COLD_FACTOR)
    if may_give_up and not _may_fit(least, settings):
        return least
    times = replace(times, seconds=_median(laps, seconds / 2, setup))
    if settings.low_res_fraction == 0:
        return times
    least = _lower_bound(times, setup, times.seconds / MEDIAN_FACTOR)
    if may_give_up and not _may_fit(least, settings):
        return least
    laps = _laps(state, setup.with_plan(replace(setup.plan, low_res_epochs=ALL_STEPS)))
    for _ in range(_warm_up_laps(setup)):
        next(laps)
    return replace(times, low_res_seconds=_median(laps, seconds / 2, setup))


def _lower_bound(times: StepTimes, setup: RunSetup, seconds: float) -> StepTimes:
    """Return times by the least seconds of a full-size step; small images cost no less than their share of pixels."""
    share = (setup.settings.low_res_size / setup.dataset.image_format.size) ** 2
    return replace(times, seconds=seconds, low_res_seconds=share * seconds, is_lower_bound=True)


def _may_fit(times: StepTimes, settings: Settings) -> bool:
    assert settings.time_budget is not None
    return times.training_seconds(times.least_epochs(LEAST_SHARE_OF_A_CANDIDATE)) <= settings.time_budget


def _median(laps: Iterator[float], seconds: float, setup: RunSetup) -> float:
    """Return the median of the laps that fit into this time: LEAST_LAPS at least, unless they take twice the time."""
    taken = [next(laps)]
    while len(taken) < MOST_LAPS:
        elapsed = sum(taken) * setup.loader.steps_per_group
        if elapsed > 2 * seconds or (elapsed > seconds and len(taken) >= LEAST_LAPS):
            break
        taken.append(next(laps))
    return statistics.median(taken)


def _laps(state: TrainingState, setup: RunSetup) -> Iterator[float]:
    """Train, and yield the seconds per step of each lap: those of the slowest rank, the same on all ranks.

    A lap has the steps whose images are augmented in one call.
    """
    steps = setup.loader.steps_per_group
    batches = setup.loader.batches(0, ALL_STEPS)
    while True:
        start = time.perf_counter()
        for _ in range(steps):
            train_step(state, next(batches), lr=0.0)
        if setup.accelerator.device.type != "cpu":
            torch.accelerator.synchronize()
        mine = torch.tensor([time.perf_counter() - start], device=setup.accelerator.device)
        yield float(setup.accelerator.gather(mine).max()) / steps


def _warm_up_laps(setup: RunSetup) -> int:
    """Return the number of laps that are not counted: one, and those whose images workers made beforehand."""
    prepared_steps = PREFETCHED * setup.settings.num_workers if setup.loader.uses_workers else 0
    return 1 + math.ceil(prepared_steps / setup.loader.steps_per_group)
