"""The choice: figures and bounds in, one winner and reasons out."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from edgekit.build.choice import Bounds, NothingFits, choose, settle
from edgekit.build.report import Candidate, Estimate, Figure, Latency, Outcome, Score
from edgekit.build.request import Objective


def candidate(
    recipe: str,
    *,
    value: float = 0.9,
    size: int = 1000,
    ratio: float = 1.0,
    spread: float = 0.03,
    failed: str = "",
) -> Candidate:
    if failed:
        return Candidate(recipe=recipe, outcome=Outcome.FAILED, reason=failed)
    return Candidate(
        recipe=recipe,
        outcome=Outcome.LOST,
        size_bytes=size,
        score=Score(value=value, rows=100),
        latency=Latency(
            median_ms=ratio,
            ratio=ratio,
            low=ratio if recipe == "float32" else ratio - spread,
            high=ratio if recipe == "float32" else ratio + spread,
            rounds=20,
        ),
    )


BASE = candidate("float32")
LOOSE = Bounds(max_drop=0.01)


def chosen(
    *others: Candidate,
    objective: Objective = Objective.LATENCY,
    bounds: Bounds = LOOSE,
    on_target: bool = True,
) -> str:
    judged = choose((BASE, *others), objective=objective, bounds=bounds, on_target=on_target)
    winners = [c.recipe for c in judged if c.outcome is Outcome.CHOSEN]
    assert len(winners) == 1
    assert all(c.reason for c in judged)
    return winners[0]


def reason(other: Candidate, bounds: Bounds = LOOSE) -> str:
    judged = choose((BASE, other), objective=Objective.LATENCY, bounds=bounds, on_target=True)
    return judged[1].reason


def test_faster_variant_wins_by_latency() -> None:
    assert chosen(candidate("a", ratio=0.5), candidate("b", ratio=0.8, size=10)) == "a"


def test_latencies_whose_intervals_overlap_are_equal_and_the_smaller_wins() -> None:
    assert chosen(candidate("a", ratio=0.50), candidate("b", ratio=0.52, size=500)) == "b"


def test_what_intervals_do_not_tell_apart_is_equal_up_to_5_percent() -> None:
    fast = candidate("a", ratio=0.5, spread=0.015)
    assert chosen(fast, candidate("b", ratio=0.52, spread=0.015, size=990)) == "b"
    assert chosen(fast, candidate("b", ratio=0.53, spread=0.05, size=990)) == "a"
    unsure = candidate("a", ratio=0.5, spread=0.08)
    assert chosen(unsure, candidate("b", ratio=0.56, spread=0.01, size=985)) == "a"


def test_latencies_within_2_percent_are_equal_however_sure_and_the_smaller_wins() -> None:
    fast = candidate("a", ratio=0.5, spread=0.0005)
    assert chosen(fast, candidate("b", ratio=0.508, spread=0.0005, size=500)) == "b"
    assert chosen(fast, candidate("b", ratio=0.52, spread=0.0005, size=500)) == "a"


def test_hardly_slower_one_wins_only_if_it_is_smaller_by_three_times_as_much() -> None:
    fast = candidate("a", ratio=0.5, spread=0.0005)
    assert chosen(fast, candidate("b", ratio=0.513, spread=0.0005, size=910)) == "b"
    assert chosen(fast, candidate("b", ratio=0.513, spread=0.0005, size=940)) == "a"
    assert chosen(fast, candidate("b", ratio=0.516, spread=0.0005, size=100)) == "a"


def test_only_what_is_faster_than_float32_wins_for_its_size_against_a_faster_one() -> None:
    fast = candidate("a", ratio=0.975, spread=0.002)
    assert chosen(fast, candidate("b", ratio=1.1, spread=0.11, size=920)) == "a"
    assert chosen(fast, candidate("b", ratio=1.019, spread=0.001, size=920)) == "a"
    assert chosen(candidate("a", ratio=0.975, spread=0.002, size=1100)) == "a"


def test_nothing_slower_than_float32_wins_for_its_size_where_nothing_is_faster() -> None:
    assert chosen(candidate("b", ratio=1.025, spread=0.0005, size=100)) == "float32"


def test_difference_that_the_interval_does_not_exclude_is_none() -> None:
    assert chosen(candidate("a", ratio=0.95, spread=0.1)) == "float32"


def test_variant_over_the_allowed_drop_loses_with_the_figures() -> None:
    bad = candidate("a", ratio=0.1, value=0.88)
    assert chosen(bad) == "float32"
    assert "0.0200 below" in reason(bad)


def test_drop_of_exactly_what_is_allowed_is_allowed() -> None:
    assert chosen(candidate("a", ratio=0.5, value=0.89)) == "a"


def test_larger_and_slower_loses_with_that_reason() -> None:
    assert reason(candidate("a", size=2000, ratio=1.5)) == "larger and slower than float32"


def test_larger_but_faster_may_win() -> None:
    assert chosen(candidate("a", size=2000, ratio=0.5)) == "a"


def test_slower_but_smaller_wins_by_size_only() -> None:
    small = candidate("a", size=300, ratio=2.0)
    assert chosen(small) == "float32"
    assert chosen(small, objective=Objective.SIZE) == "a"


def test_off_the_target_latency_gives_way_to_accuracy_then_size() -> None:
    fast = candidate("a", ratio=0.3, size=300, value=0.893)
    assert chosen(fast, on_target=False) == "float32"
    assert chosen(fast, candidate("b", size=400), on_target=False) == "b"
    slow = candidate("slow", size=390, ratio=1.2)
    assert chosen(slow, on_target=False) == "slow"
    assert chosen(slow, candidate("b", size=400), on_target=False) == "b"


def forecast(
    recipe: str, low: float, high: float, *, measured: bool = False, **fields: Any
) -> Candidate:
    """A candidate with a time on the profile's device."""
    ms = (low * high) ** 0.5
    known: dict[str, Any] = {"estimate": Estimate(ms=ms, low=low, high=high)}
    if measured:
        known["figure"] = Figure(
            median_ms=ms, low=low, high=high, p95_ms=high, rss_bytes=1, runs=30,
            device="kitchen", at="2026-01-01T00:00:00Z",
        )  # fmt: skip
    return msgspec.structs.replace(candidate(recipe, **fields), **known)


