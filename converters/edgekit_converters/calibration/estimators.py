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

from edgekit_converters.calibration.noise import LEVELS, Range, squared_errors
from edgekit_converters.calibration.statistics import BINS, Histogram, TensorStatistics

__all__ = [
    "CHOSEN_AMONG",
    "OF_EXTREMES",
    "OF_STATISTICS",
    "Estimator",
    "Range",
    "divergences",
    "estimate",
]

_PERCENTILE: Final = 99.99
"""Share of the values, in per cent, that the range keeps; half of the rest is cut on each side."""
_MSE_BINS: Final = BINS // 2
"""Two to four to a level are enough to compare ranges by, where values do not pile up on one."""
_TRIED: Final = 48
"""Ranges that a search tries at each turn."""
_LEAST_PART: Final = 0.01
"""Of the min-max range: least that a search tries."""
_TURNS: Final = ((True, True), (False, True), (True, False))
"""Whether the low and the high end move."""

Cost = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""What each of several ranges, given by lows and highs, loses."""


class Estimator(enum.Enum):
    MINMAX = "minmax"
    PERCENTILE = "percentile"
    ENTROPY = "entropy"
    MOVING_AVERAGE = "moving-average"
    MSE = "mse"
    MEASURED = "measured"
    """For each tensor what another gives, whichever the model's outputs suffer least from."""


OF_STATISTICS: Final = tuple(each for each in Estimator if each is not Estimator.MEASURED)
"""Those that `estimate` knows; the other one runs the model (`quantization.measuring`)."""
CHOSEN_AMONG: Final = (Estimator.MSE, Estimator.PERCENTILE, Estimator.MINMAX)
"""What `MEASURED` takes of each tensor, the first where nothing tells them apart."""
OF_EXTREMES: Final = frozenset({Estimator.MINMAX, Estimator.MOVING_AVERAGE})
"""Those that need no histogram."""


def estimate(statistics: TensorStatistics, estimator: Estimator) -> Range | None:
    """The range of a tensor by one of `OF_STATISTICS`; None where no finite value was seen."""
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
    """The range whose rounding and clipping errors, squared, are least."""
    histogram = statistics.histogram.holding_zero(_MSE_BINS)
    return _search(statistics, lambda lows, highs: squared_errors(histogram, lows, highs))


def _entropy(statistics: TensorStatistics) -> tuple[float, float]:
    """The range whose quantized distribution tells the clipped one best (Kullback-Leibler).

    As published for magnitudes, but both ends move: a level is an equal share of the bins between
    them. What is clipped counts in the last bin of its side. Zeros are left out: they are exact in
    any range, and after a rectifier so many that nothing else would count. A range of fewer bins
    than levels is not tried: bins cannot tell what it would lose.
    """
    histogram = statistics.histogram.holding_zero()
    return _search(statistics, lambda lows, highs: divergences(histogram, lows, highs))


def divergences(histogram: Histogram, lows: np.ndarray, highs: np.ndarray) -> np.ndarray:
    """Kullback-Leibler divergence, by sums up to each bin: the bins themselves are not visited."""
    counts = histogram.counts_but_zeros
    total = counts.sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        information = np.where(counts > 0, counts * np.log(counts), 0.0)
        up_to, bins_up_to, information_up_to = (
            np.concatenate([[0], np.cumsum(each)]) for each in (counts, counts > 0, information)
        )
        first = np.floor(lows / histogram.width).astype(np.int64) - histogram.first
        last = np.floor(highs / histogram.width).astype(np.int64) - histogram.first
        # what is clipped counts at the outermost values that are kept, not in an empty bin
        filled = np.union1d(np.flatnonzero(counts), -histogram.first)
        first = filled[np.searchsorted(filled, first)]
        last = filled[np.searchsorted(filled, last, side="right") - 1]
        end = last + 1
        bounds = first[:, None] + np.arange(LEVELS + 1) * (end - first)[:, None] // LEVELS
        within = np.diff(up_to[bounds]).astype(np.float64)
        sharing = np.diff(bins_up_to[bounds])
        held = within.copy()
        below, above = up_to[first], total - up_to[end]
        held[:, 0] += below
        held[:, -1] += above
        sharing[:, 0] += counts[first] == 0  # the bin of zero
        sharing[:, -1] += counts[last] == 0
        told = np.where(held > 0, held * np.log(within / sharing), 0.0).sum(axis=1)
        own = information_up_to[end] - information_up_to[first]
        for edge, clipped in ((first, below), (last, above)):
            whole = counts[edge] + clipped
            own += np.where(whole > 0, whole * np.log(whole), 0.0) - information[edge]
        kept = up_to[end] - up_to[first]
        divergence = (own - told) / total - np.log(total) + np.log(kept)
    return np.where((end - first >= LEVELS) & np.isfinite(divergence), divergence, np.inf)


def _search(statistics: TensorStatistics, cost: Cost) -> tuple[float, float]:
    """The range that costs least, found by moving both ends at once, then one after the other."""
    low, high = min(statistics.low, 0.0), max(statistics.high, 0.0)
    parts = np.geomspace(1.0, _LEAST_PART, _TRIED)
    best, least = (low, high), float(cost(np.array([low]), np.array([high]))[0])
    for moves_low, moves_high in _TURNS if low < 0 < high else _TURNS[:1]:
        lows = low * parts if moves_low else np.full(_TRIED, best[0])
        highs = high * parts if moves_high else np.full(_TRIED, best[1])
        costs = cost(lows, highs)
        at = int(np.argmin(costs))
        if costs[at] < least:
            best, least = (float(lows[at]), float(highs[at])), float(costs[at])
    return best


_ESTIMATORS: Final[Mapping[Estimator, Callable[[TensorStatistics], tuple[float, float]]]] = {
    Estimator.MINMAX: _minmax,
    Estimator.PERCENTILE: _percentile,
    Estimator.ENTROPY: _entropy,
    Estimator.MOVING_AVERAGE: _moving_average,
    Estimator.MSE: _mse,
}
