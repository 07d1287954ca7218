"""When an update may fetch, and when the next attempt is due."""

from __future__ import annotations

import random
from datetime import datetime, timedelta, timezone

import msgspec
import pytest
from agents import QUICK
from hypothesis import given
from hypothesis import strategies as st

from edgekit_agent.attempts import Attempts
from edgekit_agent.config import Knobs
from edgekit_agent.window import closed_s

DAY = datetime(2026, 11, 1, tzinfo=timezone.utc)
CLOCK_TIMES = st.builds("{:02}:{:02}".format, st.integers(0, 23), st.integers(0, 59))


@pytest.mark.parametrize(
    ("window", "hour", "closed_hours"),
    [
        (None, 12, 0),
        ("22:00-05:00", 23, 0),
        ("22:00-05:00", 4.99, 0),
        ("22:00-05:00", 5, 17),
        ("22:00-05:00", 21, 1),
        ("01:30-02:00", 1.5, 0),
        ("01:30-02:00", 2, 23.5),
        ("00:00-00:00", 7, 0),
    ],
)
def test_a_window_says_how_long_it_is_closed(
    window: str | None, hour: float, closed_hours: float
) -> None:
    assert closed_s(window, DAY + timedelta(hours=hour)) == pytest.approx(closed_hours * 3600)


def test_a_window_is_in_utc() -> None:
    abroad = timezone(timedelta(hours=-5))
    assert closed_s("22:00-05:00", datetime(2026, 11, 1, 18, tzinfo=abroad)) == 0


@given(CLOCK_TIMES, CLOCK_TIMES, st.integers(0, 24 * 3600))
def test_a_closed_window_opens_when_it_said(opens: str, closes: str, second: int) -> None:
    window, now = f"{opens}-{closes}", DAY + timedelta(seconds=second)
    wait_s = closed_s(window, now)
    assert 0 <= wait_s < 24 * 3600
    assert closed_s(window, now + timedelta(seconds=wait_s)) == 0


@pytest.mark.parametrize("wrong", ["22-5", "24:00-05:00", "22:00", "22:00-05:60", "always", ""])
def test_what_is_no_window_is_refused(wrong: str) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"window": wrong}, Knobs)


class Clock:
    seconds = 0.0

    def __init__(self, at: datetime) -> None:
        self.at = at

    def now(self) -> datetime:
        return self.at + timedelta(seconds=self.seconds)

    def monotonic(self) -> float:
        return self.seconds


def interrupted(at: datetime) -> tuple[Attempts, float]:
    knobs = msgspec.structs.replace(QUICK, window="22:00-05:00")
    attempts = Attempts(knobs, Clock(at), random.Random(1))
    attempts.want("1.0", anew=True)
    return attempts, attempts.interrupted()


def test_what_was_interrupted_waits_for_the_window() -> None:
    attempts, delay_s = interrupted(DAY + timedelta(hours=20))
    attempts.hub_is_back()
    assert 2 * 3600 <= delay_s <= 2 * 3600 + QUICK.retry_s
    assert not attempts.due(delay_s - 1)
    assert attempts.due(delay_s)


@pytest.mark.parametrize(
    "at", [DAY + timedelta(hours=23), datetime(1970, 1, 1, 12, tzinfo=timezone.utc)]
)
def test_in_the_window_or_without_a_clock_it_is_tried_again_soon(at: datetime) -> None:
    assert interrupted(at)[1] <= QUICK.retry_s