def judged_off_target(*candidates: Candidate, bounds: Bounds = LOOSE) -> dict[str, Candidate]:
    judged = choose(candidates, objective=Objective.LATENCY, bounds=bounds, on_target=False)
    return {c.recipe: c for c in judged}


def test_estimate_counts_off_the_target_where_bars_do_not_overlap() -> None:
    judged = judged_off_target(
        forecast("float32", 40, 60),
        # more accurate and smaller, but the estimate is sure of the other
        forecast("int8", 10, 20, size=400, value=0.895),
        forecast("weights", 40, 60, size=300),
    )
    assert judged["int8"].outcome is Outcome.CHOSEN
    assert "by estimate" in judged["int8"].reason
    assert not any(c.is_open for c in judged.values())
    assert "slower by estimate" in judged["weights"].reason


def test_overlapping_estimates_leave_the_choice_to_accuracy_and_are_open() -> None:
    judged = judged_off_target(
        forecast("float32", 40, 60),
        forecast("int8", 30, 50, size=400, value=0.893),
    )
    assert judged["float32"].outcome is Outcome.CHOSEN
    assert judged["int8"].is_open


def test_int8_that_a_device_found_slower_loses_to_float32() -> None:
    judged = judged_off_target(
        forecast("float32", 40, 41, measured=True),
        forecast("int8", 50, 52, measured=True, size=300, ratio=0.3),
    )
    assert judged["float32"].outcome is Outcome.CHOSEN
    assert judged["int8"].reason == "slower than the chosen"
    assert not judged["int8"].is_open


def test_figures_of_a_device_replace_estimates_and_close_the_question() -> None:
    judged = judged_off_target(
        forecast("float32", 40, 41, measured=True),
        forecast("int8", 30, 31, measured=True, size=2000),
    )
    assert judged["int8"].outcome is Outcome.CHOSEN
    assert "measured on a device" in judged["int8"].reason
    assert not judged["float32"].is_open


