"""best.yaml and the command on the page of a sweep train the best trial again, from any folder."""

import html
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from training_commands import TINY

from cifar10_accel.cli import main
from cifar10_accel.report.sweep_page import write_sweep_page
from cifar10_accel.runs import checkpoint
from cifar10_accel.runs.trial import Rerun, SweepView, Trial
from cifar10_accel.settings import Settings
from cifar10_accel.sweep.results import write_results
from cifar10_accel.train import fit

CONSTANTS: dict[str, Any] = {
    name: TINY[name] for name in ("recipe", "synthetic_size", "val_size", "width", "batch_size")
}


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    newest = checkpoint.newest(run_dir / "checkpoints")
    assert newest is not None
    return checkpoint.load(newest).model


def copied(page: str) -> list[str]:
    """Return what the copy buttons of a page put on the clipboard."""
    return [html.unescape(text) for text in re.findall(r'data-copy="([^"]*)"', page)]


def trial(number: int, where: Path | str = "", **values: Any) -> Trial:
    given = {"state": "finished", "parameters": {"max_lr": 0.1}, "value": 0.5, "curve": (), "seconds": 1.0} | values
    return Trial(number=number, where=str(where), **given)


def view_of(*trials: Trial) -> SweepView:
    return SweepView(title="s", metric="val/accuracy", goal="maximize", trials=trials)


def test_the_copied_command_trains_the_best_trial_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From another folder, with all that the trial had: the sweep's folder is relative and has a space in its name."""
    folder = Path("my sweep [1]")
    monkeypatch.setenv("CIFAR10_ACCEL_MOMENTUM", "0.5")  # as a sweep passes its environment on to the trials
    given = {"tracker": "none", "num_threads": 1, **CONSTANTS, "max_lr": 0.07, "run_dir": folder / "trial-0000"}
    fit(Settings(**given))
    monkeypatch.delenv("CIFAR10_ACCEL_MOMENTUM")
    view = view_of(trial(0, (folder / "trial-0000").resolve(), parameters={"max_lr": 0.07}))
    rerun = write_results(view, folder, constants=CONSTANTS)
    assert rerun is not None
    assert (folder / "best.yaml").read_text().splitlines()[0] == f"# {rerun.command}"
    write_sweep_page(folder / "sweep.html", view, rerun=rerun)
    assert copied((folder / "sweep.html").read_text()) == [rerun.command]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    words = shlex.split(rerun.command)
    assert words[0] == "cifar10-accel"
    done = CliRunner().invoke(main, [*words[1:], "--tracker=none", "--run-dir=again"])
    assert done.exit_code == 0, done.output
    again, before = weights(Path("again")), weights(tmp_path / folder / "trial-0000")
    assert all(torch.equal(again[name], before[name]) for name in before)
    settings = Settings.stored(Settings(recipe=str(tmp_path / folder / "best.yaml")).model_dump())
    assert settings.momentum == 0.5
    assert settings.run_dir is None


def test_the_page_says_whose_settings_the_recipe_has(tmp_path: Path) -> None:
    best = trial(1, value=0.9, state="pruned")
    page = tmp_path / "sweep.html"
    write_sweep_page(page, view_of(trial(0), best), rerun=Rerun(0, "cifar10-accel train --recipe '/a b/best.yaml'"))
    assert "best.yaml has the settings of trial 0, the best that finished." in page.read_text()
    write_sweep_page(page, view_of(trial(0), replace(best, state="finished")), rerun=Rerun(1, "x"))
    assert "the best that finished" not in page.read_text()


@pytest.mark.parametrize("constants", [None, CONSTANTS], ids=["of W&B", "none finished"])
def test_without_a_recipe_the_page_names_none(constants: dict[str, Any] | None, tmp_path: Path) -> None:
    state = "finished" if constants is None else "pruned"
    view = view_of(trial(0, "https://wandb.example/run0", state=state))
    rerun = write_results(view, tmp_path, constants=constants)
    assert rerun is None
    write_sweep_page(tmp_path / "sweep.html", view, rerun=rerun)
    assert copied((tmp_path / "sweep.html").read_text()) == []
    assert "best.yaml" not in (tmp_path / "sweep.html").read_text()


def test_arguments_of_an_own_model_are_in_the_recipe(tmp_path: Path) -> None:
    folder = tmp_path / "trial-0000"
    folder.mkdir()
    settings = Settings(
        recipe="smoke", model="own:Net", **{"model_args.depth": 3, "model_args.num_heads": 2}, val_size=40
    )
    (folder / "settings.yaml").write_text(settings.to_yaml())
    best = trial(0, folder, parameters={"model_args.depth": 3})
    constants = {"recipe": "smoke", "model": "own:Net", "model_args.num_heads": 2, "val_size": 40}
    write_results(view_of(best), tmp_path, constants=constants)
    again = Settings(recipe=str(tmp_path / "best.yaml"))
    assert again.model_args == {"depth": 3, "num_heads": 2}
    assert again.weight_affecting() == settings.weight_affecting()
