"""Steps as CUDA graphs: what a step launches on the GPU is recorded once and then launched as a whole.

Without them the host launches each of a step's hundreds of kernels. Where a launch takes 20 microseconds, as on some
virtual machines, a GPU is idle for half of the time (BENCHMARKS.md).
"""

import logging
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.optim import Optimizer

from cifar10_accel.components import is_import_path
from cifar10_accel.data.loader import Batch
from cifar10_accel.errors import MachineError
from cifar10_accel.models.registry import BACKBONES
from cifar10_accel.settings import Settings

RECORDING_DEVICE = "cuda"
# Before a graph is recorded these steps compile, choose kernels, allocate buffers, and start the average of weights
# with a copy.
EAGER_STEPS = 2

Step = Callable[[list[Batch]], Tensor]

logger = logging.getLogger(__name__)


class CudaGraphs:
    """Graphs of one run's steps, one for each shape of its batches; a new shape drops those before it.

    A graph reads and writes the same memory in every launch. So weights, gradients, momentum, averaged weights and
    metrics must stay where they are, and what changes from step to step must come from the batches or from tensors on
    the GPU, such as the LR.

    Args:
        optimizer: The gradients of its parameters are dropped if there is no memory for a graph.
        scaler: Loss scaler of fp16; it forgets a step that it has begun then.
    """

    def __init__(self, optimizer: Optimizer, scaler: torch.amp.GradScaler | None = None) -> None:
        self._optimizer = optimizer
        self._scaler = scaler
        self._graphs: dict[Any, _Graph | None] = {}  # None: there is not enough memory
        self._num_eager: Counter[Any] = Counter()

    @property
    def num_recorded(self) -> int:
        """Number of graphs."""
        return sum(graph is not None for graph in self._graphs.values())

    def take_step(self, step: Step, batches: list[Batch]) -> Tensor:
        """Return `step(batches)`: computed as usual for the first batches of a shape, later by a graph.

        Raises:
            MachineError: The step cannot be recorded.
        """
        shapes = tuple(batch.images.shape for batch in batches)
        if shapes not in self._num_eager and self._graphs:
            torch.cuda.synchronize()  # the last launch may not have ended
            self._graphs.clear()  # of small images, which do not come back; it would keep its memory
            torch.cuda.empty_cache()
        if self._num_eager[shapes] < EAGER_STEPS:
            self._num_eager[shapes] += 1
            return step(batches)
        if shapes not in self._graphs:
            self._graphs[shapes] = self._record(step, batches)
        graph = self._graphs[shapes]
        return step(batches) if graph is None else graph.launch(batches)

    def _record(self, step: Step, batches: list[Batch]) -> "_Graph | None":
        try:
            return _Graph(step, batches)
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            if not any(isinstance(each, torch.OutOfMemoryError) for each in (error, error.__context__)):
                raise MachineError(
                    f"cuda_graph: a step cannot be recorded as a CUDA graph ({reason}); give --no-cuda-graph"
                ) from error
        self._forget_step()
        torch.cuda.empty_cache()
        logger.warning("steps are not launched as CUDA graphs, whose memory does not fit (%s)", reason)
        return None

    def _forget_step(self) -> None:
        """Undo what a step that did not end has left: its gradients and, in fp16, its loss scale."""
        self._optimizer.zero_grad()
        if self._scaler is None:
            return
        self._scaler.update(self._scaler.get_scale())  # else it refuses to unscale the same step again
        unwrapped = getattr(self._optimizer, "optimizer", self._optimizer)  # of Accelerate's wrapper
        for name in ("grad_scale", "found_inf"):  # GradScaler sets them while a fused optimizer takes its step
            vars(unwrapped).pop(name, None)


class _Graph:
    """The recorded step for batches of one shape."""

    def __init__(self, step: Step, batches: list[Batch]) -> None:
        self._batches = [_copy_of(batch) for batch in batches]
        self._graph = torch.cuda.CUDAGraph()
        same_stream = torch.cuda.stream(torch.cuda.current_stream())  # restored even if the recording fails
        with same_stream, torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._totals = step(self._batches)

    def launch(self, batches: list[Batch]) -> Tensor:
        for own, given in zip(self._batches, batches, strict=True):
            own.images.copy_(given.images)
            own.labels.copy_(given.labels)
            own.indices.copy_(given.indices)
        self._graph.replay()
        return self._totals.clone()  # the next launch overwrites it


def _copy_of(batch: Batch) -> Batch:
    labels = batch.labels.clone()
    return Batch(batch.images.clone(), labels, batch.indices.clone(), partner_labels=labels, weight=1.0)


def make_cuda_graphs(settings: Settings, accelerator: Accelerator, optimizer: Optimizer) -> CudaGraphs | None:
    """Return the graphs of a run whose steps can be recorded, and move the LR to the GPU; else None.

    That is so on one GPU (ranks would exchange gradients), with components that are known not to wait for it. MixUp and
    CutMix draw on the host.
    """
    can_be_recorded = (
        settings.cuda_graph
        and accelerator.device.type == RECORDING_DEVICE
        and accelerator.num_processes == 1
        and settings.model in BACKBONES
        and settings.optimizer in ("sgd", "muon")
        and not is_import_path(settings.loss)
        and settings.mixup_alpha is None
        and settings.cutmix_alpha is None
        and not any(is_import_path(name) for name in settings.callbacks)  # which may change the model in any step
    )
    if not can_be_recorded:
        return None
    for group in optimizer.param_groups:
        group["lr"] = torch.zeros((), device=accelerator.device)  # `set_lr` changes it in place
    return CudaGraphs(optimizer, accelerator.scaler)
