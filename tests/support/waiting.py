"""Detection of operations that synchronise with the device, by their names, so that it works on a CPU."""

from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode


class Watch(TorchDispatchMode):
    """Context that records the operations that make the host wait for the device."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "unique", "equal", "to_cpu")

    def __init__(self) -> None:
        super().__init__()
        self.num_operations, self.waited_for = 0, []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        self.num_operations += 1
        if any(waiting in name for waiting in self.WAITING):
            self.waited_for.append(name)
        return function(*args, **(kwargs or {}))
