"""The timetable: how a build's search time is divided."""

from __future__ import annotations

from typing import Any

import pytest

from edgekit.build.request import Objective
from edgekit.build.timetable import Deadlines, deadlines, most_timing_s


def of(**changes: Any) -> Deadlines:
    asked: dict[str, Any] = {
        "now": 10.0,
        "ends": 60.0,
        "search_time_s": 60.0,
        "objective": Objective.LATENCY,
        "selection_s": 4.0,
        "held_out_s": 6.0,
        "profiles": 1,
        "pending": 1,
    }
    return deadlines(**(asked | changes))


@pytest.mark.parametrize("objective", list(Objective))
@pytest.mark.parametrize("held_out_s", [0.0, 6.0, 100.0])
def test_deadlines_follow_each_other_and_leave_time_for_the_rest(
    objective: Objective, held_out_s: float
) -> None:
    found = of(objective=objective, held_out_s=held_out_s)
    assert found.explore_s <= found.refine_s <= found.relieve_s <= max(10.0, 60.0 - held_out_s)
    assert most_timing_s(objective, 60.0) <= 6.0


def test_full_accuracy_of_the_first_is_set_aside_but_not_more_than_half() -> None:
    assert of(selection_s=0.0).explore_s > of(selection_s=4.0).explore_s
    assert of(selection_s=1000.0).explore_s == of(selection_s=100.0).explore_s > 10.0


def test_profiles_share_what_is_left() -> None:
    first, last = of(profiles=2, pending=2), of(profiles=2, pending=1)
    assert first.relieve_s < last.relieve_s
    assert of(profiles=1).relieve_s < last.relieve_s  # half of the latencies is still to be timed


def test_nothing_is_begun_where_no_time_is_left() -> None:
    found = of(now=70.0)
    assert (found.explore_s, found.refine_s, found.relieve_s) == (70.0, 70.0, 70.0)
