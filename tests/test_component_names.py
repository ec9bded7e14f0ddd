"""Names of Python objects in settings: equal for equal objects, in every process, and different for others."""

import logging
import sys
from functools import partial
from pathlib import Path
from typing import Any

import albumentations as A
import numpy as np
import pytest
import torch
from torch import nn
from training_commands import run_python

from cifar10_accel.component_names import name_of
from cifar10_accel.components import is_import_path
from cifar10_accel.data.dataset import Dataset
from cifar10_accel.training.callbacks import EarlyStopping


def _model(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Linear(2, 3)


def _data(seed: int) -> Dataset:
    images = np.random.default_rng(seed).integers(0, 255, (20, 8, 8, 1), dtype=np.uint8)
    return Dataset(name="own", train=(images, np.arange(20) % 2), test=(images, np.arange(20) % 2))


class _Adjustable:
    def __init__(self, value: int) -> None:
        self.value = value


class _Slotted:
    __slots__ = "__value"

    def __init__(self, value: int) -> None:
        self.__value = value


class _Scaled(nn.Module):
    def __init__(self, value: int) -> None:
        super().__init__()
        self._scale = value


def _scale(logits: float, factor: float) -> float:
    return logits * factor


def _enclosed(value: int) -> Any:
    return lambda logits: logits * value


def _default(value: int) -> Any:
    def scaled(logits: float, factor: float = value) -> float:
        return logits * factor

    return scaled


def _calls_another(value: int) -> Any:
    inner = _enclosed(value)

    def scaled(logits: float) -> Any:
        return inner(logits)

    return scaled


def _local_class(value: int) -> Any:
    class Scaled:
        def __call__(self, logits: float) -> float:
            return logits * value

    return Scaled


def _refers_to_itself(value: int) -> Any:
    made = _Adjustable(value)
    made.itself = [made]  # type: ignore[attr-defined]
    return made


def _made_by_exec(value: int) -> Any:
    found: dict[str, Any] = {"__name__": "__main__", "FACTOR": value}
    exec("def scaled(logits): return logits * FACTOR", found)
    return found["scaled"]


def _run(code: str, **values: Any) -> Any:
    found: dict[str, Any] = {"__name__": "__main__"} | values
    exec(code, found)
    return found["made"]


def _uses_a_library(value: int) -> Any:
    import torch.nn.functional as F

    def loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(logits, labels, label_smoothing=value / 10)

    return loss


def _logs(value: int) -> Any:
    made = _Adjustable(value)
    made.log = logging.getLogger("a callback")  # type: ignore[attr-defined]
    return made


def _class_with_a_list(value: int) -> Any:
    class Scaled:
        factors = (1, [value])

    return Scaled


class _Late:
    """Its state is made when the training starts."""

    def __init__(self, value: int) -> None:
        self.value = value

    def on_fit_start(self, context: Any) -> None:
        self.best = 0.0

    def state_dict(self) -> dict[str, float]:
        return {"best": self.best}


class _Stateless(_Late):
    def state_dict(self) -> None:  # type: ignore[override]
        return None


MAKERS = [
    _uses_a_library,
    _logs,
    _class_with_a_list,
    _Late,
    _Stateless,
    lambda value: _run("def made(x): return x * factors[0]", factors=[value]),
    lambda value: _run("def made(x): return x * factors['a']", factors={"a": (value,)}),
    lambda value: _run("def made(x): return [y * factor for y in x]", factor=value),
    lambda value: _run("def made(x): return (lambda y: y * factor)(x)", factor=value),
    lambda value: _run("def made(x, y): return loss(x, y)", loss=nn.CrossEntropyLoss(label_smoothing=value / 10)),
    lambda value: _run("def made(x): return weights * x", weights=torch.tensor([1.0, value])),
    lambda value: _run("def made(x): return scale(x)", scale=partial(_scale, factor=value)),
    _model,
    _data,
    _Adjustable,
    _Slotted,
    _Scaled,
    _enclosed,
    _default,
    _calls_another,
    _local_class,
    _refers_to_itself,
    _made_by_exec,
    lambda value: [_Adjustable(value)],
    lambda value: _Adjustable(_Adjustable(value)),  # type: ignore[arg-type]
    lambda value: nn.CrossEntropyLoss(label_smoothing=value / 10),
    lambda value: nn.CrossEntropyLoss(weight=torch.tensor([1.0, value])),
    lambda value: nn.Sequential(nn.Dropout(), _Scaled(value)),
    lambda value: partial(_scale, factor=value),
    lambda value: partial(_scale, value),
    lambda value: _Adjustable(value).__init__,
    lambda value: {"a": {value}},
    lambda value: torch.full((2,), value, dtype=torch.bfloat16),
    lambda value: A.Compose([A.HorizontalFlip(p=value / 10)]),
    lambda value: Path(str(value)),
]


@pytest.mark.parametrize("make", MAKERS)
def test_equal_objects_have_equal_names_and_others_do_not(make: Any) -> None:
    assert name_of(make(1)) == name_of(make(1)) != name_of(make(2))
    assert is_import_path(name_of(make(1)))


def test_what_changes_in_training_is_not_part_of_a_name() -> None:
    callback = EarlyStopping(patience=3)
    name = name_of(callback)
    callback.best, callback.num_without_improvement = 0.9, 2
    assert name_of(callback) == name != name_of(EarlyStopping(patience=4))
    model = _model(0)
    assert name_of(model.eval()) == name_of(model.train())


def test_what_others_do_is_not_part_of_a_name() -> None:
    callback, function = _logs(1), _run("def made(x): return x.log(other)", log=[1], other=object())
    names = name_of(callback), name_of(function)
    logging.getLogger("of another library").isEnabledFor(logging.DEBUG)
    function.__globals__["log"] = [2]  # an attribute of x has the same name
    function.__globals__["unused"] = 3
    assert (name_of(callback), name_of(function)) == names


def test_a_name_is_the_same_in_another_process() -> None:
    code = f"import sys; sys.path[:0] = {sys.path!r}; import test_component_names as t; " + (
        "print([t.name_of(make(1)) for make in t.MAKERS])"
    )
    found = {run_python("-c", code, cwd=Path(__file__).parent, PYTHONHASHSEED=seed).stdout for seed in "12"}
    assert len(found) == 1
    assert "object:" in found.pop()


def test_a_lazy_module_has_a_name() -> None:
    """Its parameters have no shape before the first forward pass."""

    def lazy(features: int) -> nn.Module:
        return nn.Sequential(nn.LazyConv2d(features, 3), nn.LazyBatchNorm2d())

    assert name_of(lazy(4)) == name_of(lazy(4)) != name_of(lazy(5))
