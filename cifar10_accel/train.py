"""Train a model: launch and data; model, optimizer, schedule, callbacks; resume; loop; final evaluation.

    accelerate launch -m cifar10_accel.train --recipe cpu

The same command again continues a run that was stopped or killed, with the same final weights.
"""

import logging
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Unpack

from cifar10_accel.components import named_objects
from cifar10_accel.data.dataset import Dataset, images_digest
from cifar10_accel.errors import OutOfResourcesError, Preempted, SettingsError
from cifar10_accel.formatting import dataset_title, format_seconds
from cifar10_accel.runs import checkpoint
from cifar10_accel.runs.environment import environment
from cifar10_accel.runs.run_folder import RunFolder
from cifar10_accel.settings import Settings
from cifar10_accel.tracking.progress import RunProgress
from cifar10_accel.tracking.tracker import Tracker
from cifar10_accel.training.accelerator import launch_info, run_on_main
from cifar10_accel.training.callbacks import CallbackContext, Callbacks
from cifar10_accel.training.compilation import many_compiled_models
from cifar10_accel.training.dynamics_recorder import DynamicsRecorder
from cifar10_accel.training.evaluation import evaluate_dataset, evaluate_split
from cifar10_accel.training.launch.agreement import require_same_checkpoint
from cifar10_accel.training.launch.joining import current_launch
from cifar10_accel.training.launch.lost_peer import explain_lost_peer
from cifar10_accel.training.metrics_logger import Metrics, MetricsLogger
from cifar10_accel.training.oom import explain_out_of_memory, fit_micro_batch
from cifar10_accel.training.optimization.lr_schedule import make_schedule
from cifar10_accel.training.outputs import write_results
from cifar10_accel.training.preemption import PreemptionHandler
from cifar10_accel.training.process_state import restored_process_state
from cifar10_accel.training.run import Components, Run, with_components
from cifar10_accel.training.setup import RunSetup, set_up_run
from cifar10_accel.training.state import TrainingState, build_state
from cifar10_accel.training.step import explain_non_finite, require_finite, train_step
from cifar10_accel.training.time_budget.timing import within_time_budget
from cifar10_accel.training.time_budget.watch import BudgetWatch

logger = logging.getLogger(__name__)


def fit(settings: Settings | None = None, **components: Unpack[Components]) -> Run:
    """Train as the settings say. All ranks must call this.

    Leaves a run folder (runs/run_folder.py lists its files); a run that is finished there is not trained again. The
    process is left as it was: threads, random numbers, signal handlers, deterministic mode.

    Args:
        settings: What to train; None: the defaults.
        **components: Python objects in place of the settings of the same name, see `Components`.

    Returns:
        The run: summary, model, predictions.

    Raises:
        UserError: Something that the user can correct; its message is one line.
        Preempted: SIGTERM or SIGINT was received and the state is saved.
    """
    settings, objects = with_components(settings or Settings(), components)
    with named_objects(objects), restored_process_state(), many_compiled_models(settings.compile):
        return Run(_train(settings), objects)


