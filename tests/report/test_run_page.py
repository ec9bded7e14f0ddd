"""A run's page: intervals, machine, charts that say something, many classes, images of any size, a phone's screen."""

import base64
import io
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from browser import Browser
from click.testing import CliRunner
from markupsafe import escape
from PIL import Image
from report_pages import EVIL, SCRIPT, assert_self_contained, dynamics, predictions, write_page
from torch import Tensor, nn
from training_commands import TINY

from cifar10_accel.cli import main
from cifar10_accel.models.classifier import Classifier
from cifar10_accel.report.calibration import reliability
from cifar10_accel.report.charts import reliability_chart
from cifar10_accel.report.curves import compared_curves, image_size_changes, run_curves, with_cross_entropy
from cifar10_accel.report.sprite import LARGEST_SIDE, make_sprite
from cifar10_accel.runs.predictions import Predictions
from cifar10_accel.runs.run_folder import RunFolder
from cifar10_accel.settings import Settings
from cifar10_accel.train import fit

Metrics = list[dict[str, float]]


def test_headline_has_intervals_of_both_accuracies(tmp_path: Path) -> None:
    test = predictions(1000)
    with_tta = replace(test, probabilities_tta=np.eye(10, dtype=np.float32)[test.label])
    write_page(tmp_path / "report.html", test=with_tta, settings=Settings(tta="multicrop"))
    shown = (tmp_path / "report.html").read_text()
    assert "multicrop, 95% interval 99.62% to 100.00%" in shown  # all 1,000 are correct
    plain = re.search(rf"{test.correct.sum():,} of 1,000 .*?, 95% interval ([0-9.]+)% to ([0-9.]+)%", shown)
    assert plain is not None
    low, high = float(plain[1]), float(plain[2])
    assert low < 100 * test.accuracy() < high
    assert 4 < high - low < 7


def test_a_run_without_stored_tta_probabilities_has_an_interval_too(tmp_path: Path) -> None:
    write_page(tmp_path / "report.html", settings=Settings(tta="flip"))  # its summary says 43.21%
    assert "flip, 95% interval 40.16% to 46.29%" in (tmp_path / "report.html").read_text()


def test_the_page_says_when_and_where_the_run_was(tmp_path: Path) -> None:
    environment = {
        "date": "2026-03-01T10:20:30+01:00",
        "host": f"node7{EVIL}",
        "cpu": f"Model 9{EVIL}",
        "cpu_cores": 48,
        "device": "cpu",
        "threads": 12,
    }
    write_page(tmp_path / "report.html", environment=environment)
    page = assert_self_contained(tmp_path / "report.html")
    for text in ("2026-03-01", "10:20 on node7", "Model 9", "48 CPU cores", "12 threads"):
        assert text in page.text, text


@pytest.fixture(scope="module")
def tta_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished tiny run with test-time augmentation, low-resolution epochs and label smoothing."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    more = {"tta": "flip", "epochs": 2, "peak_epoch": 1, "max_steps": None, "low_res_fraction": 0.5, "val_size": 100}
    fit(Settings(**(TINY | more | {"label_smoothing": 0.1, "synthetic_size": 500, "run_dir": folder})))
    return folder


def test_a_run_stores_tta_probabilities_and_its_machine(tta_run: Path) -> None:
    folder = RunFolder(tta_run)
    summary, environment = folder.read_json("summary.json"), folder.read_json("environment.json")
    test = Predictions.load(folder.predictions)
    assert test.probabilities_tta is not None
    assert test.probabilities_tta.shape == test.probabilities.shape
    assert not np.array_equal(test.probabilities_tta, test.probabilities)
    assert (test.probabilities_tta.argmax(axis=1) == test.label).mean() == summary["test/accuracy_tta"]
    assert test.num_correct_tta() == round(summary["test/accuracy_tta"] * len(test.label))
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d", environment["date"])
    assert environment["host"]
    assert environment["cpu"]
    page = (tta_run / "report.html").read_text()
    for text in (environment["date"][:10], str(escape(environment["cpu"])), "train, cross-entropy", "24 px"):
        assert text in page, text


def rows(**series: list[float]) -> Metrics:
    """Rows of metrics.jsonl with a value of each series in each of the first epochs."""
    names = [name.replace("__", "/") for name in series]
    return [
        {"step": 10 * k, "epoch": float(k), **dict(zip(names, values, strict=True))}
        for k, values in enumerate(zip(*series.values(), strict=True), start=1)
    ]


