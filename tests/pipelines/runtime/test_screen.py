"""Progress: the time left is shown only once the speed is stable."""

import io

import pytest
from rich.console import Console

from histoblend.pipelines.runtime import screen as screens
from histoblend.pipelines.runtime.screen import Screen, Speed, duration


def reported(*times_and_counts, total=100):
    speed = Speed(total)
    for now, count in times_and_counts:
        speed.add(count, now)
    return speed


def test_a_steady_speed_gives_the_time_left():
    # After the first report, 10 units in each 2 s: 5 a second, and 50 are left.
    speed = reported((60, 10), (62, 10), (64, 10), (66, 10), (68, 10))
    assert speed.per_second == pytest.approx(5)
    assert speed.left() == pytest.approx(10)


@pytest.mark.parametrize(
    "reports",
    [
        [(60, 10)],
        [(60, 10), (62, 10), (64, 10), (66, 10)],
        [(60, 10), (61, 10), (62, 10), (63, 10), (64, 10)],
        [(0, 1), (10, 1), (20, 4), (22, 3), (24, 4)],
        [(0, 1), (10, 10), (20, 10), (30, 10), (40, -10)],
    ],
    ids=["one report", "few reports", "short", "speeding up", "going back"],
)
def test_no_time_is_stated_before_the_speed_is_stable(reports):
    assert reported(*reports).left() is None


def test_the_limit_of_stability_is_a_quarter():
    # 10 in the first 10 s; then 8 (20 % slower) or 7 (30 % slower).
    before = [(0, 1), (5, 5), (10, 5)]
    assert reported(*before, (15, 4), (20, 4)).left() == pytest.approx(81 / 0.9)
    assert reported(*before, (15, 3), (20, 4)).left() is None


def test_nothing_is_left_at_the_end():
    assert reported((1, 60), (2, 40)).left() == 0


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.2, "0 s"), (89, "89 s"), (90, "2 min"), (3600, "60 min"), (9000, "2.5 h")]
)
def test_times_are_rounded(seconds, words):
    assert duration(seconds) == words


@pytest.mark.parametrize("terminal", [False, True])
def test_progress_states_the_speed_and_both_times(monkeypatch, terminal):
    clock = iter([0, *range(20, 400, 20)])
    monkeypatch.setattr(screens.time, "perf_counter", lambda: float(next(clock)))
    output = io.StringIO()
    screen = Screen(Console(file=output, force_terminal=terminal, width=200))
    screen.command_left = lambda stage: f"after {stage}" if stage else "not yet"
    if terminal:
        words = [screen.progress_words(reported((1, 10), (3, 10), (5, 10), (7, 10), (9, 10)), "fits")]
    else:
        with screen.progress("heads", 100, "fits") as advance:
            for _ in range(6):
                advance(10)
        words = output.getvalue().splitlines()
        assert words[0] == "  heads: 10 of 100, 0.5 fits/s, not yet"
        assert words[1] == "  heads: 20 of 100, 0.5 fits/s, not yet"
    assert words[-1].endswith("fits/s, 80 s left, after 80.0" if not terminal else "5.0 fits/s, 10 s left, after 10.0")