def _train(settings: Settings) -> Path:
    """Train and return the run folder."""
    # 1. Launch, settings and data: the same on every rank.
    setup = set_up_run(settings)
    folder = RunFolder.of(setup.settings)
    setup, choice = within_time_budget(setup, folder)
    accelerator, settings, steps_per_epoch = setup.accelerator, setup.settings, setup.plan.steps_per_epoch
    run_on_main(accelerator, lambda: folder.open(settings, setup.dataset))
    setup = setup.with_images_as(run_on_main(accelerator, folder.recorded_image_format))
    dataset = setup.dataset

    # 2. Model, optimizer, callbacks and schedule. The LR is a function of the step: nothing to prepare or to save.
    with folder.record_failure(is_main=accelerator.is_main_process):
        newest = run_on_main(accelerator, lambda: checkpoint.clean_up(folder.checkpoints))
        state = build_state(setup, is_resumed=newest is not None)
        state.callbacks = callbacks = Callbacks(settings, dataset, accelerator)
        recorder = DynamicsRecorder(accelerator, dataset.train.labels, num_classes=len(dataset.class_names))
        state.recorder = recorder
        schedule = make_schedule(settings, steps_per_epoch=steps_per_epoch)
        last_step = min(schedule.total_steps, settings.max_steps or schedule.total_steps)

        # 3. Resume from the newest valid checkpoint, if there is one.
        if newest is not None:
            require_same_checkpoint(accelerator, newest)
            saved = checkpoint.load(newest)
            state.restore(saved, source=newest)
            recorder.restore(saved.training["dynamics"], folder.dynamics, num_epochs=state.step // steps_per_epoch)
            logger.info("resuming from %s", newest)
        _require_no_more_steps(state, last_step, folder)
        stop_step = state.step if callbacks.stop_reason else last_step  # stopped early before
        if run_on_main(accelerator, folder.is_finished) and state.step >= stop_step:
            logger.info("%s is finished: nothing to train (give another --run-name to train again)", folder.path)
            run_on_main(accelerator, folder.unlock)
            return folder.path
        metrics = _open_metrics_logger(setup, folder, resume_step=state.step, stop_step=stop_step)

    # 4. The loop: one iteration is one optimizer step.
    checkpoint_steps = max(1, round(settings.checkpoint_every * steps_per_epoch))
    status = folder.record_status(is_main=accelerator.is_main_process)
    lost_peers = explain_lost_peer(current_launch())
    # The handler is outermost: a second signal must not interrupt the others on their way out.
    with PreemptionHandler(accelerator) as preemption, status, lost_peers, explain_out_of_memory(), metrics:
        setup = fit_micro_batch(state, setup)
        context = _callback_context(setup, state, folder, metrics)
        callbacks.call("on_fit_start", context)
        callbacks.raise_error()
        state.stopwatch.start()
        budget_watch = BudgetWatch(setup, state, choice)
        for batches in setup.loader.batches(state.step, stop_step):
            lr = schedule.lr_at(state.step)
            with explain_non_finite(state, batches, folder, lr=lr):
                train_step(state, batches, lr=lr)
            ends_epoch, ends_run = state.step % steps_per_epoch == 0, state.step == stop_step
            if state.step % settings.log_every == 0 or ends_epoch or ends_run:
                metrics.log_step(state, lr=lr)
            if ends_epoch:
                recorder.end_epoch()
                budget_watch.end_epoch(state)
            callbacks.call("on_step_end", context)
            if ends_epoch and not ends_run:
                metrics.log_epoch(state, _evaluate_epoch(state, dataset, epoch=state.step // steps_per_epoch))
                callbacks.call("on_epoch_end", context)
            ends_run = ends_run or bool(callbacks.stop_reason)
            stop_signal = preemption.received(state.step)
            must_save = ends_run or stop_signal != 0 or callbacks.error is not None
            if state.step % checkpoint_steps == 0 or must_save:
                metrics.finish()
                _save_checkpoint(state, recorder, folder, must_succeed=must_save)
            callbacks.raise_error()
            if ends_run:
                break
            if stop_signal:
                raise Preempted(stop_signal, step=state.step, stop_step=stop_step)

        # 5. Final evaluation. The test set is used for the record, never to choose anything.
        _finish(state, dataset, folder, metrics)
        if state.step >= last_step:  # else stopped early: the epoch has ended before, or was not reached
            callbacks.call("on_epoch_end", context)
        callbacks.call("on_fit_end", context)
        callbacks.raise_error()
    return folder.path


def _require_no_more_steps(state: TrainingState, last_step: int, folder: RunFolder) -> None:
    """Raise `SettingsError` if the run has been trained for longer than `max_steps` asks for."""
    if state.step > last_step:
        raise SettingsError(
            f"max_steps: {state.settings.max_steps}, but {folder.path} has been trained for {state.step} steps; "
            "give another --run-name"
        )


def _open_metrics_logger(setup: RunSetup, folder: RunFolder, *, resume_step: int, stop_step: int) -> MetricsLogger:
    """Record the environment, say what is trained, and return the logger of its metrics."""
    accelerator, settings = setup.accelerator, setup.settings
    launched = launch_info(accelerator)
    dataset = setup.dataset
    facts = {"classes": dataset.class_names, "images": dataset.image_format.to_json()}
    recorded = environment() | launched | facts | {"test_images": images_digest(dataset.test)}
    if accelerator.is_main_process:
        first_start = folder.read_json("environment.json").get("date") if resume_step else None
        folder.write_json("environment.json", recorded | ({"date": first_start} if first_start else {}))
    progress = RunProgress(
        is_main=accelerator.is_main_process,
        start_step=resume_step,
        stop_step=stop_step,
        num_epochs=settings.epochs,
        has_val=dataset.val is not None,
    )
    launch = ", ".join(f"{name} {value}" for name, value in launched.items())
    progress.print(f"{settings.model} on {dataset_title(settings.dataset)}; {launch}; run folder {folder.path}")
    config = settings.model_dump(mode="json") | {"environment": recorded}
    tracker = Tracker(
        accelerator,
        settings,
        run_dir=folder.path,
        run_name=folder.path.name,
        config=config,
        resume_step=resume_step,
    )
    return MetricsLogger(tracker, progress, setup.plan, settings)


def _evaluate_epoch(state: TrainingState, dataset: Dataset, *, epoch: int) -> Metrics:
    """Return loss and accuracy on the hold-out, or on the test set without one, if this epoch is to be evaluated."""
    settings = state.settings
    if epoch % settings.eval_every:
        return {}
    name, split = ("test", dataset.test) if dataset.val is None else ("val", dataset.val)
    with state.stopwatch.paused():
        plain, _ = evaluate_split(
            state.accelerator,
            state.evaluated_model,
            split,
            batch_size=settings.eval_batch_size,
            image_format=dataset.image_format,
        )
    return {f"{name}/accuracy": plain.accuracy(), f"{name}/loss": plain.mean_loss()}


def _save_checkpoint(
    state: TrainingState, recorder: DynamicsRecorder, folder: RunFolder, *, must_succeed: bool
) -> None:
    """Write the training dynamics up to this step, then a checkpoint.

    One that cannot be written ends the run only if nothing else would be left of it (`must_succeed`).
    """
    with state.stopwatch.paused():
        require_finite(state.accelerator.reduce(state.metrics_since_log), f"the loss up to step {state.step}")
        for name, parameter in state.model.named_parameters():
            require_finite(parameter, f"{name} after step {state.step}")
        captured = state.capture()

        def save() -> None:
            recorder.write(folder.dynamics)
            checkpoint.save(folder.checkpoints, captured, keep=state.settings.keep_checkpoints)

        try:
            run_on_main(state.accelerator, save)
        except OutOfResourcesError as error:
            if must_succeed:
                raise
            logger.warning("%s; training goes on", error)


def _callback_context(
    setup: RunSetup, state: TrainingState, folder: RunFolder, metrics: MetricsLogger
) -> Callable[[], CallbackContext]:
    """Return a function that makes the context of the callbacks at the present step."""

    def save_weights(name: str) -> None:
        weights = {key: value.detach().cpu().clone() for key, value in state.evaluated_model.state_dict().items()}
        if state.accelerator.is_main_process:
            data = checkpoint.CheckpointData(step=state.step, model=weights, average=None, training={})
            checkpoint.save_as(folder.path / name, data)

    def make() -> CallbackContext:
        return CallbackContext(
            step=state.step,
            epoch=state.step / setup.plan.steps_per_epoch,
            metrics=metrics.newest(),
            model=state.evaluated_model,
            settings=setup.settings,
            dataset=setup.dataset,
            run_dir=folder.path,
            is_main_process=state.accelerator.is_main_process,
            write_metrics=partial(metrics.log, state),
            write_weights=save_weights,
        )

    return make


def _finish(state: TrainingState, dataset: Dataset, folder: RunFolder, metrics: MetricsLogger) -> None:
    """Evaluate and write the run's results."""
    settings = state.settings
    with state.stopwatch.paused():
        evaluation = evaluate_dataset(state.accelerator, state.evaluated_model, dataset, settings)
    seconds = state.stopwatch.seconds()
    metrics.log_epoch(state, evaluation.metrics())
    summary: dict[str, Any] = evaluation.metrics() | {
        "dataset": settings.dataset,
        "recipe": settings.recipe,
        "step": state.step,
        "train_seconds": seconds,
        "images_per_second": state.step * settings.batch_size / seconds,
    }
    if state.callbacks is not None and state.callbacks.stop_reason:
        summary["stop_reason"] = state.callbacks.stop_reason
    run_on_main(state.accelerator, lambda: write_results(folder, metrics.tracker, dataset, evaluation, summary=summary))
    metrics.print(evaluation.table(f"per class, {dataset_title(settings.dataset)} test set"))
    metrics.print(f"{evaluation.headline(settings.dataset)}; {format_seconds(seconds)} of training")
    metrics.print(f"report: {folder.report}; predictions and checkpoints are beside it")


if __name__ == "__main__":  # `accelerate launch -m cifar10_accel.train` is the command `cifar10-accel train`
    from cifar10_accel.cli import main

    main(["train", *sys.argv[1:]], prog_name="cifar10-accel")
