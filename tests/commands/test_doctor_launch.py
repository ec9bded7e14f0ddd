"""doctor's comparisons of several machines, with values as the ranks gather them."""

from datetime import timedelta
from pathlib import Path

from cifar10_accel.commands.doctor_launch import clocks, names, reachability, shared_folder, versions
from cifar10_accel.training.launch.joining import Launch, Member

LAUNCH = Launch(
    "start",
    (
        Member("a", 0, 1, "nodea", "10.0.0.1", "10.0.0.1", 4001),
        Member("b", 1, 2, "nodea", "10.0.0.1", "10.0.0.1"),
        Member("c", 2, 1, "nodeb", "10.0.0.2", "10.0.0.2", 4002),
    ),
    0,
    timedelta(seconds=60),
)


def test_each_machine_is_named_once() -> None:
    assert names(LAUNCH).text == "machines: nodea at 10.0.0.1, nodeb at 10.0.0.2"
    assert "on 2 machines" in versions(LAUNCH).text


def test_a_machine_that_is_not_reached_is_an_error_with_a_remedy() -> None:
    assert reachability(LAUNCH, []).level == "ok"
    found = reachability(LAUNCH, ["nodeb does not reach nodea at 10.0.0.1 port 4001 (timed out)"])
    assert (found.level, found.exit_code) == ("error", 2)
    assert "nodeb does not reach nodea" in found.text
    assert "open all ports" in found.remedy


def test_clocks_that_differ_are_named() -> None:
    assert clocks([("nodea", 100.0), ("nodeb", 100.5)]).level == "ok"
    found = clocks([("nodea", 100.0), ("nodeb", 100.2), ("nodec", 160.0)])
    assert found.level == "warning"
    assert found.text == "clocks: nodec is 60 s ahead of nodea"


def test_a_disk_that_one_machine_does_not_see_is_an_error() -> None:
    assert shared_folder(Path("/runs"), [("nodea", True), ("nodeb", True)]).level == "ok"
    found = shared_folder(Path("/runs"), [("nodea", True), ("nodeb", False), ("nodeb", False)])
    assert found.level == "error"
    assert found.text.startswith("shared disk: nodeb cannot see what nodea writes to /runs")