def test_what_is_constant_has_no_chart_but_is_said() -> None:
    """Momentum in most runs; any other series all the same, such as the LR or the accuracy of a model that fails."""
    falling, constant = [3.0, 2.0, 1.0], [0.1, 0.1, 0.1]
    found = run_curves(rows(train__loss=falling, train__accuracy=constant, lr=constant, momentum=[0.85] * 3))
    assert len(found.charts) == 1
    assert found.constants == {"train accuracy": "10.00%", "lr": "0.1", "momentum": "0.85"}
    assert len(run_curves(rows(train__loss=falling, lr=falling, momentum=falling)).charts) == 3
    # One constant line among others stays, and so does a single value.
    assert len(run_curves(rows(train__loss=constant, test__loss=falling)).charts) == 1
    assert len(run_curves(rows(train__loss=[1.0])).charts) == 1
    steady = {"A": rows(lr=constant, train__loss=falling), "B": rows(lr=[0.2] * 3, train__loss=falling)}
    assert len(compared_curves(steady)) == 1


def test_constants_are_on_the_page(tmp_path: Path) -> None:
    metrics = rows(train__loss=[2.0, 1.0], lr=[0.2, 0.1], momentum=[0.85, 0.85])
    write_page(tmp_path / "report.html", metrics=metrics)
    page = (tmp_path / "report.html").read_text()
    assert "Constant: momentum 0.85." in page
    assert "<figcaption>Momentum" not in page


def test_the_change_of_the_image_size_is_marked() -> None:
    settings = Settings(low_res_fraction=0.5, low_res_size=20, epochs=12, peak_epoch=2)
    (mark,) = image_size_changes(settings, {"images": {"size": 48}})
    assert (mark.x, mark.before, mark.after) == (6, "20 px", "48 px")
    assert image_size_changes(settings, {})[0].after == "full size"  # an early version
    assert image_size_changes(Settings(), {}) == []
    charts = run_curves(rows(train__loss=list(np.linspace(2, 1, 12)), lr=list(np.linspace(1, 0, 12))), [mark]).charts
    assert [chart.count('class="change"') for chart in charts] == [1, 1]
    assert "48 px" in charts[0]
    few = run_curves(rows(train__loss=[3.0, 2.0, 1.0]), [mark])  # stopped before
    assert few.charts[0].count('class="change"') == 0


def test_training_loss_without_smoothing_is_the_mean_of_the_recorded_losses() -> None:
    found, metrics = dynamics(3), rows(train__loss=[3.0, 2.0, 1.0])
    extended = with_cross_entropy(metrics, found, Settings(label_smoothing=0.1))
    values = [row["train/cross_entropy"] for row in extended if "train/cross_entropy" in row]
    assert values == pytest.approx(np.nanmean(found.loss.astype(np.float64), axis=1))
    assert [row["epoch"] for row in extended[3:]] == [1, 2, 3]
    charts = run_curves(extended)
    assert charts.has_cross_entropy
    assert "train, as optimised" in charts.charts[0]
    # Nothing to add where the training loss is the cross-entropy, or the images are mixed.
    for settings in (Settings(), Settings(label_smoothing=0.1, mixup_alpha=1.0)):
        assert with_cross_entropy(metrics, found, settings) == metrics
    assert with_cross_entropy(metrics, None, Settings(label_smoothing=0.1)) == metrics


