"""A callback: an object with any of on_fit_start, on_step_end, on_epoch_end and on_fit_end."""

from typing import Any

from cifar10_accel import CallbackContext


class WeightNorm:
    """Log one more number each epoch: the norm of all weights, and its largest value so far."""

    def __init__(self) -> None:
        self.largest = 0.0

    def on_epoch_end(self, context: CallbackContext) -> None:
        """Log the norm with the run's metrics."""
        squares = [parameter.detach().square().sum().item() for parameter in context.model.parameters()]
        norm = sum(squares) ** 0.5
        self.largest = max(self.largest, norm)
        context.log("weights/norm", norm)
        context.log("weights/largest_norm", self.largest)

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs: with it the run goes on exactly."""
        return {"largest": self.largest}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.largest = state["largest"]
