"""Streaming statistics and the ranges that are estimated from them."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgekit_converters.calibration.estimators import Estimator, estimate
from edgekit_converters.calibration.statistics import BINS, Histogram, TensorStatistics

floats = st.floats(-1e6, 1e6, width=32, allow_subnormal=False)
arrays = hnp.arrays(np.float32, st.integers(1, 60), elements=floats)


def state(histogram: Histogram) -> tuple[int, int, list[int]]:
    return histogram.exponent, histogram.first, histogram.counts.tolist()


def counted(*parts: np.ndarray) -> Histogram:
    histogram = Histogram()
    for part in parts:
        histogram.add(part)
    return histogram


@given(st.lists(arrays, min_size=1, max_size=6), st.randoms())
def test_histogram_does_not_depend_on_order_or_on_grouping(
    parts: list[np.ndarray], random: object
) -> None:
    shuffled = sorted(parts, key=lambda _: random.random())  # type: ignore[attr-defined]
    assert state(counted(*parts)) == state(counted(*shuffled))
    assert state(counted(*parts)) == state(counted(np.concatenate(parts)))


@given(st.lists(arrays, min_size=2, max_size=5), st.integers(1, 4))
def test_merging_shards_is_exact(parts: list[np.ndarray], at: int) -> None:
    left, right = counted(*parts[:at]), counted(*parts[at:])
    left.merge(right)
    assert state(left) == state(counted(*parts))


@given(arrays)
def test_every_value_lies_in_its_bin(values: np.ndarray) -> None:
    histogram = counted(values)
    assert histogram.total == values.size
    assert len(histogram.counts) <= BINS
    by_numpy, _ = np.histogram(values.astype(np.float64), bins=histogram.edges)
    # numpy's last bin is closed on the right, ours never reach their right edge
    assert by_numpy.tolist() == histogram.counts.tolist()


def test_memory_is_flat_in_the_number_of_samples() -> None:
    random = np.random.default_rng(0)
    statistics = TensorStatistics()
    for _ in range(20):
        statistics.observe(random.standard_normal(5000).astype(np.float32))
    tracemalloc.start()
    for scale in np.geomspace(1, 1e4, 200):
        statistics.observe((random.standard_normal(5000) * scale).astype(np.float32))
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 300_000
    assert statistics.observations == 220


def normal(count: int = 200_000) -> np.ndarray:
    return np.random.default_rng(1).standard_normal(count).astype(np.float32)


def observed(*samples: np.ndarray) -> TensorStatistics:
    statistics = TensorStatistics()
    for sample in samples:
        statistics.observe(sample)
    return statistics


def test_minmax_keeps_every_value() -> None:
    values = normal()
    found = estimate(observed(*np.split(values, 100)), Estimator.MINMAX)
    assert found is not None
    assert (found.low, found.high) == (values.min(), values.max())


def test_percentile_agrees_with_numpy_within_a_bin() -> None:
    values = normal()
    statistics = observed(*np.split(values, 100))
    found = estimate(statistics, Estimator.PERCENTILE)
    low, high = np.percentile(values, [0.005, 99.995])
    assert found is not None
    width = statistics.histogram.width
    assert abs(found.low - low) < 2 * width and abs(found.high - high) < 2 * width


def test_percentile_cuts_a_lone_outlier_and_minmax_does_not() -> None:
    values = normal()
    values[7] = 1000.0
    statistics = observed(*np.split(values, 100))
    cut, kept = (estimate(statistics, e) for e in (Estimator.PERCENTILE, Estimator.MINMAX))
    assert cut is not None and kept is not None
    assert cut.high < 10 and kept.high == 1000


def test_mse_range_is_nearly_the_best_that_shrinking_finds() -> None:
    values = np.random.default_rng(2).standard_t(3, 100_000).astype(np.float32)
    found = estimate(observed(*np.split(values, 50)), Estimator.MSE)
    assert found is not None

    def error(low: float, high: float) -> float:
        step = (high - low) / 255
        return float(((np.round(np.clip(values, low, high) / step) * step - values) ** 2).mean())

    best = min(error(values.min() * p, values.max() * p) for p in np.geomspace(1, 0.02, 100))
    assert error(found.low, found.high) < 1.05 * best
    assert error(found.low, found.high) < 0.9 * error(values.min(), values.max())


def test_moving_average_is_the_mean_of_the_extremes() -> None:
    found = estimate(
        observed(np.array([-1, 3], np.float32), np.array([-3, 5], np.float32)),
        Estimator.MOVING_AVERAGE,
    )
    assert found is not None
    assert (found.low, found.high) == (-2, 4)


@pytest.mark.parametrize("estimator", Estimator)
@given(values=arrays)
@settings(max_examples=25)
def test_range_always_holds_zero_and_never_exceeds_the_values(
    estimator: Estimator, values: np.ndarray
) -> None:
    found = estimate(observed(values), estimator)
    assert found is not None
    assert found.low <= 0 <= found.high
    assert found.low >= min(0, values.min()) and found.high <= max(0, values.max())
    assert math.isfinite(found.low) and math.isfinite(found.high)


def test_masks_of_minus_infinity_do_not_spoil_the_range() -> None:
    values = np.array([0.5, -np.inf, np.nan, -0.25], np.float32)
    statistics = observed(values)
    found = estimate(statistics, Estimator.MINMAX)
    assert found is not None and (found.low, found.high) == (-0.25, 0.5)
    assert statistics.not_finite == 2
    assert estimate(observed(np.array([np.nan], np.float32)), Estimator.MINMAX) is None


@pytest.mark.parametrize("value", [0.0, 1e-30, 3.0, -7e20, 3e38])
def test_constant_tensors_have_a_range(value: float) -> None:
    found = estimate(observed(np.full(10, value, np.float32)), Estimator.PERCENTILE)
    assert found is not None
    assert max(abs(found.low), abs(found.high)) == pytest.approx(abs(value))