def test_same_arithmetic_is_no_open_question() -> None:
    judged = judged_off_target(forecast("float32", 40, 60), forecast("half", 40, 60, size=500))
    assert judged["half"].outcome is Outcome.CHOSEN
    assert not judged["float32"].is_open


def test_max_ms_holds_for_what_a_device_measured_and_not_for_estimates() -> None:
    bounds = Bounds(max_drop=0.01, max_ms=35)
    judged = judged_off_target(
        forecast("float32", 40, 41, measured=True), forecast("int8", 30, 31, measured=True),
        bounds=bounds,
    )  # fmt: skip
    assert judged["float32"].reason == "40.497 ms on kitchen, 35 are allowed"
    judged = judged_off_target(forecast("float32", 40, 60), bounds=bounds)
    assert judged["float32"].outcome is Outcome.CHOSEN


def test_most_accurate_wins_by_accuracy() -> None:
    assert (
        chosen(
            candidate("a", ratio=0.2, value=0.895),
            candidate("b", ratio=0.9, value=0.91),
            objective=Objective.ACCURACY,
        )
        == "b"
    )


def test_failed_candidate_keeps_its_reason() -> None:
    assert reason(candidate("a", failed="does not load")) == "does not load"


def test_float32_that_breaks_a_bound_lets_a_smaller_one_win() -> None:
    tight = Bounds(max_drop=0.01, max_mb=0.0005)
    assert chosen(candidate("a", size=400, ratio=1.3), bounds=tight) == "a"


def test_nothing_within_the_bounds_is_refused_with_all_reasons() -> None:
    with pytest.raises(NothingFits, match=r"float32: 0\.001 MB.*a: 0\.001 MB"):
        chosen(candidate("a", size=900, ratio=0.5), bounds=Bounds(max_drop=0, max_mb=0.0001))


def test_max_ms_counts_only_on_the_target() -> None:
    slow = Bounds(max_drop=0.01, max_ms=0.7)
    assert chosen(candidate("a", ratio=0.5), bounds=slow) == "a"
    with pytest.raises(NothingFits):
        chosen(bounds=slow)
    assert chosen(bounds=slow, on_target=False) == "float32"


def test_one_at_the_edge_is_chosen_where_nothing_else_is_faster() -> None:
    edge = candidate("edge", value=0.892, ratio=0.5, size=300)
    half = candidate("half", value=0.9, ratio=1.0, size=500)
    assert chosen(edge, half) == "edge"
    safe = candidate("safe", value=0.9, ratio=0.7, size=500)
    assert chosen(edge, half, safe) == "safe"
    assert "too near" in reason(edge) or chosen(edge) == "edge"


def test_off_target_the_smallest_wins_of_those_that_lose_little() -> None:
    half = candidate("half", value=0.9, size=500)
    int8 = candidate("int8", value=0.896, size=260)
    worse = candidate("worse", value=0.893, size=200)
    assert chosen(half, int8, worse, on_target=False) == "int8"


def test_next_best_wins_where_the_best_needs_more_memory_than_is_allowed() -> None:
    mib = {"float32": 30, "fast": 25, "small": 12, "slow": 9}
    asked: list[str] = []

    def peak_of(title: str) -> int:
        asked.append(title)
        return mib[title] << 20

    others = [candidate("fast", ratio=0.4), candidate("small", ratio=0.6, size=300)]
    judged, peak = settle(
        (BASE, *others, candidate("slow", ratio=0.8)),
        objective=Objective.LATENCY,
        bounds=Bounds(max_drop=0.01, ram_bytes=20 << 20),
        on_target=True,
        peak_of=peak_of,
    )
    assert [c.outcome for c in judged] == [
        Outcome.LOST, Outcome.FAILED, Outcome.CHOSEN, Outcome.LOST,
    ]  # fmt: skip
    assert judged[1].reason == "it needs 25.0 MiB of memory, 20 are allowed"
    assert peak == 12 << 20 and asked == ["fast", "small"]
    with pytest.raises(NothingFits, match=r"fast: it needs 25.0 MiB of memory"):
        settle(
            (BASE, *others),
            objective=Objective.LATENCY,
            bounds=Bounds(max_drop=0.01, ram_bytes=1),
            on_target=True,
            peak_of=peak_of,
        )
