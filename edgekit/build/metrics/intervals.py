"""Confidence intervals of 95%: Wilson's for shares, the bootstrap for all else. Pure.

Invariant: memory is flat in the number of samples, and the same samples give the same interval.
Sources: E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA
22 (1927); Efron and Tibshirani, "An introduction to the bootstrap" (1993), section 13.3
(percentile interval); Chamandy et al., "Estimating uncertainty for massive data streams", Google
technical report (2012) (Poisson bootstrap: how often a resample draws a sample is Poisson(1), so
samples can be weighed as they come).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import numpy as np

__all__ = ["REPLICATES", "Replicates", "Z", "percentile_interval", "wilson_interval"]

REPLICATES: Final = 200
"""Resamples: the ends of a 95% interval are then means of the 5 outermost, about."""
Z: Final = 1.959963984540054
"""Two-sided 95% of the normal distribution."""
_SEED: Final = 0


def wilson_interval(hits: float, rows: int) -> tuple[float, float]:
    """95% confidence interval of a share."""
    share, z2 = hits / rows, Z * Z
    centre = (share + z2 / (2 * rows)) / (1 + z2 / rows)
    half = Z / (1 + z2 / rows) * math.sqrt(share * (1 - share) / rows + z2 / (4 * rows * rows))
    return max(0.0, centre - half), min(1.0, centre + half)


def percentile_interval(values: np.ndarray) -> tuple[float, float]:
    """Of a statistic's values over resamples; NaN are resamples that do not define it."""
    low, high = np.nanquantile(values, [0.025, 0.975])
    return float(low), float(high)


class Replicates:
    """Sums over samples, and the same sums over `REPLICATES` resamples."""

    def __init__(self) -> None:
        self._random = np.random.default_rng(_SEED)
        self._sums: np.ndarray | None = None
        self._drawn = np.zeros(1 + REPLICATES)
        self.samples = 0

    def add(self, statistics: np.ndarray) -> None:
        """The statistics of one sample, of the same shape each time."""
        weights = np.append(1, self._random.poisson(1.0, REPLICATES)).astype(np.float64)
        weighed = np.multiply.outer(weights, statistics)
        self._sums = weighed if self._sums is None else self._sums + weighed
        self._drawn += weights
        self.samples += 1

    @property
    def sums(self) -> np.ndarray:
        """Over all samples. Errors: `RuntimeError` before the first."""
        total: np.ndarray = self._all[0]
        return total

    def interval(
        self, statistic: Callable[[np.ndarray], np.ndarray]
    ) -> tuple[float, float] | tuple[None, None]:
        """Interval of a statistic; None for a single sample, which tells nothing of others.

        `statistic` takes sums, stacked along the first axis, and gives a value for each.
        """
        if self.samples < 2:
            return None, None
        drawn = self._all[1:][self._drawn[1:] > 0]  # of few samples a resample may draw none
        return percentile_interval(statistic(drawn))

    @property
    def _all(self) -> np.ndarray:
        if self._sums is None:
            raise RuntimeError("no sample was added")
        return self._sums
