"""User errors, each with the exit code of the process.

A `UserError` means that something outside this code is wrong (a setting, a file, the hardware); its message is one line
with what is wrong, the value seen and what to do. Any other exception is a bug of this package and keeps its traceback.
"""

import difflib
from collections.abc import Collection


class UserError(Exception):
    """Something that the user can correct; shown as one line, never as a traceback."""

    exit_code = 2
    is_shared = False  # raised on every rank, so that only one of them needs to show it


class SettingsError(UserError, ValueError):
    """An invalid setting, flag, recipe or launch (exit 2)."""

    exit_code = 2
    is_shared = True


class InputError(UserError):
    """Bad input: data set, checkpoint, run folder or image (exit 3)."""

    exit_code = 3


class MachineError(UserError):
    """Something that this machine lacks, such as a compiler (exit 3)."""

    exit_code = 3


class NonFiniteError(UserError):
    """The loss or a gradient is not finite on some rank; raised on all ranks (exit 4)."""

    exit_code = 4
    is_shared = True


class OutOfResourcesError(UserError):
    """Out of memory or disk (exit 5)."""

    exit_code = 5


class LostPeerError(UserError):
    """Another process of the launch is missing, gone or does not answer (exit 6)."""

    exit_code = 6


class Preempted(UserError):
    """Stopped by a signal with the state saved: the same command resumes (130 or 143)."""

    def __init__(self, signal_number: int, *, step: int, stop_step: int) -> None:
        super().__init__(f"stopped after step {step} of {stop_step}, all saved; the same command continues from there")
        self.exit_code = 128 + signal_number


# Names of models and recipes in earlier versions; runs/legacy.py reads old run folders by them.
FORMER_NAMES = {
    "custom_resnet": "resnet9",
    "speednet": "airbench94",
    "speednet_deep": "airbench96",
    "resnet24": "resnet9",
    "resnet24_plus": "resnet9_plus",
    "original24": "resnet9_original",
}


# Names that other programs have for settings: `name`, or `name=value`.
SYNONYMS = {
    "accum": "grad_accum_steps",
    "accum_steps": "grad_accum_steps",
    "accumulate_grad_batches": "grad_accum_steps",
    "amp": "precision=fp16",
    "arch": "model",
    "architecture": "model",
    "augmentation": "augment",
    "augmentations": "augment",
    "b": "batch_size",
    "backbone": "model",
    "batch": "batch_size",
    "batchsize": "batch_size",
    "beta1": "momentum",
    "bf16": "precision=bf16",
    "bs": "batch_size",
    "checkpoint_dir": "run_dir",
    "clip": "grad_clip",
    "clip_grad": "grad_clip",
    "clip_grad_norm": "grad_clip",
    "config": "recipe",
    "cutmix": "cutmix_alpha",
    "cutout": "cutout_size",
    "data": "data_dir",
    "data_path": "data_dir",
    "data_root": "data_dir",
    "decay": "weight_decay",
    "dry_run": "max_steps",
    "ema": "ema_decay",
    "entity": "wandb_entity",
    "epoch": "epochs",
    "exp_name": "run_name",
    "experiment": "run_name",
    "experiment_name": "run_name",
    "fp16": "precision=fp16",
    "grad_accum": "grad_accum_steps",
    "grad_clip_norm": "grad_clip",
    "gradient_accumulation": "grad_accum_steps",
    "gradient_accumulation_steps": "grad_accum_steps",
    "gradient_clip_val": "grad_clip",
    "gradient_clipping": "grad_clip",
    "half": "precision=fp16",
    "iterations": "max_steps",
    "iters": "max_steps",
    "j": "num_workers",
    "learning_rate": "max_lr",
    "log_dir": "run_dir",
    "log_interval": "log_every",
    "logger": "tracker",
    "logging_steps": "log_every",
    "lr": "max_lr",
    "lr_max": "max_lr",
    "lr_scheduler": "schedule",
    "lr_scheduler_type": "schedule",
    "max_epochs": "epochs",
    "max_grad_norm": "grad_clip",
    "max_iter": "max_steps",
    "max_iters": "max_steps",
    "max_time": "time_budget",
    "mixed_precision": "precision",
    "mixup": "mixup_alpha",
    "n_epochs": "epochs",
    "name": "run_name",
    "net": "model",
    "network": "model",
    "no_wandb": "tracker=none",
    "num_epochs": "epochs",
    "num_train_epochs": "epochs",
    "offline": "wandb_mode=offline",
    "opt": "optimizer",
    "optim": "optimizer",
    "out": "run_dir",
    "out_dir": "run_dir",
    "output": "run_dir",
    "output_dir": "run_dir",
    "per_device_train_batch_size": "batch_size",
    "pretrained_weights": "init_from",
    "project": "wandb_project",
    "random_seed": "seed",
    "report_to": "tracker",
    "root": "data_dir",
    "save_dir": "run_dir",
    "save_every": "checkpoint_every",
    "sched": "schedule",
    "scheduler": "schedule",
    "smoothing": "label_smoothing",
    "steps": "max_steps",
    "test_batch_size": "eval_batch_size",
    "threads": "num_threads",
    "time_limit": "time_budget",
    "tracking": "tracker",
    "train_batch_size": "batch_size",
    "val_batch_size": "eval_batch_size",
    "wandb": "tracker=wandb",
    "warmup": "peak_epoch",
    "warmup_epochs": "peak_epoch",
    "wd": "weight_decay",
    "workers": "num_workers",
}

# Words that people look for among the settings, with a sentence that says where the thing is instead.
_DEVICES = "the launcher chooses devices; see accelerate launch --help"
_PROCESSES = "the launcher starts the processes: accelerate launch --multi_gpu --num_processes N -m cifar10_accel.train"
_RESUME = "the same command again resumes its run"
NOT_SETTINGS = {
    **dict.fromkeys(("accelerator", "cpu", "cuda", "device", "gpu", "gpu_ids"), _DEVICES),
    **dict.fromkeys(
        (
            "devices",
            "gpus",
            "local_rank",
            "n_gpu",
            "nproc",
            "nproc_per_node",
            "num_gpus",
            "num_processes",
            "world_size",
        ),
        _PROCESSES,
    ),
    **dict.fromkeys(("resume", "resume_from", "resume_from_checkpoint"), _RESUME),
}


def synonym_of(word: str, known: Collection[str]) -> str:
    """Return the entry of SYNONYMS for a word if it is one of the known names; empty if there is none."""
    meant = SYNONYMS.get(word.replace("-", "_").lower(), "")
    return meant if meant.partition("=")[0] in known else ""


def did_you_mean(word: str, known: Collection[str]) -> str:
    """Return a hint at the known word that is closest to this one; empty if none is close."""
    meant = synonym_of(word, known).partition("=")[0] or FORMER_NAMES.get(word)
    close = [meant] if meant in known else difflib.get_close_matches(word.replace("-", "_"), known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def why_no_setting(word: str, known: Collection[str]) -> str:
    """Return a hint at the setting that is meant by a word, or at the place of a thing that is no setting."""
    elsewhere = NOT_SETTINGS.get(word.replace("-", "_").lower())
    return f" ({elsewhere})" if elsewhere else did_you_mean(word, known)
