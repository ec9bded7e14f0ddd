"""The story of one run, top to bottom: data; net and schedule; resume; loop; finish.

    accelerate launch --config_file accelerate_config.yaml -m cifar10_accel.train --recipe auto

The same command again continues a run that was stopped or killed, with the same final weights.
"""

import sys
from contextlib import suppress
from typing import Any

import click
import torch

from cifar10_accel import checkpoint
from cifar10_accel.console import RunConsole, format_seconds
from cifar10_accel.data.batches import Batch, BatchPlan, training_batches
from cifar10_accel.data.cifar10 import Dataset, available
from cifar10_accel.data.shared import load_shared
from cifar10_accel.engine import evaluate_pass, require_finite, train_step
from cifar10_accel.errors import NonFiniteError, OutOfResourcesError, Preempted
from cifar10_accel.flags import WIDE, exits_with_one_line, settings_flags
from cifar10_accel.interrupt import StopSignal, die_with_launcher
from cifar10_accel.journal import Journal, Metrics
from cifar10_accel.launch import launched_as, make_accelerator, on_main, training_dtype, without_auto
from cifar10_accel.memory import fit_in_memory, out_of_memory_explained
from cifar10_accel.recorder import Recorder
from cifar10_accel.results import evaluate_all, labelled, write_results
from cifar10_accel.run_folder import RunFolder, environment
from cifar10_accel.schedule import OneCycle
from cifar10_accel.settings import Settings
from cifar10_accel.tracking import Tracker
from cifar10_accel.training_state import TrainingState, build_state


