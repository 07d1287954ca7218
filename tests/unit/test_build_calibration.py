"""Streaming statistics and the ranges that are estimated from them."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgekit_converters.calibration.estimators import (
    OF_STATISTICS,
    Estimator,
    divergences,
    estimate,
)
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


@pytest.mark.parametrize("estimator", OF_STATISTICS)
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


def quantized_error(values: np.ndarray, low: float, high: float) -> float:
    step = (high - low) / 255
    bottom = np.rint(low / step)
    levels = np.clip(np.rint(values / step), bottom, bottom + 255)
    return float(((levels * step - values.astype(np.float64)) ** 2).mean())


def silu(values: np.ndarray) -> np.ndarray:
    return values / (1 + np.exp(-values))


SKEWED = {
    "normal": lambda random: random.standard_normal(20_000),
    "a tail above": lambda random: random.gumbel(0.0, 1.0, 20_000),
    "tails on both sides": lambda random: random.standard_t(4, 20_000),
    "a floor and a tail": lambda random: silu(3 * random.standard_normal(20_000)),
    "half of it zero": lambda random: np.maximum(random.standard_t(4, 20_000), 0),
    "a lone outlier": lambda random: np.append(random.standard_normal(20_000), 60.0),
}


@pytest.mark.parametrize("name", SKEWED)
@given(seed=st.integers(0, 99))
@settings(max_examples=4, deadline=None)
def test_mse_range_is_nearly_the_best_that_trying_both_ends_finds(name: str, seed: int) -> None:
    values = SKEWED[name](np.random.default_rng(seed)).astype(np.float32)
    found = estimate(observed(*np.array_split(values, 20)), Estimator.MSE)
    assert found is not None
    low, high = min(float(values.min()), 0.0), float(values.max())
    parts = np.geomspace(1, 0.03, 14)
    best = min(
        quantized_error(values, low * p, high * q) for p in (parts if low else [0.0]) for q in parts
    )
    assert quantized_error(values, found.low, found.high) < 1.05 * best


def divergence_by_bins(histogram: Histogram, low: float, high: float) -> float:
    """Kullback-Leibler divergence as Migacz describes it, bin by bin."""
    counts = histogram.counts_but_zeros.astype(float)
    first = math.floor(low / histogram.width) - histogram.first
    end = math.floor(high / histogram.width) - histogram.first + 1
    while not counts[first]:
        first += 1
    while not counts[end - 1]:
        end -= 1
    held = counts[first:end].copy()
    held[0] += counts[:first].sum()
    held[-1] += counts[end:].sum()
    told = np.zeros(end - first)
    for level in range(256):
        start, stop = (k * (end - first) // 256 for k in (level, level + 1))
        filled = counts[first + start : first + stop] > 0
        if filled.any():
            told[start:stop][filled] = counts[first + start : first + stop].sum() / filled.sum()
    held, told = held / held.sum(), told / told.sum()
    with np.errstate(divide="ignore"):
        return float((held[held > 0] * np.log(held[held > 0] / told[held > 0])).sum())


@given(seed=st.integers(0, 99), parts=st.tuples(st.floats(0.3, 1), st.floats(0.3, 1)))
@settings(max_examples=20, deadline=None)
def test_divergence_by_sums_is_that_of_the_bins(seed: int, parts: tuple[float, float]) -> None:
    statistics = observed(*np.split(np.random.default_rng(seed).standard_t(5, 20_000), 20))
    histogram = statistics.histogram.holding_zero()
    low, high = statistics.low * parts[0], statistics.high * parts[1]
    found = divergences(histogram, np.array([low]), np.array([high]))[0]
    assert found == pytest.approx(divergence_by_bins(histogram, low, high), abs=1e-9)


def test_entropy_range_diverges_least_of_those_tried() -> None:
    random = np.random.default_rng(4)
    for name, make in SKEWED.items():
        statistics = observed(*np.array_split(make(random).astype(np.float32), 20))
        histogram = statistics.histogram.holding_zero()
        found = estimate(statistics, Estimator.ENTROPY)
        assert found is not None
        own = divergences(histogram, np.array([found.low]), np.array([found.high]))[0]
        parts = np.geomspace(1, 0.1, 40)
        both = divergences(histogram, statistics.low * parts, statistics.high * parts)
        assert np.isfinite(own) and own <= both.min() * 1.1 + 1e-9, name


def test_entropy_cuts_a_long_thin_tail_and_keeps_what_zeros_hide() -> None:
    random = np.random.default_rng(5)
    body = random.exponential(1.0, 60_000).astype(np.float32)
    found = estimate(observed(*np.split(body, 50)), Estimator.ENTROPY)
    rectified = np.concatenate([body, np.zeros(180_000, np.float32)])
    hidden = estimate(observed(*np.split(random.permutation(rectified), 200)), Estimator.ENTROPY)
    assert found is not None and hidden is not None
    assert 4 < found.high < body.max() * 0.9
    assert hidden.high == pytest.approx(found.high, rel=0.15)


@given(arrays)
def test_bins_that_hold_zero_are_few_and_count_the_same(values: np.ndarray) -> None:
    histogram = counted(values).holding_zero()
    assert histogram.total == values.size
    assert len(histogram.counts) <= BINS
    assert histogram.first <= 0 < histogram.first + len(histogram.counts)


def test_sums_of_extremes_are_exact_in_any_order() -> None:
    samples = [np.array([value], np.float32) for value in (3e38, 1e-45, -3e38, 0.1, 1e-30, 7e20)]
    sums = {
        (seen.sum_low, seen.sum_high)
        for order in (samples, samples[::-1], samples[3:] + samples[:3])
        for seen in [observed(*order)]
    }
    assert len(sums) == 1
