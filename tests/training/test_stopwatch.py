"""Training time and laps, also over the parts of a resumed run."""

from cifar10_accel.training.stopwatch import Stopwatch


def test_a_lap_goes_on_in_the_next_part_of_a_run() -> None:
    stopped = Stopwatch(10.0, since_lap=4.0)
    assert (stopped.seconds(), stopped.since_lap()) == (10.0, 4.0)
    resumed = Stopwatch(stopped.seconds(), since_lap=stopped.since_lap())
    resumed.start()
    assert 4.0 < resumed.lap(resumed.seconds()) < 5.0
    assert 0.0 < resumed.since_lap() < 1.0
