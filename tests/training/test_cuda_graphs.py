"""Steps as CUDA graphs, with a stand-in for the graph: which steps are recorded, and what happens if one cannot be."""

import logging
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from cifar10_accel.data.loader import Batch
from cifar10_accel.errors import MachineError
from cifar10_accel.settings import Settings
from cifar10_accel.training import cuda_graphs
from cifar10_accel.training.cuda_graphs import EAGER_STEPS, CudaGraphs, make_cuda_graphs
from cifar10_accel.training.optimization.optimizer import make_optimizer, set_lr


class FakeGraph:
    """Runs the recorded step again with the batches of the launch."""

    recorded: list[torch.Size]

    def __init__(self, step: Any, batches: list[Batch]) -> None:
        self.recorded.append(batches[0].images.shape)
        self._step = step

    def launch(self, batches: list[Batch]) -> Tensor:
        result: Tensor = self._step(batches) + 100
        return result


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> CudaGraphs:
    FakeGraph.recorded = []
    monkeypatch.setattr(cuda_graphs, "_Graph", FakeGraph)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    return CudaGraphs(torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1))


def batch_of(size: int) -> list[Batch]:
    labels = torch.zeros(2, dtype=torch.int64)
    return [Batch(torch.full((2, 3, size, size), float(size)), labels, labels, labels, 1.0)]


def take(batches: list[Batch]) -> Tensor:
    return batches[0].images.mean()


def test_the_first_steps_of_each_shape_are_not_graphs(graphs: CudaGraphs) -> None:
    results = [graphs.take_step(take, batch_of(size)).item() for size in (4, 4, 4, 4, 8, 8, 8, 8)]
    assert EAGER_STEPS == 2
    assert results == [4, 4, 104, 104, 8, 8, 108, 108]
    assert [shape[-1] for shape in FakeGraph.recorded] == [4, 8]


def test_the_graph_of_small_images_does_not_keep_its_memory(graphs: CudaGraphs) -> None:
    for size in (4, 4, 4, 8):
        graphs.take_step(take, batch_of(size))
    assert graphs.num_recorded == 0


def test_without_memory_for_a_graph_training_goes_on(
    graphs: CudaGraphs, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def runs_out(step: Any, batches: list[Batch]) -> None:
        try:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        finally:  # the end of a recording that failed raises its own error
            raise RuntimeError("operation failed due to a previous error during capture")

    monkeypatch.setattr(cuda_graphs, "_Graph", runs_out)
    parameter = graphs._optimizer.param_groups[0]["params"][0]
    parameter.grad = torch.ones(1)  # of the failed recording
    with caplog.at_level(logging.WARNING):
        results = [graphs.take_step(take, batch_of(4)).item() for _ in range(5)]
    assert results == [4] * 5
    assert parameter.grad is None
    assert len(caplog.records) == 1
    assert "memory does not fit" in caplog.text


@pytest.mark.parametrize("clips", [True, False])
def test_the_loss_scaler_forgets_a_step_that_ran_out_of_memory(clips: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In fp16: the memory ends in the optimizer's step, with gradients that are unscaled before or by this step."""
    recording = False

    class Optimizer(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:
            if recording:
                if not clips:
                    self.grad_scale.fill_(0)  # a recording computes nothing: its memory has any value
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
            super().step(closure)

    weight = nn.Parameter(torch.ones(1))
    optimizer = Optimizer([weight], lr=0.25, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=8)

    def step(batches: list[Batch]) -> Tensor:
        optimizer.zero_grad()
        loss = scaler.scale(weight.sum())
        loss.backward()
        if clips:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        return loss.detach()

    def runs_out(step: Any, batches: list[Batch]) -> None:
        nonlocal recording
        recording = True
        try:
            step(batches)
        finally:
            recording = False

    monkeypatch.setattr(cuda_graphs, "_Graph", runs_out)
    graphs = CudaGraphs(optimizer, scaler)
    for _ in range(EAGER_STEPS + 2):
        graphs.take_step(step, batch_of(4))
    assert weight.item() == 1 - 0.25 * (EAGER_STEPS + 2)
    assert scaler.get_scale() == 8


def test_a_step_that_cannot_be_recorded_is_one_line(graphs: CudaGraphs, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(step: Any, batches: list[Batch]) -> None:
        raise RuntimeError("operation not permitted when stream is capturing\nSearch for `cudaErrorStreamCapture`")

    monkeypatch.setattr(cuda_graphs, "_Graph", fails)
    for _ in range(EAGER_STEPS):
        graphs.take_step(take, batch_of(4))
    with pytest.raises(MachineError, match="give --no-cuda-graph") as raised:
        graphs.take_step(take, batch_of(4))
    assert "\n" not in str(raised.value)
    assert "operation not permitted" in str(raised.value)


@pytest.mark.parametrize(
    ("changes", "processes", "expected"),
    [
        ({}, 1, True),
        ({"optimizer": "muon"}, 1, True),
        ({}, 2, False),
        ({"cuda_graph": False}, 1, False),
        ({"optimizer": "adamw"}, 1, False),
        ({"mixup_alpha": 1.0}, 1, False),
        ({"cutmix_alpha": 1.0}, 1, False),
        ({"model": "own.models:Tiny"}, 1, False),
        ({"optimizer": "torch.optim:RMSprop"}, 1, False),
        ({"loss": "own.losses:focal"}, 1, False),
        ({"callbacks": "own.callbacks:Unfreeze"}, 1, False),
        ({"callbacks": "best_checkpoint"}, 1, True),
    ],
)
def test_only_what_cannot_wait_is_recorded(
    changes: dict[str, Any], processes: int, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Accelerator, "device", property(lambda self: torch.device("meta")))
    monkeypatch.setattr(Accelerator, "num_processes", property(lambda self: processes))
    accelerator, settings = Accelerator(), Settings(**changes)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    assert make_cuda_graphs(settings, accelerator, optimizer) is None  # not on other devices
    assert optimizer.param_groups[0]["lr"] == 0.1
    monkeypatch.setattr(cuda_graphs, "RECORDING_DEVICE", "meta")
    made = make_cuda_graphs(settings, accelerator, optimizer)
    assert (made is not None) == expected
    assert isinstance(optimizer.param_groups[0]["lr"], Tensor) == expected


def test_the_lr_of_a_graph_changes_in_place() -> None:
    model = nn.Linear(2, 2)
    optimizer = make_optimizer(model, Settings(bias_lr_factor=2.0))
    tensors = []
    for group in optimizer.param_groups:
        group["lr"] = torch.zeros(())
        tensors.append(group["lr"])
    set_lr(optimizer, 0.5)
    assert [tensor.item() for tensor in tensors] == [0.5, 1.0]
    assert [group["lr"] for group in optimizer.param_groups] == tensors
