"""Out of memory: the batch size stays, the micro-batches get smaller, the same on all ranks."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from training_commands import TINY, flags, run_python

from cifar10_accel import train as train_module
from cifar10_accel.data.batch_plan import BatchPlan
from cifar10_accel.data.loader import TrainingLoader
from cifar10_accel.errors import OutOfResourcesError
from cifar10_accel.models.resnet9 import ResNet9
from cifar10_accel.runs.metrics_jsonl import read_metrics
from cifar10_accel.settings import Settings
from cifar10_accel.train import fit


def limit_memory(monkeypatch: pytest.MonkeyPatch, *, images: int, error: Exception) -> None:
    """Make the forward pass of the model fail, after it has run, for more than `images` images in training mode."""
    forward = ResNet9.forward

    def limited(model: ResNet9, inputs: torch.Tensor) -> torch.Tensor:
        outputs = forward(model, inputs)
        if model.training and len(inputs) > images:
            raise error
        return outputs

    monkeypatch.setattr(ResNet9, "forward", limited)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        MemoryError(),
    ],
)
def test_micro_batches_are_halved_until_they_fit(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same run as with that accumulation from the start, bit for bit, with one line for each halving."""
    settings = TINY | {"max_steps": 3}
    fit(Settings(**settings, grad_accum_steps=4, run_dir=tmp_path / "given"))
    capsys.readouterr()
    limit_memory(monkeypatch, images=15, error=error)
    fit(Settings(**settings, run_dir=tmp_path / "found"))
    logged = [line for line in capsys.readouterr().out.splitlines() if line.startswith("out of memory")]
    assert [line.split(" micro-batches")[0].split()[-1] for line in logged] == ["2", "4"]
    given, found = (
        (tmp_path / name / "checkpoints" / "step-000003" / "model.safetensors").read_bytes()
        for name in ("given", "found")
    )
    assert given == found


def test_one_image_that_does_not_fit_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit_memory(monkeypatch, images=0, error=torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(OutOfResourcesError, match="one image at a time"):
        fit(Settings(**TINY, run_dir=tmp_path / "run"))
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("failed", 5)


def test_an_augmentation_that_does_not_fit_names_the_batch_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All images of a step are augmented at once: smaller micro-batches would not help."""
    calls = []

    def batches(loader: TrainingLoader, *_: Any) -> Iterator[Any]:
        calls.append(loader)
        raise torch.OutOfMemoryError("CUDA out of memory")
        yield

    monkeypatch.setattr(TrainingLoader, "batches", batches)
    with pytest.raises(OutOfResourcesError, match=r"in the augmentation of a batch of .* images; lower --batch-size"):
        fit(Settings(**TINY, run_dir=tmp_path / "run"))
    assert len(calls) == 1


def test_another_error_is_not_swallowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit_memory(monkeypatch, images=0, error=RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes do not match"):
        fit(Settings(**TINY, run_dir=tmp_path / "run"))


def test_running_out_later_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(train_module, "train_step", fails)
    with pytest.raises(OutOfResourcesError, match=r"Tried to allocate 2.00 GiB\); raise --grad-accum-steps"):
        fit(Settings(**TINY, run_dir=tmp_path / "run"))


# A model of which the loss depends on one head only.
TWO_HEADS = """
from torch import nn

class TwoHeads(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.pool, self.head = nn.AdaptiveAvgPool2d(2), nn.Linear(12, num_classes)
        self.auxiliary = nn.Linear(12, num_classes)

    def forward(self, images):
        return self.head(self.pool(images).flatten(1))
"""


def test_parameters_without_a_gradient_are_one_line_with_several_processes(tmp_path: Path) -> None:
    (tmp_path / "heads.py").write_text(TWO_HEADS)
    given = {name: value for name, value in TINY.items() if name != "width"}
    given |= {"model": "heads:TwoHeads", "max_steps": 2, "run_dir": tmp_path / "run"}
    command = ["-m", "cifar10_accel", "train"]
    refused = run_python(*command, *flags(given), cwd=tmp_path, num_processes=2)
    assert refused.returncode != 0
    assert (
        "the loss does not depend on auxiliary.weight and 1 more, for whose gradients"
        in refused.stdout + refused.stderr
    )
    alone = run_python(*command, *flags(given), cwd=tmp_path)  # one process does not wait for them
    assert alone.returncode == 0, alone.stderr
    frozen = given | {"run_dir": tmp_path / "frozen", "freeze": "auxiliary"}
    done = run_python(*command, *flags(frozen), cwd=tmp_path, num_processes=2)
    assert done.returncode == 0, done.stderr


def test_micro_batches_stay_equal() -> None:
    plan = BatchPlan(num_images=100, batch_size=90, grad_accum_steps=1, num_processes=2, rank=0, seed=0)
    counts = []
    while plan:
        counts.append(plan.grad_accum_steps)
        plan = plan.with_smaller_micro_batches()
    assert counts == [1, 3, 9, 45]


# Trains on two ranks, of which rank 1 has room for 10 images only.
SMALL_RANK = """
import os, sys, torch
from cifar10_accel.models.resnet9 import ResNet9
from cifar10_accel.cli import main
forward = ResNet9.forward
def limited(model, inputs):
    if model.training and len(inputs) > 10 and os.environ["RANK"] == "1":
        raise torch.OutOfMemoryError("CUDA out of memory")
    return forward(model, inputs)
ResNet9.forward = limited
main(["train", *sys.argv[1:]])
"""


def test_one_small_rank_makes_all_ranks_halve(tmp_path: Path) -> None:
    (tmp_path / "small_rank.py").write_text(SMALL_RANK)
    args = flags(TINY | {"run_dir": tmp_path / "run", "max_steps": 2})
    done = run_python("small_rank.py", *args, cwd=tmp_path, num_processes=2)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("out of memory: ") == 2  # 30 images a rank, then 15, then 10
    assert [line["step"] for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if "lr" in line] == [1, 2]