def test_errors_by_class_are_sorted_and_use_the_width(tmp_path: Path) -> None:
    test = write_page(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    section = page[page.index('id="classes"') : page.index('id="confusion"')]
    widths = [float(width) for width in re.findall(r"width:([0-9.]+)%", section)]
    assert widths == sorted(widths, reverse=True)
    assert widths[0] == 100
    errors = sorted((1 - test.class_accuracy()).tolist(), reverse=True)
    assert [float(value) for value in re.findall(r'class="number">([0-9.]+)%', section)] == pytest.approx(
        [round(100 * error, 2) for error in errors]
    )


def test_a_histogram_is_under_the_reliability_diagram() -> None:
    bins = reliability([[0.9, 0.1], [0.1, 0.9], [0.6, 0.4]], [0, 0, 0], num_bins=10)
    chart = reliability_chart(bins, title="t")
    heights = [float(height) for height in re.findall(r'height="([0-9.]+)" class="counts"', chart)]
    assert len(heights) == 2  # bins with images
    assert heights[1] == pytest.approx(2 * heights[0], rel=0.01)


def test_typical_images_and_unchanged_settings_are_collapsed(tmp_path: Path) -> None:
    write_page(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    section = page[page.index('id="typical"') : page.index('id="calibration"')]
    assert section.index("<details>") < section.index('class="image"')
    settings = page[page.index('id="settings"') :]
    assert settings.index(">max_lr<") < settings.index("<details>") < settings.index(">seed<")


NAMES_120 = [f"{EVIL} breed {k:03}" for k in range(120)]


def write_many_classes(path: Path) -> Predictions:
    test = predictions(6000, num_classes=120)
    noise = np.random.default_rng(1).integers(0, 256, (6000, 64, 64, 3), dtype=np.uint8)
    environment = {"classes": NAMES_120}
    write_page(path, test=test, val=None, environment=environment, images=noise, settings=Settings(run_name="<b>n"))
    return test


def test_a_page_of_120_classes_is_small_and_sorted(tmp_path: Path) -> None:
    test = write_many_classes(tmp_path / "report.html")
    page = assert_self_contained(tmp_path / "report.html").text
    confusion = page[page.index('id="confusion"') : page.index('id="mistakes-section"')]
    counts = [int(count) for count in re.findall(r'data-count="(\d+)"', confusion)]
    assert len(counts) == 400
    assert counts == sorted(counts, reverse=True)
    matrix = test.confusion_matrix()
    assert counts[0] == (matrix - np.diag(matrix.diagonal())).max()
    assert confusion.count("data-search") == 1
    assert page[page.index('id="classes"') : page.index('id="confusion"')].count("data-search") == 1
    assert page.count("<h3>") < 30  # no heading for each class


@pytest.mark.parametrize("width", [390, 1280])
def test_many_classes_are_searched_in_the_browser(width: int, tmp_path: Path) -> None:
    write_many_classes(tmp_path / "report.html")
    with Browser(tmp_path / "profile", width=width) as browser:
        address = (tmp_path / "report.html").as_uri()
        browser.open(address)
        browser.wait_for(f"location.href == '{address}' && document.readyState == 'complete'")
        visible = "[...document.querySelectorAll('#classes tr')].filter((row) => row.offsetParent).length"
        assert browser.value(visible) == 120
        browser.value(
            "(() => { const field = document.querySelector('#classes [data-search]'); field.value = 'BREED 11'; "
            "field.dispatchEvent(new Event('input')); })()"
        )
        rows = browser.value(
            "[...document.querySelectorAll('#classes tr')].filter((row) => row.offsetParent)"
            ".map((row) => row.textContent)"
        )
        assert 10 <= len(rows) < 60
        assert all("breed 11" in row for row in rows)
        assert {name for name in NAMES_120 if any(row.startswith(name) for row in rows)} >= set(NAMES_120[110:])
        label = int(browser.value("document.querySelector('#mistakes li.image').dataset.true"))
        browser.value(
            f"(() => {{ const field = document.querySelector('#true'); field.value = 'breed {label:03}'; "
            "field.dispatchEvent(new Event('input')); })()"
        )
        found = "[...document.querySelectorAll('#mistakes li.image')].filter((item) => !item.hidden)"
        assert browser.value(f"new Set({found}.map((item) => item.dataset.true)).size") == 1
        assert browser.value(f"{found}[0].querySelector('b').textContent").startswith(NAMES_120[label])
        assert browser.value("document.documentElement.scrollWidth <= innerWidth")
        assert browser.errors == []


def test_a_full_page_fits_a_phone(tta_run: Path, tmp_path: Path) -> None:
    """With every section: below 12,000 pixels, the navigation in sight, and the dialog's Close as well."""
    for command in (["robustness", tta_run, "--images", 50], ["report", tta_run, "--grad-cam"]):
        done = CliRunner().invoke(main, [str(word) for word in command])
        assert done.exit_code == 0, done.output
    with Browser(tmp_path / "profile", width=390, height=800) as browser:
        address = (tta_run / "report.html").as_uri()
        browser.open(address)
        browser.wait_for(f"location.href == '{address}' && document.readyState == 'complete'")
        sections = browser.value("[...document.querySelectorAll('main section')].map((section) => section.id)")
        assert {"grad-cam", "robustness", "training"} <= set(sections)
        assert browser.value("document.documentElement.scrollHeight") < 12_000
        assert browser.value("document.documentElement.scrollWidth <= innerWidth")
        browser.value("document.documentElement.style.scrollBehavior = 'auto'; scrollTo(0, 5000)")
        assert browser.value("Math.round(document.querySelector('nav').getBoundingClientRect().top)") == 0
        browser.value(
            "(() => { const cells = [...document.querySelectorAll('button[data-cell]')]; cells.sort((a, b) => "
            "b.dataset.count - a.dataset.count)[0].click(); const dialog = document.querySelector('dialog'); "
            "dialog.querySelector('ul').style.minHeight = '3000px'; dialog.scrollTop = 1500; })()"
        )
        assert browser.value("document.querySelector('dialog').scrollTop") == 1500
        close = "document.querySelector('dialog button').getBoundingClientRect()"
        assert browser.value(f"{close}.top >= 0 && {close}.bottom <= innerHeight && {close}.right <= innerWidth")
        assert browser.value(f"document.elementFromPoint({close}.x + 5, {close}.y + 5).textContent") == "Close"
        assert browser.errors == []


@pytest.mark.parametrize(("size", "channels"), [(8, 1), (28, 1), (48, 3), (256, 3)])
def test_pictures_of_any_size(size: int, channels: int, tmp_path: Path) -> None:
    images = np.random.default_rng(1).integers(0, 256, (1000, size, size, channels), dtype=np.uint8)
    write_page(tmp_path / "report.html", images=images, dynamics=dynamics(3, 1000), training_images=images)
    page = assert_self_contained(tmp_path / "report.html")
    assert page.text.count('class="tile"') > 100
    sprite = make_sprite(images, range(10))
    assert sprite.side == min(size, LARGEST_SIDE)
    assert 60 <= sprite.side * sprite.zoom <= 130  # CSS pixels


def test_a_sprite_shows_grey_images_unchanged() -> None:
    images = np.random.default_rng(0).integers(0, 256, (45, 16, 16, 1), dtype=np.uint8)
    sprite = make_sprite(images, range(45))
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(sprite.url.partition(",")[2]))).convert("RGB"))
    column, row = sprite.places[43]
    tile = picture[row * 16 : row * 16 + 16, column * 16 : column * 16 + 16]
    assert np.array_equal(tile, images[43].repeat(3, axis=2))


