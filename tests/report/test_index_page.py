"""The page of all runs: every run in the table, relative links, curves, and the command for those that are ticked."""

import math
import re
import shlex
from html import unescape
from pathlib import Path
from urllib.parse import unquote

import pytest
from browser import Browser
from listed_runs import make_run
from report_pages import Parsed
from test_pages import many, sweep, write_comparison

from cifar10_accel.report.index_page import write_index_page
from cifar10_accel.report.sweep_page import write_sweep_page
from cifar10_accel.runs.listing import Curve, list_runs, read_curve

EVIL = "<script>alert(1)<"  # a path may have any character but / and NUL
TICK = """
var find = (id) => document.getElementById(id);
var rows = (fits) => [...document.querySelectorAll("tbody tr")].filter(fits);
var tick = (name) => rows((row) => name.test(row.dataset.name)).forEach((row) => row.querySelector("input").click());
"""


def write(folder: Path) -> Parsed:
    listing = list_runs(folder)
    runs = sorted(listing.runs, key=lambda run: run.name)
    write_index_page(folder / "index.html", listing, runs, curves=[read_curve(run) for run in runs])
    page = Parsed(folder / "index.html")
    assert EVIL not in page.text
    assert re.findall(r"url\((?!['\"]?(?:data:|#))", page.text) == []
    return page


def texts(page: Parsed) -> str:
    shown = re.sub(r"<(style|script)>.*?</\1>", "", page.text, flags=re.S)
    return unescape(re.sub(r"<[^>]*>", " ", shown))


def make_folder(folder: Path, num_runs: int) -> None:
    for number in range(num_runs):
        make_run(folder / f"sweeps/s/trial-{number:03d}", test=0.5 + 0.3 * number / num_runs, seed=number)
    make_run(folder / "begun", state="running")


def test_links_are_relative_and_lead_to_files(tmp_path: Path) -> None:
    for name in ("plain", "repeat/cpu/seed-0", "a b#c?d=1%20", EVIL, 'quo"te', "it's", "a:b"):
        make_run(tmp_path / name, test=0.5, tta=0.6)
    make_run(tmp_path / "begun", state="running")
    (tmp_path / "sub [x]").mkdir()
    write_comparison(tmp_path / "compare.html")
    write_comparison(tmp_path / "sub [x]" / "mine & yours.html")
    write_sweep_page(tmp_path / "sub [x]" / "sweep.html", sweep(many(3)))
    assert (tmp_path / "compare.html").stat().st_size > 100_000  # pictures come before what says the page's kind
    foreign = tmp_path / "other.html"
    foreign.write_text('<p class="eyebrow">cifar10-accel compare</p>')
    page = write(tmp_path)
    links = [link for link in page.linked if not link.startswith(("#", "data:"))]
    found = {(tmp_path / unquote(link)).resolve() for link in links}
    assert found == set(tmp_path.resolve().rglob("*.html")) - {tmp_path / "index.html", foreign}
    for link in links:
        assert re.match(r"\./[^:?#]", link)
        assert "?" not in link
        assert "#" not in link


def test_the_page_has_the_numbers_it_was_given(tmp_path: Path) -> None:
    make_run(tmp_path / "one", test=0.9123, tta=0.9234, seed=77)
    make_run(tmp_path / "two", val=0.8765, recipe="cpu")
    page = write(tmp_path)
    shown = texts(page)
    for text in (
        "91.23%",
        "92.34%",
        "77",
        "87.65%",
        "1:01",
        "finished",
        "87.65% on the hold-out after epoch 4",
        "SYNTHETIC",
        "2:02",
    ):
        assert text in shown, text
    assert page.text.count("<tr data-trial=") == 2
    assert page.text.count('class="series') == 2
    assert {"curves", "runs"} <= page.ids
    assert "pages" not in page.ids


@pytest.mark.parametrize("measured", [{}, {"test": 0.5}, {"val": 0.0}], ids=["nothing", "one", "zero"])
def test_the_page_of_one_run(measured: dict[str, float], tmp_path: Path) -> None:
    """The listed folder may be the run itself."""
    run = make_run(tmp_path / "run", **measured)
    page = write(run)
    assert ("No run has measured" in page.text) == (not measured)
    assert "./report.html" in page.linked
    assert "nan" not in texts(page).lower()


