"""Precision `auto`: chosen by the launch, the run that continues or the hardware; the same on all ranks; stored."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from training_commands import REPOSITORY, TINY, flags, run_python

from cifar10_accel.commands.doctor_checks import default_config
from cifar10_accel.commands.doctor_checks import precision as doctor_precision
from cifar10_accel.commands.evaluate import evaluate
from cifar10_accel.errors import SettingsError
from cifar10_accel.files import read_yaml
from cifar10_accel.runs.run_folder import RunFolder
from cifar10_accel.settings import Settings
from cifar10_accel.train import fit
from cifar10_accel.training.accelerator import make_accelerator
from cifar10_accel.training.launch import precision as precision_module
from cifar10_accel.training.launch.precision import choose_precision, is_computed_well, resolve_precision

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
SMALL = TINY | {"max_steps": 2}
pytestmark = pytest.mark.skipif(torch.accelerator.is_available(), reason="precisions of a CPU")


@pytest.fixture(autouse=True)
def _nothing_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CIFAR10_ACCEL_PRECISION")


def set_instructions(monkeypatch: pytest.MonkeyPatch, **found: bool) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found)


def set_gpu(monkeypatch: pytest.MonkeyPatch, *, capability: tuple[int, int]) -> None:
    """Let torch report a CUDA GPU. It says that every GPU has bf16, if emulation counts."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    supported = lambda including_emulation=True: including_emulation or capability >= (8, 0)  # noqa: E731
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)


