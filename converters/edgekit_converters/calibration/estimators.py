"""Estimators: from a tensor's statistics to the range that its quantized form covers. Pure.

Sources: percentile and entropy: Migacz, "8-bit inference with TensorRT", GTC 2017; moving average:
Jacob et al., "Quantization and training of neural networks for efficient integer-arithmetic-only
inference", CVPR 2018, section 3.1; MSE: Nagel et al., "A white paper on neural network
quantization", 2021, section 3.1.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from typing import Final

import numpy as np

from edgekit_converters.calibration.noise import Range
from edgekit_converters.calibration.statistics import Histogram, TensorStatistics

__all__ = ["Estimator", "Range", "estimate"]

_PERCENTILE: Final = 99.99
"""Share of the values, in per cent, that the range keeps; half of the rest is cut on each side."""
_MSE_STEPS: Final = 60
_MSE_LEAST: Final = 0.01
"""Least part of the min-max range that is tried."""
_LEVELS: Final = 255


class Estimator(enum.Enum):
    MINMAX = "minmax"
    PERCENTILE = "percentile"
    MOVING_AVERAGE = "moving-average"
    MSE = "mse"


def estimate(statistics: TensorStatistics, estimator: Estimator) -> Range | None:
    """The range of a tensor; None where no finite value was seen."""
    if not statistics.observations:
        return None
    low, high = _ESTIMATORS[estimator](statistics)
    low, high = max(low, statistics.low), min(high, statistics.high)
    # Zero must have an exact place: padding and rectified values are zero.
    return Range(min(low, 0.0), max(high, 0.0))


def _minmax(statistics: TensorStatistics) -> tuple[float, float]:
    return statistics.low, statistics.high


def _moving_average(statistics: TensorStatistics) -> tuple[float, float]:
    """The mean of the observations' extremes: a moving average that sample order cannot sway."""
    return statistics.mean_low, statistics.mean_high


def _percentile(statistics: TensorStatistics) -> tuple[float, float]:
    histogram = statistics.histogram
    share = np.cumsum(histogram.counts) / histogram.total
    tail = (1 - _PERCENTILE / 100) / 2
    edges = histogram.edges
    below = int(np.searchsorted(share, tail, side="right"))
    above = int(np.searchsorted(share, 1 - tail, side="left"))
    return float(edges[below]), float(edges[min(above + 1, len(edges) - 1)])


def _mse(statistics: TensorStatistics) -> tuple[float, float]:
    """The shrunken min-max range whose rounding and clipping errors, squared, are least."""
    histogram = statistics.histogram
    edges = histogram.edges
    centres = (edges[:-1] + edges[1:]) / 2
    best, best_error = (statistics.low, statistics.high), np.inf
    for part in np.geomspace(1.0, _MSE_LEAST, _MSE_STEPS):
        low, high = min(statistics.low * float(part), 0.0), max(statistics.high * float(part), 0.0)
        error = _squared_error(histogram, centres, low, high)
        if error < best_error:
            best, best_error = (low, high), error
    return best


def _squared_error(histogram: Histogram, centres: np.ndarray, low: float, high: float) -> float:
    step = (high - low) / _LEVELS
    if step <= 0:
        return float("inf")
    clipped = np.clip(centres, low, high) - centres
    inside = clipped == 0
    # a rounding error is uniform within a step: its mean square is step^2 / 12
    errors = np.where(inside, step * step / 12, clipped * clipped)
    return float((errors * histogram.counts).sum())


_ESTIMATORS: Final[Mapping[Estimator, Callable[[TensorStatistics], tuple[float, float]]]] = {
    Estimator.MINMAX: _minmax,
    Estimator.PERCENTILE: _percentile,
    Estimator.MOVING_AVERAGE: _moving_average,
    Estimator.MSE: _mse,
}
