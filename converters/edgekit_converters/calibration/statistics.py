"""Streaming statistics of a tensor: what every estimator of its range is computed from.

Invariant: memory is flat in the number of values; merging is exact, associative and commutative, so
that any order and any sharding of the samples gives the same statistics. Bins have a power of two
as width and begin at multiples of it; a histogram that outgrows them doubles the width by adding
pairs of bins, and its width follows from the range of the values alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

__all__ = ["BINS", "Histogram", "TensorStatistics"]

BINS: Final = 2048
"""Most bins of a histogram; between half of it and all of it are in use."""
_FINEST: Final = -100
"""Exponent of the least bin width: float32 values nearer than that are one."""
MAX_COUNTED: Final = 1 << 15
"""Values of one observation that a histogram counts; of more, an even selection. Range: all."""


class Histogram:
    """Counts of values in bins [i * 2^e, (i + 1) * 2^e), for i from `first` on."""

    def __init__(self) -> None:
        self.exponent = _FINEST
        self.first = 0
        self.counts: np.ndarray = np.zeros(0, np.int64)
        self.zeros = 0
        """Values that are zero: every quantization represents them exactly."""

    @property
    def width(self) -> float:
        return math.ldexp(1.0, self.exponent)

    @property
    def edges(self) -> np.ndarray:
        """The len(counts) + 1 edges of the bins, float64."""
        return (self.first + np.arange(len(self.counts) + 1)) * self.width

    @property
    def total(self) -> int:
        return int(self.counts.sum())

    @property
    def counts_but_zeros(self) -> np.ndarray:
        """Counts without the values that are exactly zero."""
        counts = self.counts.copy()
        if self.zeros:
            counts[-self.first] -= self.zeros
        return counts

    def add(self, values: np.ndarray) -> None:
        """Count finite float values, of any shape."""
        if not values.size:
            return
        self.zeros += values.size - int(np.count_nonzero(values))
        low, high = float(values.min()), float(values.max())
        if len(self.counts):
            low = min(low, self.first * self.width)
            high = max(high, (self.first + len(self.counts) - 1) * self.width)
        self._coarsen(max(self.exponent, _exponent(low, high)))
        # a product with a power of two is exact, so floor() is, too
        scaled = np.multiply(values, math.ldexp(1.0, -self.exponent), dtype=np.float64)
        indices = np.floor(scaled, out=scaled).astype(np.int64).ravel()
        start = int(indices.min())
        self._count(start, np.bincount(indices - start))

    def merge(self, other: Histogram) -> None:
        if not len(other.counts):
            return
        self.zeros += other.zeros
        if not len(self.counts):
            self.exponent, self.first = other.exponent, other.first
            self.counts = other.counts.copy()
            return
        exponent = max(self.exponent, other.exponent)
        while True:
            mine, first = _coarse(self.counts, self.first, exponent - self.exponent)
            theirs, their_first = _coarse(other.counts, other.first, exponent - other.exponent)
            span = max(first + len(mine), their_first + len(theirs)) - min(first, their_first)
            if span <= BINS:
                break
            exponent += 1
        self.exponent, self.first, self.counts = exponent, first, mine
        self._count(their_first, theirs)

    def _coarsen(self, exponent: int) -> None:
        if not len(self.counts):
            self.exponent = exponent
            return
        self.counts, self.first = _coarse(self.counts, self.first, exponent - self.exponent)
        self.exponent = exponent

    def _count(self, start: int, counts: np.ndarray) -> None:
        """Add counts of the bins from `start` on, making room on either side."""
        if not len(self.counts):
            self.first, self.counts = start, counts.astype(np.int64)
            return
        first = min(self.first, start)
        last = max(self.first + len(self.counts), start + len(counts))
        grown = np.zeros(last - first, np.int64)
        grown[self.first - first :][: len(self.counts)] = self.counts
        grown[start - first :][: len(counts)] += counts
        self.first, self.counts = first, grown


def _exponent(low: float, high: float) -> int:
    """The least exponent at which the bins from `low` to `high` are at most `BINS`."""
    extent = max(high - low, abs(low) * 2.0**-40, abs(high) * 2.0**-40)
    if extent <= 0:
        return _FINEST
    exponent = max(_FINEST, math.frexp(extent / BINS)[1] - 2)
    while _bins(low, high, exponent) > BINS:
        exponent += 1
    return exponent


def _bins(low: float, high: float, exponent: int) -> int:
    return math.floor(math.ldexp(high, -exponent)) - math.floor(math.ldexp(low, -exponent)) + 1


def _coarse(counts: np.ndarray, first: int, doublings: int) -> tuple[np.ndarray, int]:
    """Bins of 2^doublings times the width."""
    if doublings == 0 or not len(counts):
        return counts, first
    start = first >> doublings
    groups = (np.arange(first, first + len(counts)) >> doublings) - start
    coarse = np.zeros(int(groups[-1]) + 1, np.int64)
    np.add.at(coarse, groups, counts)
    return coarse, start


@dataclass
class TensorStatistics:
    """All that estimators need of one tensor, gathered in one pass."""

    low: float = math.inf
    high: float = -math.inf
    observations: int = 0
    sum_low: float = 0.0
    sum_high: float = 0.0
    """Sums of each observation's least and greatest value, for the moving average."""
    not_finite: int = 0

    def __post_init__(self) -> None:
        self.histogram = Histogram()

    def observe(self, values: np.ndarray) -> None:
        """Take in one observation: a tensor of any shape. NaN and infinity are only counted."""
        if not values.size:
            return
        flat = values.reshape(-1).astype(np.float32, copy=False)
        low, high = float(flat.min()), float(flat.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            finite = flat[np.isfinite(flat)]
            self.not_finite += flat.size - finite.size
            if not finite.size:
                return
            flat, low, high = finite, float(finite.min()), float(finite.max())
        self.low, self.high = min(self.low, low), max(self.high, high)
        self.observations += 1
        self.sum_low += low
        self.sum_high += high
        self.histogram.add(_selection(flat))

    def merge(self, other: TensorStatistics) -> None:
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        self.observations += other.observations
        self.sum_low += other.sum_low
        self.sum_high += other.sum_high
        self.not_finite += other.not_finite
        self.histogram.merge(other.histogram)


def _selection(flat: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """An even selection; the step is odd, so that it does not keep to one channel of NHWC."""
    step = flat.size // MAX_COUNTED
    return flat if step < 2 else flat[:: step | 1]
