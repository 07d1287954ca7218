"""How long runs take: medians of known times, with an interval that holds them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from edgekit_contract.manifest import TensorSpec
from edgekit_runtime.session import Tensors
from edgekit_runtime.timing import time_runs


class Paced:
    """A model that takes as long as it is told; its clock is the test's."""

    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()

    def __init__(self, times_s: Iterator[float]) -> None:
        self.now, self._times_s = 0.0, times_s
        self.seen: list[Tensors] = []

    def run(self, feeds: Tensors) -> dict[str, np.ndarray]:
        self.now += next(self._times_s)
        self.seen.append(feeds)
        return {}

    def close(self) -> None:
        pass


def cycle(*times_s: float) -> Iterator[float]:
    while True:
        yield from times_s


def test_first_runs_do_not_count_and_the_budget_ends_the_rest() -> None:
    session = Paced(iter([9.0, 9.0, 9.0, *([0.1] * 50)]))
    timing = time_runs(session, [{}], budget_s=1.0, clock=lambda: session.now)
    assert timing.runs == 10
    assert timing.median_ms == pytest.approx(100.0)
    assert timing.p95_ms == pytest.approx(100.0)


def test_interval_holds_the_median_and_leaves_out_the_slow_ones() -> None:
    session = Paced(cycle(0.010, 0.011, 0.012, 0.013, 0.014, 0.010, 0.011, 0.012, 0.013, 0.500))
    timing = time_runs(session, [{}], budget_s=60.0, clock=lambda: session.now)
    assert timing.low_ms <= timing.median_ms <= timing.high_ms
    assert timing.high_ms < 20.0
    assert timing.p95_ms == pytest.approx(500.0)


def test_a_model_that_takes_longer_than_the_budget_is_timed_once() -> None:
    session = Paced(cycle(5.0))
    timing = time_runs(session, [{}], budget_s=1.0, clock=lambda: session.now)
    assert (timing.runs, timing.low_ms, timing.high_ms) == (1, timing.median_ms, timing.median_ms)


def test_inputs_take_turns() -> None:
    session = Paced(cycle(0.1))
    feeds = [{"x": np.array([n])} for n in range(2)]
    time_runs(session, feeds, budget_s=0.45, clock=lambda: session.now)
    assert [int(seen["x"][0]) for seen in session.seen[3:]] == [0, 1, 0, 1, 0]