@pytest.mark.parametrize(
    ("instructions", "expected"),
    [
        ({"avx2": True, "avx512_f": True}, "no"),
        ({"avx512_bf16": False, "amx_bf16": True}, "bf16"),
        ({}, "no"),  # not an x86 CPU
    ],
)
def test_a_cpu_gets_bf16_only_with_instructions_for_it(
    instructions: dict[str, bool], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_instructions(monkeypatch, **instructions)
    monkeypatch.setattr(precision_module, "_bf16_speedup", lambda: pytest.fail("nothing needs to be timed"))
    precision, reason = choose_precision(CPU)
    assert precision == expected
    assert ("no bf16" in reason) is (expected == "no")
    assert is_computed_well("bf16", CPU) is (expected == "bf16")
    assert is_computed_well("no", CPU)
    assert not is_computed_well("fp16", CPU)


@pytest.mark.parametrize(("speedup", "expected"), [(1.7, "bf16"), (1.2, "bf16"), (1.1, "no"), (0.55, "no")])
def test_avx512_bf16_without_amx_is_used_only_where_it_is_faster(
    speedup: float, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_instructions(monkeypatch, avx512_bf16=True)
    monkeypatch.setattr(precision_module, "_bf16_speedup", lambda: speedup)
    assert choose_precision(CPU) == (expected, f"this CPU computes bf16 {speedup:.1f} times as fast as float32")
    assert is_computed_well("bf16", CPU) is (expected == "bf16")
    assert is_computed_well("no", CPU)


def test_the_speed_of_bf16_is_a_ratio_of_the_fastest_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    preparing, fastest_float32, fastest_bf16 = [0.1, 0.1], [1.5, 2.0], [4.0, 0.5]
    seconds = iter([*preparing, *[4.0, 2.0] * 5, *fastest_float32, *fastest_bf16])
    dtypes = []

    def timed(matrix: torch.Tensor) -> float:
        dtypes.append(matrix.dtype)
        return next(seconds)

    monkeypatch.setattr(precision_module, "_seconds_of_product", timed)
    assert precision_module._bf16_speedup.__wrapped__() == 1.5 / 0.5
    assert dtypes == [torch.float32, torch.bfloat16] * (1 + precision_module.TIMED_ROUNDS)


def test_the_speed_of_bf16_is_measured_once_and_changes_nothing() -> None:
    """The value that is printed is the one that decided, and the random state is left as it was."""
    before = torch.get_rng_state()
    assert precision_module._bf16_speedup.__wrapped__() > 0
    assert torch.equal(before, torch.get_rng_state())
    assert precision_module._bf16_speedup() == precision_module._bf16_speedup()


@pytest.mark.parametrize(
    ("capability", "expected"), [((9, 0), "bf16"), ((8, 0), "bf16"), ((7, 5), "fp16"), ((7, 0), "fp16"), ((6, 1), "no")]
)
def test_a_gpu_gets_what_its_generation_computes(
    capability: tuple[int, int], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_gpu(monkeypatch, capability=capability)
    assert choose_precision(CUDA)[0] == expected
    assert is_computed_well("bf16", CUDA) is (capability >= (8, 0))
    assert is_computed_well("fp16", CUDA)


def test_other_devices_get_float32() -> None:
    assert choose_precision(torch.device("mps")) == ("no", "half precision has not been measured on mps")


@pytest.mark.parametrize(("has_bf16", "expected"), [(True, "bf16"), (False, "no")])
def test_auto_is_resolved_stored_and_printed(
    has_bf16: bool, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    set_instructions(monkeypatch, amx_bf16=has_bf16)
    monkeypatch.chdir(tmp_path)
    run = fit(Settings(**SMALL))
    shown = "bf16" if has_bf16 else "fp32"
    assert f"precision {shown};" in capsys.readouterr().out.splitlines()[0]
    assert read_yaml(run.path / "settings.yaml")["precision"] == expected
    assert run.settings.precision == expected
    assert json.loads((run.path / "environment.json").read_text())["precision"] == shown
    assert Settings(**SMALL).precision == "auto"


@pytest.mark.parametrize(("requested", "expected"), [("bf16", "bf16"), ("no", "no"), (None, "no")])
def test_the_launch_is_asked_first(requested: str | None, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    set_instructions(monkeypatch, avx2=True)
    if requested is not None:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", requested)
    assert make_accelerator(Settings(**SMALL)).mixed_precision == expected


def test_no_of_a_launch_asks_for_nothing_and_the_setting_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    set_instructions(monkeypatch, amx_bf16=True)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert make_accelerator(Settings(**SMALL)).mixed_precision == "bf16"
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert make_accelerator(Settings(**SMALL, precision="no")).mixed_precision == "no"


@pytest.mark.long
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], None),
        (["--mixed_precision", "no"], None),
        (["--mixed_precision", "bf16"], "bf16"),
        (["--config_file", str(REPOSITORY / "accelerate_config.yaml")], None),
    ],
    ids=["nothing", "no", "bf16", "file"],
)
def test_a_real_launch(options: list[str], expected: str | None, tmp_path: Path) -> None:
    """With None the hardware decides: the launcher passes on the same "no" for a flag `no` and for no flag at all."""
    launch = ["-m", "accelerate.commands.launch", *options, "-m", "cifar10_accel.train"]
    done = run_python(*launch, *flags(SMALL | {"run_dir": "run"}), cwd=tmp_path, ACCELERATE_USE_CPU="true")
    assert done.returncode == 0, done.stderr
    found = RunFolder(tmp_path / "run").settings().precision
    assert found == (expected or choose_precision(CPU)[0])


def test_fp16_of_a_launch_on_a_cpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    with pytest.raises(SettingsError, match="'fp16' on a CPU would silently be fp32; give --precision no"):
        make_accelerator(Settings(**SMALL))


def resolved_by(ranks: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, device: torch.device = CPU) -> str:
    """Return the precision that rank 0 resolves if the ranks say this of themselves."""

    def gathered(mine: list[Any]) -> list[Any]:
        return [dataclasses.replace(mine[0], host=f"node{rank}", **said) for rank, said in enumerate(ranks)]

    monkeypatch.setattr(precision_module, "gather_object", gathered)
    launch: Any = SimpleNamespace(device=device, is_main_process=True)
    return resolve_precision(Settings(**SMALL), launch)


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        (["bf16", "bf16"], "bf16"),
        (["bf16", "no"], "no"),
        (["no", "bf16", "bf16"], "no"),
        (["bf16", "fp16"], "fp16"),
        (["fp16", "bf16", "no"], "no"),
    ],
)
def test_ranks_with_other_hardware_take_one_precision(
    chosen: list[str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_gpu(monkeypatch, capability=(9, 0))
    assert resolved_by([{"chosen": each} for each in chosen], monkeypatch, CUDA) == expected


def test_launches_that_ask_for_other_precisions_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError) as caught:
        resolved_by([{"requested": "bf16"}, {"requested": None}], monkeypatch)
    assert str(caught.value) == (
        "launch: mixed precision is no for rank 1 on node1 but bf16 for rank 0 on node0; give every machine the same"
    )


def test_rank_0_decides_about_the_run_that_continues(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = [{"continued": "bf16", "chosen": "no"}, {"continued": None, "chosen": "no"}]
    assert resolved_by(ranks, monkeypatch) == "bf16"
    assert resolved_by(list(reversed(ranks)), monkeypatch) == "no"


@pytest.mark.long
def test_two_ranks_with_and_without_bf16_train_in_float32(tmp_path: Path) -> None:
    program = (
        "import os, torch\n"
        "has = os.environ['RANK'] == '0'\n"
        "torch.cpu.get_capabilities = lambda: {'amx_bf16': has}\n"
        "from cifar10_accel.settings import Settings\n"
        "from cifar10_accel.training.accelerator import make_accelerator\n"
        "from cifar10_accel.training.launch.precision import explain_precision\n"
        "settings = Settings(recipe='smoke', num_threads=1)\n"
        "accelerator = make_accelerator(settings)\n"
        "found = accelerator.mixed_precision\n"
        "print(f'rank {accelerator.process_index}: {explain_precision(found, settings, accelerator.device)};', found)\n"
    )
    (tmp_path / "program.py").write_text(program)
    done = run_python("program.py", cwd=tmp_path, num_processes=2)
    assert done.returncode == 0, done.stderr
    assert "rank 0: auto: not bf16, because of" in done.stdout
    assert "rank 1: auto, since this CPU has no bf16 instructions; no" in done.stdout
    assert "AMX for bf16; bf16" not in done.stdout


def test_a_continued_run_keeps_its_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    set_instructions(monkeypatch, amx_bf16=True)
    settings = SMALL | {"run_dir": tmp_path / "run"}
    fit(Settings(**settings))
    set_instructions(monkeypatch)  # a machine without
    assert make_accelerator(Settings(**SMALL)).mixed_precision == "no"
    capsys.readouterr()
    run = fit(Settings(**settings | {"max_steps": 4}))
    assert (run.settings.precision, run.summary["step"]) == ("bf16", 4)
    errors = capsys.readouterr().err
    assert f"precision: bf16, as the run in {tmp_path / 'run'} has been trained until now" in errors
    assert "bf16 is no faster than float32 on this CPU; continue it elsewhere" in errors
    with pytest.raises(SettingsError, match="precision bf16 -> no"):
        fit(Settings(**settings, precision="no"))


def test_a_run_of_a_gpu_in_fp16_does_not_continue_on_a_cpu(tmp_path: Path) -> None:
    stored = Settings(**SMALL, precision="fp16")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "settings.yaml").write_text(stored.to_yaml())
    (tmp_path / "run" / "metrics.jsonl").touch()
    with pytest.raises(SettingsError, match="is in 'fp16', which a CPU does not compute; continue it on a GPU"):
        fit(Settings(**SMALL, run_dir=tmp_path / "run"))


@pytest.mark.parametrize(("recorded", "expected"), [("bf16", "bf16"), ("fp32", "no"), (None, "no")])
def test_precision_null_of_earlier_versions_is_that_of_the_training(
    recorded: str | None, expected: str, tmp_path: Path
) -> None:
    folder = RunFolder(tmp_path)
    written = Settings(**SMALL).to_yaml()
    (tmp_path / "settings.yaml").write_text(written.replace("precision: auto", "precision: null"))
    assert read_yaml(tmp_path / "settings.yaml")["precision"] is None
    if recorded is not None:
        folder.write_json("environment.json", {"precision": recorded})
    assert folder.settings().precision == expected
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("precision: null\n")
    assert Settings(recipe=str(recipe)).precision == "auto"
    assert Settings(precision="none").precision == "auto"


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_run_is_evaluated_in_float32_where_its_precision_would_be_emulated(
    precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    set_instructions(monkeypatch, amx_bf16=True)
    fit(Settings(**SMALL, run_dir=tmp_path, precision="bf16"))
    stored = (tmp_path / "settings.yaml").read_text()
    (tmp_path / "settings.yaml").write_text(stored.replace("precision: bf16", f"precision: {precision}"))
    set_instructions(monkeypatch)
    capsys.readouterr()
    assert evaluate(tmp_path, overrides={})[1].precision == "no"
    assert f"precision: float32, not the run's {precision}, which this device" in capsys.readouterr().err
    assert evaluate(tmp_path, overrides={"precision": "bf16"})[1].precision == "bf16"
    set_instructions(monkeypatch, amx_bf16=True)
    assert evaluate(tmp_path, overrides={})[1].precision == ("bf16" if precision == "bf16" else "no")


@pytest.mark.parametrize(
    ("given", "launch", "has_bf16", "expected"),
    [
        ("auto", "no", True, "products in bfloat16 (auto, since this CPU has AMX for bf16)"),
        ("auto", "no", False, "products in float32 (auto, since this CPU has no bf16 instructions)"),
        ("auto", "bf16", True, "products in bfloat16 (as the launch asks)"),
        ("bf16", "no", False, "products in bfloat16 (as given), which this device computes no faster than float32"),
        ("no", "bf16", True, "products in float32 (as given)"),
    ],
)
def test_doctor_says_which_and_why(
    given: str, launch: str, has_bf16: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_instructions(monkeypatch, amx_bf16=has_bf16)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launch)
    settings = Settings(**SMALL, precision=given)
    check = doctor_precision(make_accelerator(settings), settings)
    assert check.text == f"precision: {expected}"
    assert check.level == ("warning" if "no faster" in expected else "ok")


def test_launch_files_of_the_package_ask_for_no_precision() -> None:
    for path in (REPOSITORY / "accelerate_config.yaml", REPOSITORY / "cifar10_accel/commands/accelerate_config.yaml"):
        assert "mixed_precision" not in read_yaml(path)


def test_no_in_accelerates_default_file_is_no_contradiction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = tmp_path / "default_config.yaml"
    monkeypatch.setattr("cifar10_accel.commands.doctor_checks.default_config_file", str(saved))
    set_instructions(monkeypatch, amx_bf16=True)
    accelerator = make_accelerator(Settings(**SMALL))
    saved.write_text("mixed_precision: 'no'\n")
    assert default_config(accelerator).level == "ok"
    saved.write_text("mixed_precision: fp16\n")
    assert "mixed_precision fp16 (here bf16)" in default_config(accelerator).text