class Patches(nn.Module):
    """A classifier of a sequence of patches, without feature maps at its end."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.norm, self.head = nn.Conv2d(3, 8, 8, stride=8), nn.LayerNorm(8), nn.Linear(8, 10)

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.head(self.norm(self.patches(images).flatten(2).mT).mean(dim=1))
        return scores


def test_the_page_says_why_there_are_no_heat_maps(tta_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Classifier, "from_run", lambda *_: Patches())
    done = CliRunner().invoke(main, ["report", str(tta_run), "--grad-cam"])
    assert done.exit_code == 0, done.output
    page = (tta_run / "report.html").read_text()
    section = page[page.index('id="grad-cam"') : page.index('id="typical"')]
    assert "No heat maps: Patches has no feature maps at its end: norm works on a sequence" in section
    assert "of-grad-cam" not in section
    assert page.count('class="tile"') > 10  # the other pictures are there


def test_names_and_paths_are_escaped_everywhere(tmp_path: Path) -> None:
    """Class names, the folder, the recipe, the command, the host and sentences about what is missing."""
    names = [f"{SCRIPT}{k}</script>&amp;\"'" for k in range(10)]
    environment = {"classes": names, "command": [EVIL], "host": EVIL, "date": EVIL, "cpu": EVIL, "device": EVIL}
    write_page(
        tmp_path / "report.html",
        environment=environment,
        folder=RunFolder(tmp_path / "a <i>\" onload='x'"),
        missing=[EVIL],
        dynamics=dynamics(2),
    )
    page = assert_self_contained(tmp_path / "report.html")  # which looks for the script
    assert "<i>" not in page.text
    assert "<title>a &lt;i&gt;&#34; onload=&#39;x&#39;</title>" in page.text
    assert page.text.count("</script>") == 1  # of the page's own
    for name in names:  # as text, with its ampersand
        assert page.text.count(str(escape(name))) > 1


def test_no_value_that_is_nan_is_shown(tmp_path: Path) -> None:
    label = np.zeros(50, dtype=np.int64)  # nine classes without test images
    shares = np.full((50, 10), 0.1, dtype=np.float32)
    test = Predictions(np.arange(50), label, shares, np.full(50, math.log(10), dtype=np.float32))
    write_page(tmp_path / "report.html", test=test)
    page = assert_self_contained(tmp_path / "report.html")
    assert "nan" not in re.sub(r"<(style|script)>.*?</\1>", "", page.text, flags=re.S).lower()
