"""HTML pages: well-formed, self-contained, escaped, and with the numbers they were given."""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import Browser
from report_pages import EVIL, assert_self_contained, dynamics, predictions, write_page

from cifar10_accel.report.compare_page import ComparedRun, Comparison, write_compare_page
from cifar10_accel.report.sweep_charts import colour_key, colour_positions
from cifar10_accel.report.sweep_page import write_sweep_page
from cifar10_accel.runs.predictions import Predictions, changes
from cifar10_accel.runs.trial import Goal, State, SweepView, Trial


def trial(number: int, state: State = "finished", value: float | None = 0.5, **parameters: Any) -> Trial:
    return Trial(
        number=number,
        state=state,
        parameters=parameters,
        value=value,
        seconds=3.0,
        where=f"runs/{EVIL}",
        curve=() if value is None else ((1.0, value / 2), (2.0, value)),
        reason=EVIL if state == "failed" else "",
    )


def sweep(trials: list[Trial], *, metric: str = "val/accuracy", goal: Goal = "maximize") -> SweepView:
    return SweepView(title=EVIL, metric=metric, goal=goal, trials=tuple(trials))


def many(count: int) -> list[Trial]:
    random = np.random.default_rng(0)
    return [
        trial(
            number,
            "pruned" if number % 5 == 3 else "finished",
            0.2 + 0.7 * random.random(),
            max_lr=10 ** random.uniform(-2, 0),
            weight_decay=10 ** random.uniform(-5, -3),
            augment=f"{number % 3}",
        )
        for number in range(count)
    ]


@pytest.mark.parametrize(
    "trials",
    [
        [],
        [trial(0, max_lr=0.1)],
        [trial(0, "failed", None, max_lr=0.1), trial(1, "failed", None, max_lr=0.2)],
        [trial(0, value=math.nan, max_lr=0.1), trial(1, max_lr=0.2)],
        many(200),
        [trial(number, value=0.5, max_lr=0.1 * (number + 1)) for number in range(12)],
    ],
    ids=["none", "one", "all failed", "nan", "two hundred", "one parameter, one value"],
)
def test_sweep_page(trials: list[Trial], tmp_path: Path) -> None:
    path = tmp_path / "sweep.html"
    write_sweep_page(path, sweep(trials), importance={"max_lr": 1.0})
    page = assert_self_contained(path)
    assert page.ids >= {"map", "parallel", "importance", "curves", "trials"}
    assert page.text.count('<tr data-trial="') == len(trials)
    values = [t.value for t in trials if t.value is not None and not math.isnan(t.value)]
    if values:
        assert f"{max(values):.2%}" in page.text
    assert "nan" not in re.sub(r"<(style|script)>.*?</\1>", "", page.text, flags=re.S).lower().replace("nan@", "")


@pytest.mark.parametrize("goal", ["maximize", "minimize"])
def test_failed_trials_leave_the_others_their_colours(goal: Goal) -> None:
    sign = 1 if goal == "maximize" else -1
    trials = [trial(n, value=sign * value) for n, value in enumerate([0.76, 0.7, 0.14, 0.75, 0.72, 0.74, 0.73])]
    shares = colour_positions(trials, goal)
    assert sorted(shares, key=lambda n: -shares[n]) == [0, 3, 5, 6, 4, 1, 2]
    assert shares[0] == 1
    assert math.isclose(shares[6], 0.5)
    assert math.isclose(shares[1], 0, abs_tol=1e-9)
    assert shares[2] < 0
    key = colour_key(sweep(trials, metric="val/loss", goal=goal))
    assert "or worse" in key
    assert "or worse" not in colour_key(sweep(trials[:2], metric="val/loss", goal=goal))
    same = colour_positions([trial(n, value=sign * value) for n, value in enumerate([0.7, 0.7, 0.1, 0.7])], goal)
    assert same == {0: 1, 1: 1, 2: 0, 3: 1}


def test_run_page(tmp_path: Path) -> None:
    test = write_page(tmp_path / "report.html")
    page = assert_self_contained(tmp_path / "report.html")
    shown = page.text
    assert "SYNTHETIC" in shown
    assert "training" not in page.ids
    for value in (f"{test.accuracy():.2%}", "43.21%", "0.123", "9.9", "with temperature"):
        assert value in shown, value
    mistakes = int((test.prediction != test.label).sum())
    assert f"{mistakes:,}" in shown
    assert shown.count('class="image"') >= mistakes
    for count in test.confusion_matrix().flatten():
        assert str(count) in shown


def test_run_page_of_ten_thousand_images_of_noise(tmp_path: Path) -> None:
    """Nothing compresses worse; the page stays small and shows how many images it has."""
    test = predictions(10_000)
    noise = np.random.default_rng(1).integers(0, 256, (10_000, 32, 32, 3), dtype=np.uint8)
    write_page(tmp_path / "report.html", test=test, images=noise)
    assert_self_contained(tmp_path / "report.html")
    assert (test.prediction != test.label).sum() > 2000


@pytest.mark.parametrize(
    "changes",
    [
        {"test": None, "val": None, "missing": ["predictions.npz is missing or damaged"]},
        {"images": None, "missing": ["no pictures"]},
        {"val": None},
        {"metrics": []},
        {"summary": {}, "environment": {}},
    ],
    ids=["no predictions", "no images", "no hold-out", "no metrics", "no summary"],
)
def test_run_page_says_what_is_missing(changes: dict[str, Any], tmp_path: Path) -> None:
    write_page(tmp_path / "report.html", **changes)
    page = assert_self_contained(tmp_path / "report.html")
    for sentence in changes.get("missing", []):
        assert sentence in page.text
    if "val" in changes and changes.get("test", 1) is not None:
        assert "with temperature" not in page.text


