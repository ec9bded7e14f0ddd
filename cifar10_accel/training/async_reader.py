"""Reading of values from a GPU without waiting for it."""

from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class AsyncReader:
    """Reader that copies tensors to the host and uses them later, when the copy is most likely complete.

    A program that reads a value at once waits until the GPU has computed it; then the GPU waits for new work. Here
    the values of one `read` are used at the next one, so the host stays ahead of the GPU by the steps between the two.
    On a CPU every value is used at once.
    """

    def __init__(self) -> None:
        self._pending: deque[tuple[Tensor, torch.cuda.Event | None, Callable[[Tensor], Any]]] = deque()

    def read(self, values: Tensor, use: Callable[[Tensor], Any]) -> None:
        """Use the values of earlier reads, then start to copy these; `use` will get them on the host.

        Args:
            values: May be changed after this call.
            use: Called with the values, in the order of the reads. What it raises, a later `read` or `finish` raises.
        """
        self.finish()
        if values.device.type != "cuda":
            use(values.cpu())
            return
        copied = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        copied.copy_(values, non_blocking=True)
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        self._pending.append((copied, event, use))

    def then(self, action: Callable[[], Any]) -> None:
        """Call `action` after the values of all reads so far were used; at once if none is pending."""
        if self._pending:
            self._pending.append((torch.empty(0), None, lambda _: action()))
        else:
            action()

    def finish(self) -> None:
        """Wait for all values and use them."""
        while self._pending:
            values, event, use = self._pending.popleft()
            if event is not None:
                event.synchronize()
            use(values)
