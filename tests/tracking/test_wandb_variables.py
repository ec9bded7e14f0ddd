"""W&B's own environment variables: weaker than settings, stronger than defaults, and said."""

from pathlib import Path

import pytest
from tracked_run import record_run, tracker_for

from cifar10_accel.settings import Settings

wandb = pytest.importorskip("wandb")


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    for word, value in {"MODE": "offline", "PROJECT": "theirs", "ENTITY": "team", "NAME": "a name"}.items():
        monkeypatch.setenv(f"WANDB_{word}", value)


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, object]]:
    """The arguments of every call of wandb.init."""
    calls: list[dict[str, object]] = []
    init = wandb.init

    def recorded(*args: object, **options: object) -> object:
        calls.append(options)
        return init(*args, **options)

    monkeypatch.setattr(wandb, "init", recorded)
    return calls


def test_they_are_weaker_than_any_setting_and_stronger_than_the_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (Settings().wandb_project, Settings().wandb_entity) == ("theirs", "team")
    assert Settings(wandb_project="mine").wandb_project == "mine"
    (tmp_path / "own.yaml").write_text("wandb_project: of a recipe\n")
    assert Settings(recipe=str(tmp_path / "own.yaml")).wandb_project == "of a recipe"
    monkeypatch.setenv("CIFAR10_ACCEL_WANDB_PROJECT", "of the environment")
    assert Settings().wandb_project == "of the environment"
    monkeypatch.setenv("WANDB_ENTITY", "")
    assert Settings().wandb_entity is None
    assert Settings().fingerprint() == Settings(wandb_project="another").fingerprint()


def test_a_stored_run_does_not_take_them() -> None:
    assert Settings.stored({"wandb_project": "as stored"}).wandb_project == "as stored"
    assert Settings.stored({}).wandb_project == "cifar10-accel"


def test_a_run_uses_them_and_says_so(
    tmp_path: Path, given: list[dict[str, object]], capsys: pytest.CaptureFixture[str]
) -> None:
    record_run(tracker_for(tmp_path / "run", tracker="wandb"))
    (call,) = given
    assert (call["project"], call["entity"], call["name"]) == ("theirs", "team", "a name")
    shown = capsys.readouterr().out
    for line in ("project 'theirs', from WANDB_PROJECT", "entity 'team', from WANDB_ENTITY", "name 'a name', from"):
        assert f"W&B: {line}" in shown


def test_settings_win_and_that_is_said_too(
    tmp_path: Path, given: list[dict[str, object]], capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"wandb_project": "mine", "wandb_entity": "me", "run_name": "first"}
    record_run(tracker_for(tmp_path / "run", tracker="wandb", **settings))
    (call,) = given
    assert (call["project"], call["entity"], call["name"]) == ("mine", "me", "first")
    shown = capsys.readouterr().out
    for word, ours, theirs in (("project", "mine", "theirs"), ("entity", "me", "team"), ("name", "first", "a name")):
        assert f"W&B: {word} {ours!r}, from the settings, not {theirs!r} from WANDB_{word.upper()}" in shown
