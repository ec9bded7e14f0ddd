"""Axes and tables of charts: ticks at both ends, none over another, long tables that can be searched."""

import math

import numpy as np
import pytest

from cifar10_accel.report.charts import MAX_ROWS, Axis, Line, bar_chart, line_chart
from cifar10_accel.report.svg import Kind, Scale, fit_scale, tag

VALUES = [
    [0.0, 6.0],
    [0.1, 11.0],
    [0.4835, 0.9953],
    [-3.2, 17.1],
    [0.31, 0.31],
    [0.0],
    [1e-7, 2.5e-7],
    [12_345.0, 98_765.0],
    [math.nan, 0.2, 0.7, math.inf],
]
LOG_VALUES = [[1e-5, 1.0], [0.003, 0.42], [0.5, 0.7], [0.1], [2e-4, 9e3]]


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize(
    ("values", "kind"), [(values, "linear") for values in VALUES] + [(values, "log") for values in LOG_VALUES]
)
def test_both_ends_have_ticks_and_none_overlap(values: list[float], kind: Kind, exact: bool) -> None:
    scale = fit_scale(values, 70, 546, kind=kind, exact=exact)
    ticks = scale.ticks()
    assert (ticks[0], ticks[-1]) == (scale.low, scale.high)
    assert ticks == sorted(ticks)
    assert 2 <= len(ticks) <= 9
    places = [scale(tick) for tick in ticks]
    assert (places[0], places[-1]) == pytest.approx((70, 546))
    assert min(np.diff(places)) > 30
    finite = [value for value in values if math.isfinite(value)]
    assert scale.low <= min(finite)
    assert max(finite) <= scale.high * (1 + 1e-9)
    if exact and len(set(finite)) > 1:
        assert (scale.low, scale.high) == (min(finite), max(finite))


def test_shares_stay_between_0_and_100_percent() -> None:
    random = np.random.default_rng(0)
    for _ in range(200):
        values = random.random(5).tolist()
        scale = fit_scale(values, 0, 1)
        assert scale.low >= 0
        assert scale.high <= 1


def test_the_first_and_the_last_epoch_are_on_the_axis() -> None:
    line = Line(name="test", x=[1.0, 2.0, 11.0], y=[0.2, 0.5, 0.6], style="s1")
    chart = line_chart([line], title="t", x=Axis(label="epoch", start=0), y=Axis(label="accuracy"))
    for label in (">0</text>", ">11</text>"):
        assert label in chart


def test_categories_have_a_tick_each() -> None:
    assert Scale("category", 0, 2, 0, 100, ("a", "b", "c")).ticks() == [0, 1, 2]


def test_long_tables_can_be_searched() -> None:
    for count, searched in ((MAX_ROWS, False), (MAX_ROWS + 1, True), (120, True)):
        names = [f"class {k}" for k in range(count)]
        chart = bar_chart(names, [k / 1000 for k in range(count)], [""] * count, title="t")
        assert ("data-search" in chart) == searched
        assert chart.count("<tr>") == count


def test_bars_use_the_width_and_a_missing_value_has_none() -> None:
    chart = bar_chart(["a", "b", "c"], [0.05, math.nan, 0.1], ["", "", ""], title="t")
    assert "width:50.00%" in chart
    assert "width:100.00%" in chart
    assert chart.count("<span") == 2
    assert "width:0.00%" in bar_chart(["a"], [0.0], [""], title="t")


def test_tags_are_escaped_and_inputs_have_no_end() -> None:
    assert tag("p", "<b>", title='"') == '<p title="&#34;">&lt;b&gt;</p>'
    assert tag("input", type="search") == '<input type="search">'