@pytest.mark.parametrize("num_epochs", [1, 24, 500])
@pytest.mark.parametrize("has_images", [True, False])
def test_run_page_with_dynamics(num_epochs: int, has_images: bool, tmp_path: Path) -> None:
    found = dynamics(num_epochs)
    noise = np.random.default_rng(1).integers(0, 256, (10_000, 32, 32, 3), dtype=np.uint8)
    write_page(
        tmp_path / "report.html",
        dynamics=found,
        training_images=noise[:3000] if has_images else None,
        test=predictions(10_000),
        images=noise,
    )
    page = assert_self_contained(tmp_path / "report.html")
    assert "training" in page.ids
    num_mislabelled, num_forgotten = len(found.likely_mislabelled()), len(found.most_forgotten())
    assert num_mislabelled > 35
    assert f"{num_mislabelled:,}" in page.text
    assert f"{found.never_learned().sum():,} images" in page.text
    shown = 35 + min(35, num_forgotten)
    assert page.text.count('class="history"') == shown
    assert page.text.count('class="tile of-training"') == (shown if has_images else 0)


def write_comparison(path: Path, **changes_to_it: Any) -> None:
    """Write the page of three made-up runs: two models, and the second again."""
    before = predictions(600)
    after = Predictions(before.index, before.label, before.probabilities[::-1].copy(), before.loss)
    fixed, broken = changes(before, after)
    metrics = [{"step": s, "epoch": s / 10, "train/loss": 2 / s, "test/accuracy": s / 30} for s in range(1, 21)]
    runs = [
        ComparedRun(name=name, summary={"train_seconds": 61.0}, metrics=metrics, test=test)
        for name, test in ((EVIL, before), ("second", after), ("third", after))
    ]
    given: dict[str, Any] = {
        "runs": runs,
        "dataset": "synthetic",
        "differences": {"max_lr": [0.123, 0.4, 0.4]},
        "fixed": fixed,
        "class_names": [EVIL, *map(str, range(1, 10))],
        "broken": broken,
        "p_value": 0.0314,
        "unpaired_reason": "",
        "seeds": {"B, C": "mean 12.34%"},
    }
    noise = np.random.default_rng(1).integers(0, 256, (600, 32, 32, 3), dtype=np.uint8)
    images = changes_to_it.pop("images", noise)
    write_compare_page(path, Comparison(**(given | changes_to_it)), images)


def test_compare_page(tmp_path: Path) -> None:
    write_comparison(tmp_path / "compare.html")
    page = assert_self_contained(tmp_path / "compare.html")
    assert page.ids >= {"runs", "differences", "curves", "classes", "fixed", "broken", "seeds"}
    for text in ("SYNTHETIC", "0.123", "0.0314", "significant at 0.05", "mean 12.34%", "1:01"):
        assert text in page.text, text
    before = predictions(600)
    after = before.probabilities[::-1].argmax(axis=1) == before.label
    shown = [int((~before.correct & after).sum()), int((before.correct & ~after).sum())]
    assert page.text.count('<span class="tile"') == sum(min(count, 280) for count in shown)
    for count in shown:
        assert f"{count:,} images" in page.text
    assert f"{before.accuracy():.2%}" in page.text


@pytest.mark.parametrize(
    "change",
    [
        {"images": None, "missing": ["no pictures"]},
        {"fixed": [], "broken": []},
        {"differences": {}, "seeds": {}},
        {"unpaired_reason": "Not the same images.", "fixed": [], "broken": [], "p_value": math.nan},
    ],
    ids=["no images", "nothing changed", "same settings", "unpaired"],
)
def test_compare_page_of_less(change: dict[str, Any], tmp_path: Path) -> None:
    write_comparison(tmp_path / "compare.html", **change)
    page = assert_self_contained(tmp_path / "compare.html")
    assert ("McNemar" in page.text) == ("unpaired_reason" not in change)
    for sentence in change.get("missing", [change.get("unpaired_reason", "")]):
        assert sentence in page.text


@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_opens_the_pages_without_a_complaint(width: int, tmp_path: Path) -> None:
    """On a phone's width, too: nothing stands out to the right; what can be clicked does what it should."""
    noise = np.random.default_rng(1).integers(0, 256, (3000, 32, 32, 3), dtype=np.uint8)
    write_page(tmp_path / "report.html", dynamics=dynamics(24), training_images=noise)
    write_sweep_page(tmp_path / "sweep.html", sweep(many(20), metric="val/loss", goal="minimize"))
    write_comparison(tmp_path / "compare.html")
    sorts = "document.querySelector('th button').click(); document.querySelector('th[aria-sort]') !== null"
    opens = "document.querySelector('button[data-cell]').click(); document.querySelector('dialog').open"
    with Browser(tmp_path / "profile", width=width) as browser:
        for name, works in {"report": opens, "compare": sorts, "sweep": sorts}.items():
            address = (tmp_path / f"{name}.html").as_uri()
            browser.open(address)
            browser.wait_for(f"location.href == '{address}' && document.readyState == 'complete'")
            assert browser.value(works), name
            assert browser.value("document.documentElement.scrollWidth <= innerWidth"), name
        assert browser.errors == []
        assert [url for url in browser.requested if not url.startswith(("file:", "data:", "about:"))] == []
