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
COUNTED: Final = 1 << 11
"""Values of one observation that a histogram counts; of twice as many, an even selection.
Extremes are of all."""
_GATHERED: Final = 1 << 14
"""Values that wait to be counted together: a call costs more than a thousand values."""
_QUANTUM: Final = 149
"""All float32 values are multiples of 2^-149, so that sums of them can be exact."""


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
        counts: np.ndarray = self.counts.copy()
        if self.zeros:
            counts[-self.first] -= self.zeros
        return counts

    def holding_zero(self, bins: int = BINS) -> Histogram:
        """These counts in at most so many bins that reach zero, wider ones where need be."""
        made = Histogram()
        made.merge(self)
        if not len(made.counts):
            return made
        while max(made.first + len(made.counts), 1) - min(made.first, 0) > bins:
            made._coarsen(made.exponent + 1)
        made._count(0, np.zeros(1, np.int64))
        return made

    def add(self, values: np.ndarray) -> None:
        """Count float values, of any shape; NaN and infinity are passed over."""
        if not values.size:
            return
        least, greatest = float(values.min()), float(values.max())
        if not math.isfinite(greatest - least):
            self.add(values[np.isfinite(values)])
            return
        self.zeros += int(np.count_nonzero(values == 0))
        low, high = least, greatest
        if len(self.counts):
            low = min(low, self.first * self.width)
            high = max(high, (self.first + len(self.counts) - 1) * self.width)
        self._coarsen(max(self.exponent, _exponent(low, high)))
        # A product with a power of two is exact, and so are floor() and the difference of whole
        # numbers; only a factor below 1 may take a float32 out of the normal numbers.
        dtype = np.float64 if self.exponent > 0 else values.dtype
        scaled = np.multiply(values, math.ldexp(1.0, -self.exponent), dtype=dtype)
        start = math.floor(math.ldexp(least, -self.exponent))
        np.subtract(np.floor(scaled, out=scaled), start, out=scaled)
        self._count(start, np.bincount(scaled.ravel().astype(np.intp)))

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
        if self.first <= start and start + len(counts) <= self.first + len(self.counts):
            self.counts[start - self.first :][: len(counts)] += counts
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

    low: float = 0.0
    high: float = 0.0
    """Least and greatest value, zero among them: a range holds it in any case."""
    observations: int = 0
    sum_low: int = 0
    sum_high: int = 0
    """Sums of each observation's `low` and `high` in units of 2^-149: whole numbers, so exact."""
    not_finite: int = 0
    counts: bool = True
    """Whether values are counted, or only their extremes are kept."""

    def __post_init__(self) -> None:
        self._histogram = Histogram()
        self._waiting: list[np.ndarray] = []
        self._waiting_values = 0

    @property
    def histogram(self) -> Histogram:
        self._count_waiting()
        return self._histogram

    @property
    def mean_low(self) -> float:
        return self.sum_low / (self.observations << _QUANTUM)

    @property
    def mean_high(self) -> float:
        return self.sum_high / (self.observations << _QUANTUM)

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
        self.observe_part(low, high, flat)

    def observe_part(self, low: float, high: float, values: np.ndarray | None) -> None:
        """Take in one observation of which the extremes are known, and some finite values."""
        low, high = min(low, 0.0), max(high, 0.0)
        self.low, self.high = min(self.low, low), max(self.high, high)
        self.observations += 1
        self.sum_low += int(math.ldexp(low, _QUANTUM))
        self.sum_high += int(math.ldexp(high, _QUANTUM))
        if values is None or not self.counts:
            return
        counted = _selection(values.reshape(-1))
        self._waiting.append(counted.astype(np.float32, copy=False))
        self._waiting_values += counted.size
        if self._waiting_values >= _GATHERED:
            self._count_waiting()

    def _count_waiting(self) -> None:
        if self._waiting:
            self._histogram.add(np.concatenate(self._waiting))
            self._waiting, self._waiting_values = [], 0

    def merge(self, other: TensorStatistics) -> None:
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        self.observations += other.observations
        self.sum_low += other.sum_low
        self.sum_high += other.sum_high
        self.not_finite += other.not_finite
        self.histogram.merge(other.histogram)


def _selection(flat: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """An even selection; the step is odd, so that it does not keep to one channel of NHWC."""
    step = flat.size // COUNTED
    return flat if step < 2 else flat[:: step | 1]
