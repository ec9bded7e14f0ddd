"""What a sweep knows of each of its trials; the one form in which runner, results and pages pass them around."""

from dataclasses import dataclass
from typing import Literal

Parameter = float | int | str | bool | None
State = Literal["running", "finished", "failed", "pruned", "stopped"]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One setting that a sweep tried. `pruned`: ended early for being behind; `stopped`: to be continued."""

    number: int  # from 0, in the order of their start
    state: State
    parameters: dict[str, Parameter]  # settings names -> the values tried
    value: float | None  # the metric at the end, or the last one seen; accuracy is 0..1
    curve: tuple[tuple[float, float], ...]  # (epoch, metric), in order
    seconds: float  # wall time, over all its starts
    where: str  # its run folder, or its URL in W&B
    reason: str = ""  # why it failed or was pruned, in one line