def train(settings: Settings) -> dict[str, Any]:
    """Trains as the settings say and returns the summary. All ranks must call this.

    Leaves a run folder (run_folder.py lists what is in it); a run that is finished there is not
    trained again. Raises a `UserError` for what the user can mend, `Preempted` after a stop signal.
    """
    # 1. Data: the whole set in memory, once on each machine, and the plan of who sees which image when.
    accelerator = make_accelerator(settings)
    settings = without_auto(settings, on_cpu=accelerator.device.type == "cpu")
    found = available(settings)  # every rank looks, and waits while one downloads; the main process decides
    found = on_main(accelerator, lambda: found)
    settings = settings.model_copy(update={"dataset": found, "precision": accelerator.mixed_precision})
    dataset = load_shared(accelerator, settings)
    plan = BatchPlan.of(settings, accelerator, num_images=len(dataset.train.labels))
    folder = RunFolder.of(settings)
    on_main(accelerator, lambda: folder.open(settings))

    # 2. Net, optimizer and schedule. The LR is a function of the step: nothing to prepare, nothing to save.
    state = build_state(settings, accelerator, dataset)
    state.recorder = recorder = Recorder(accelerator, dataset.train.labels, num_classes=len(dataset.class_names))
    schedule = one_cycle(settings, steps_per_epoch=plan.steps_per_epoch)
    stop_step = min(schedule.total_steps, settings.max_steps or schedule.total_steps)

    # 3. Resume: the newest whole checkpoint, if there is one, decides where to go on.
    newest = on_main(accelerator, lambda: checkpoint.tidy(folder.checkpoints))
    if newest is not None:
        saved = checkpoint.load(newest)
        state.restore(saved, source=newest)
        recorder.restore(saved.training.get("recorded"), folder.dynamics, num_epochs=state.step // plan.steps_per_epoch)
        accelerator.print(f"resuming from {newest}")
    if on_main(accelerator, folder.is_finished) and state.step >= stop_step:
        accelerator.print(f"{folder.path} is finished: nothing to train (give another --run-name to train again)")
        return folder.read_json("summary.json")

    # 4. The loop: one iteration is one update.
    is_main = accelerator.is_main_process
    checkpoint_steps = max(1, round(settings.checkpoint_every * plan.steps_per_epoch))
    journal = _open_journal(state, plan, settings, folder, dataset.class_names, stop_step=stop_step)
    # The stop signal is outermost: it must not cut off what the others do on the way out.
    with StopSignal(accelerator) as signal, folder.status(is_main=is_main), out_of_memory_explained(), journal:
        plan = fit_in_memory(state, dataset.train, plan, settings)
        state.watch.start()
        for batches in training_batches(
            dataset.train, plan, settings, start_step=state.step, stop_step=stop_step,
            device=accelerator.device, dtype=training_dtype(accelerator),
        ):  # fmt: skip
            lr = schedule.lr_at(state.step)
            _update(state, batches, folder, lr=lr, settings=settings)
            ends_epoch, ends_run = state.step % plan.steps_per_epoch == 0, state.step == stop_step
            if state.step % settings.log_every == 0 or ends_epoch or ends_run:
                journal.line(state, lr=lr)
            if ends_epoch:
                recorder.end_epoch()
            if ends_epoch and not ends_run:
                journal.epoch(state, _measure(state, dataset, settings, epoch=state.step // plan.steps_per_epoch))
            stop_signal = signal.agreed(state.step)
            if state.step % checkpoint_steps == 0 or ends_run or stop_signal:
                _save(state, recorder, folder, settings, must_succeed=bool(ends_run or stop_signal))
            if stop_signal and not ends_run:
                raise Preempted(stop_signal, step=state.step, stop_step=stop_step)

        # 5. Finish: the test set is looked at for the record, never to choose anything.
        return _finish(state, dataset, settings, folder, journal)


def one_cycle(settings: Settings, *, steps_per_epoch: int) -> OneCycle:
    """The LR of every update of a run, the same for any number of processes and accumulation steps."""
    initial_lr = settings.max_lr / settings.div_factor
    return OneCycle(
        total_steps=settings.epochs * steps_per_epoch,
        peak_step=round(settings.peak_epoch * steps_per_epoch),
        initial_lr=initial_lr,
        max_lr=settings.max_lr,
        final_lr=initial_lr / settings.final_div_factor,
        anneal=settings.anneal,
    )


@click.command(context_settings=WIDE)
@settings_flags
@exits_with_one_line
def main(**flags: Any) -> None:
    """Train on CIFAR-10. Every flag is a setting; `--recipe` names a set of them."""
    settings = Settings(**flags)
    die_with_launcher()
    train(settings)


def _open_journal(
    state: TrainingState, plan: BatchPlan, settings: Settings, folder: RunFolder, classes: tuple[str, ...],
    *, stop_step: int,
) -> Journal:  # fmt: skip
    accelerator = state.accelerator
    around = environment() | launched_as(accelerator) | {"classes": classes}
    if accelerator.is_main_process:
        folder.write_json("environment.json", around)
    console = RunConsole(
        is_main=accelerator.is_main_process, start_step=state.step, stop_step=stop_step, num_epochs=settings.epochs
    )
    launched = ", ".join(f"{name} {value}" for name, value in launched_as(accelerator).items())
    console.say(f"{settings.model} on {labelled(settings.dataset)}; {launched}; run folder {folder.path}")
    config = settings.model_dump(mode="json") | {"environment": around}
    tracker = Tracker(
        accelerator, settings, run_dir=folder.path, run_name=folder.path.name, config=config, resume_step=state.step
    )
    return Journal(tracker, console, plan, settings)


def _update(state: TrainingState, batches: list[Batch], folder: RunFolder, *, lr: float, settings: Settings) -> None:
    """One optimizer update; a loss or gradient that is not finite stops it, with its images named."""
    accelerator = state.accelerator
    state.seed_update(settings.seed)
    try:
        state.since_line += train_step(
            accelerator, state.model, state.optimizer, batches, lr=lr, settings=settings, average=state.average,
            recorder=state.recorder,
        )  # fmt: skip
    except NonFiniteError as error:
        images = accelerator.gather(torch.cat([batch.indices for batch in batches])).tolist()
        found = {"update": state.step + 1, "lr": lr, "images": images}
        if accelerator.is_main_process:
            with suppress(OSError):  # a full disk is not what the user has to hear about now
                folder.write_json("nonfinite.json", found)
        shown = ", ".join(map(str, images[:5]))
        raise NonFiniteError(
            f"update {state.step + 1}, lr {lr:g}: {error}; its {len(images)} images ({shown}, ...) "
            f"are in {folder.path / 'nonfinite.json'}"
        ) from None
    state.step += 1


def _measure(state: TrainingState, dataset: Dataset, settings: Settings, *, epoch: int) -> Metrics:
    """Loss and accuracy on the hold-out, or on the test set without one, if this epoch is to be measured."""
    if epoch % settings.eval_every:
        return {}
    name, split = ("test", dataset.test) if dataset.val is None else ("val", dataset.val)
    with state.watch.paused():
        plain, _ = evaluate_pass(state.accelerator, state.evaluated, split, batch_size=settings.eval_batch_size)
    return {f"{name}/accuracy": plain.accuracy(), f"{name}/loss": plain.mean_loss()}


def _save(
    state: TrainingState, recorder: Recorder, folder: RunFolder, settings: Settings, *, must_succeed: bool
) -> None:
    """A checkpoint, and before it the record of the epochs up to it.

    One that cannot be written ends the run only if nothing else would be left of it.
    """
    with state.watch.paused():
        for name, parameter in state.net.named_parameters():
            require_finite(parameter, f"{name} after update {state.step}")
        captured = state.capture()

        def save() -> None:
            recorder.write(folder.dynamics)
            checkpoint.save(folder.checkpoints, captured, keep=settings.keep_checkpoints)

        try:
            on_main(state.accelerator, save)
        except OutOfResourcesError as error:
            if must_succeed:
                raise
            if state.accelerator.is_main_process:
                print(f"warning: {error}; training goes on", file=sys.stderr)


def _finish(
    state: TrainingState, dataset: Dataset, settings: Settings, folder: RunFolder, journal: Journal
) -> dict[str, Any]:
    """Evaluates, writes what the run leaves, and returns the summary."""
    with state.watch.paused():
        evaluation = evaluate_all(state.accelerator, state.evaluated, dataset, settings)
    seconds = state.watch.seconds()
    metrics = evaluation.metrics()
    journal.epoch(state, metrics)
    summary: dict[str, Any] = metrics | {
        "dataset": settings.dataset,
        "recipe": settings.recipe,
        "step": state.step,
        "train_seconds": seconds,
        "images_per_second": state.step * settings.batch_size / seconds,
    }
    summary = on_main(
        state.accelerator, lambda: write_results(folder, journal.tracker, dataset, evaluation, summary=summary)
    )
    journal.say(evaluation.table(f"per class, {labelled(settings.dataset)} test set"))
    journal.say(f"{evaluation.headline(settings.dataset)} after {format_seconds(seconds)} of training")
    journal.say(f"look at it in {folder.report}; predictions and checkpoints are beside it")
    return summary


if __name__ == "__main__":
    main()