def test_the_page_of_no_runs(tmp_path: Path) -> None:
    assert "0" in texts(write(tmp_path))


def test_file_names_that_are_no_text(tmp_path: Path) -> None:
    """Linux allows any bytes in a file name; the link still leads there."""
    name = b"caf\xe9".decode("utf-8", "surrogateescape")
    make_run(tmp_path / name, test=0.5)
    page = write(tmp_path)
    assert "./caf%E9/report.html" in page.linked
    assert "caf?" in page.text


def test_the_page_of_a_thousand_runs_stays_small(tmp_path: Path) -> None:
    listing = list_runs(make_run(tmp_path / "run", test=0.5))
    runs = [listing.runs[0]] * 1000
    curve = Curve("test", [(float(epoch), 0.9 * (1 - math.exp(-epoch / 20))) for epoch in range(1, 301)])
    write_index_page(tmp_path / "index.html", listing, runs, curves=[curve] * 1000)
    text = (tmp_path / "index.html").read_text()
    assert len(text) < 3_000_000
    assert text.count("<tr data-trial=") == text.count('class="series') == 1000
    assert text.count("90.00% on the test set after epoch 300") == 1000  # the last value, which thinning must keep


@pytest.mark.parametrize("num_runs", [3, 30])
@pytest.mark.parametrize("width", [390, 1280])
def test_ticked_runs_make_a_command(num_runs: int, width: int, tmp_path: Path) -> None:
    folder = tmp_path / "all my runs"
    make_folder(folder, num_runs)
    make_run(folder / "other data", test=0.5, dataset="cifar10")
    write(folder)
    address = (folder / "index.html").as_uri()
    with Browser(tmp_path / "profile", width=width) as browser:
        browser.open(address)
        browser.wait_for(f"location.href == '{address}' && document.readyState == 'complete'")
        assert browser.value("document.documentElement.scrollWidth <= innerWidth")
        shown = "document.getElementById('compare').checkVisibility()"
        assert not browser.value(shown)
        browser.value(TICK)
        browser.value("tick(/trial-002/); tick(/trial-001/)")
        assert browser.value(shown)
        assert browser.value("document.querySelectorAll('.series.ticked').length") == 2
        browser.value("tick(/begun/)")
        browser.value("tick(/other data/)")
        command = browser.value("document.querySelector('#compare button').dataset.copy")
        expected = [str(folder / f"sweeps/s/trial-{number:03d}") for number in (2, 1)]
        assert shlex.split(command) == ["cifar10-accel", "compare", *expected]
        assert "2 left out" in browser.value("document.getElementById('compare-note').textContent")
        # Each ticked run has a colour of its own, in the table, the chart and the legend.
        swatches = browser.value(
            "rows((row) => row.querySelector('input').checked).map((row) => row.querySelector('.swatch').className)"
        )
        assert len(set(swatches)) == 4
        legend = browser.value("document.getElementById('ticked').textContent")
        assert "trial-001" in legend
        assert "trial-000" not in legend or num_runs < 6
        browser.value("find('search').value = 'trial-002'; find('search').dispatchEvent(new Event('input'))")
        assert browser.value("rows((row) => !row.hidden).length") == 1
        assert (
            browser.value("[...document.querySelectorAll('.series')].filter((c) => !c.hasAttribute('hidden')).length")
            == 1
        )
        browser.value("document.getElementById('untick').click()")
        assert not browser.value(shown)
        sort = "[...document.querySelectorAll('th button')].find((b) => b.textContent == 'test').click()"
        browser.value(f"{sort}; {sort}")
        first = browser.value("document.querySelector('tbody tr').dataset.name")
        assert first == f"sweeps/s/trial-{num_runs - 1:03d}"
        assert browser.errors == []
        assert [url for url in browser.requested if not url.startswith(("file:", "data:", "about:"))] == []
