"""The expected error of quantizing a tensor, against quantizing its values."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit_converters.calibration.noise import Range, noise_of, power_of
from edgekit_converters.calibration.statistics import TensorStatistics


def observed(values: np.ndarray) -> TensorStatistics:
    statistics = TensorStatistics()
    for part in np.array_split(values.astype(np.float32), 40):
        statistics.observe(part)
    return statistics


def quantized_error(values: np.ndarray, covered: Range, levels: int = 256) -> float:
    """What quantizing and dequantizing does to each value."""
    step = (covered.high - covered.low) / (levels - 1)
    bottom = np.rint(covered.low / step)
    level = np.clip(np.rint(values / step), bottom, bottom + levels - 1)
    return float(((level * step - values.astype(np.float64)) ** 2).mean())


DISTRIBUTIONS = {
    "normal": lambda random: random.standard_normal(60_000),
    "half of it zero": lambda random: np.maximum(random.standard_normal(60_000), 0),
    "heavy tails": lambda random: random.standard_t(3, 60_000),
    "one-sided": lambda random: random.exponential(2.0, 60_000),
    "clamped": lambda random: np.clip(3 * random.standard_normal(60_000), 0, 6),
}


@pytest.mark.parametrize("levels", [16, 256])
@pytest.mark.parametrize("name", DISTRIBUTIONS)
@given(parts=st.tuples(st.floats(0.1, 1.0), st.floats(0.1, 1.0)), seed=st.integers(0, 9))
@settings(max_examples=5, deadline=None)
def test_noise_is_the_error_that_quantizing_the_values_makes(
    name: str, levels: int, parts: tuple[float, float], seed: int
) -> None:
    values = DISTRIBUTIONS[name](np.random.default_rng(seed)).astype(np.float32)
    statistics = observed(values)
    covered = Range(min(statistics.low * parts[0], 0.0), max(statistics.high * parts[1], 0.0))
    expected = quantized_error(values, covered, levels)
    assert noise_of(statistics, covered, levels) == pytest.approx(expected, rel=0.05)


@given(value=st.floats(2.0**-60, 2.0**60), part=st.floats(0.05, 1.0))
def test_values_that_are_all_one_lose_only_what_is_clipped(value: float, part: float) -> None:
    values = np.full(30, value, np.float32)
    covered = Range(0.0, float(values[0]) * part)
    found = noise_of(observed(values), covered)
    assert found == pytest.approx(quantized_error(values, covered), rel=1e-6, abs=value**2 * 1e-12)


def test_zeros_cost_nothing_and_the_rest_costs_what_it_did() -> None:
    values = np.random.default_rng(0).exponential(1.0, 3000).astype(np.float32)
    with_zeros = np.concatenate([values, np.zeros(9000, np.float32)])
    covered = Range(0.0, 4.0)
    dense, sparse = (noise_of(observed(v), covered) for v in (values, with_zeros))
    assert sparse == pytest.approx(dense / 4)
    assert noise_of(observed(np.zeros(5)), Range(0.0, 0.0)) == 0


def test_power_is_the_mean_square() -> None:
    for make in DISTRIBUTIONS.values():
        values = make(np.random.default_rng(3)).astype(np.float32)
        expected = (values.astype(np.float64) ** 2).mean()
        assert power_of(observed(values)) == pytest.approx(expected, rel=0.01)
    assert power_of(observed(np.zeros(4))) == 0


def test_a_tensor_never_seen_has_neither_noise_nor_power() -> None:
    assert noise_of(TensorStatistics(), Range(0.0, 1.0)) == power_of(TensorStatistics()) == 0
