"""What a worker counts."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from edgekit_agent.stats import WINDOW, Counters, percentile


def test_counts_only_grow_and_latencies_begin_anew_with_each_snapshot() -> None:
    counters = Counters(random.Random(1))
    for ms in range(1, 101):
        counters.inferred(ms / 1_000)
    counters.failed()
    counters.rejected()
    first, second = counters.snapshot(), counters.snapshot()
    assert (first.inferences, first.errors, first.rejected) == (100, 1, 1)
    assert (first.p50_ms, first.p95_ms, first.p99_ms) == (50, 95, 99)
    assert (second.inferences, second.errors, second.rejected) == (100, 1, 1)
    assert (second.p50_ms, second.p95_ms, second.p99_ms) == (None, None, None)


@given(st.lists(st.floats(0, 10), min_size=1, max_size=300), st.integers(1, 100))
def test_percentile_is_the_least_that_covers_its_share(values: list[float], percent: int) -> None:
    ranked = sorted(values)
    found = percentile(ranked, percent)
    assert found is not None
    covered = [value for value in ranked if value * 1_000 <= found]
    assert len(covered) * 100 >= percent * len(ranked)
    below = [value for value in ranked if value * 1_000 < found]
    assert len(below) * 100 < percent * len(ranked)


def test_more_requests_than_the_window_stay_in_bounds_and_are_sampled_evenly() -> None:
    counters = Counters(random.Random(1))
    for _ in range(WINDOW):
        counters.inferred(0.001)
    for _ in range(3 * WINDOW):
        counters.inferred(0.003)
    assert len(counters._latencies_s) == WINDOW
    early = sum(1 for latency_s in counters._latencies_s if latency_s == 0.001)
    assert 0.22 < early / WINDOW < 0.28
    assert counters.snapshot().inferences == 4 * WINDOW
