"""Thirty losses on a CPU must equal the recorded ones exactly, so that no change of the numerics goes unnoticed.

    RECORD_GOLDEN=1 python -m pytest tests/faults/test_golden.py

records them for this machine. The last digits depend on torch, on the kernels that oneDNN picks by instruction
set and on sizes of caches, so there is a record for each kind of machine.
"""

import json
import os
import platform
from pathlib import Path

import pytest
import torch
from fault_table import OpenFault, Straight
from trainings import SLOWER

from cifar10_accel.runs.metrics_jsonl import read_metrics

GOLDEN = Path(__file__).parent.parent / "golden" / "loss_cpu.json"
NUM_LOSSES = 30
SAME_EVERYWHERE = 3  # losses before differences in rounding between machines become visible
TOLERANCE = 1e-4


def machine() -> str:
    """Return the properties of the machine that the last digits of a loss depend on."""
    version = ".".join(torch.__version__.split(".")[:2])
    name = torch.cpu.get_capabilities().get("cpu_name", "unnamed CPU")
    return f"torch {version} {platform.machine()} {torch.backends.cpu.get_cpu_capability()} {name} 1 thread"


def losses_of(run_dir: Path) -> list[float]:
    """The first losses of a run, as it logged them."""
    return [line["train/loss"] for line in read_metrics(run_dir / "metrics.jsonl") if "train/loss" in line][:NUM_LOSSES]


@pytest.mark.skipif(torch.accelerator.is_available(), reason="the golden losses are those of a CPU")
def test_losses_are_the_recorded_ones(straight: Straight, fault: OpenFault) -> None:
    losses, recorded = losses_of(straight(SLOWER)), json.loads(GOLDEN.read_text())
    assert len(losses) == NUM_LOSSES
    if "RECORD_GOLDEN" in os.environ:
        GOLDEN.write_text(json.dumps(recorded | {machine(): losses}, indent=1, sort_keys=True) + "\n")
        pytest.skip(f"recorded for {machine()}")
    for known in recorded.values():
        assert losses[:SAME_EVERYWHERE] == pytest.approx(known[:SAME_EVERYWHERE], abs=TOLERANCE)
    if machine() not in recorded:
        pytest.skip(f"no record for {machine()}: close to the others'; RECORD_GOLDEN=1 pytest {Path(__file__).name}")
    with fault("a change of numerics: 30 losses on a CPU", expected="exactly as recorded", code=0):
        assert losses == recorded[machine()]


@pytest.mark.long
@pytest.mark.parametrize("changes", [{"momentum": 0.9001}, {"crop_padding": 3}], ids=str)
def test_small_changes_are_detected(changes: dict[str, float], straight: Straight) -> None:
    """Small changes of the settings change the losses, also within those compared without a record."""
    changed, known = losses_of(straight(SLOWER | changes | {"max_steps": 30})), losses_of(straight(SLOWER))
    assert changed != known
    if "momentum" not in changes:
        assert changed[:SAME_EVERYWHERE] != pytest.approx(known[:SAME_EVERYWHERE], abs=TOLERANCE)
