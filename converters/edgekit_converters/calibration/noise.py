"""What quantizing a tensor costs: the mean squared error, from its statistics. Pure.

Invariant: within a bin values count as spread evenly, and zeros as what they are; for such values
rounding and clipping are integrated exactly, at any ratio of bin and step.

Source: Nagel et al., "A white paper on neural network quantization", 2021, sections 2.1 and 3.1.
"""

from __future__ import annotations

from typing import Final

import msgspec
import numpy as np

from edgekit_converters.calibration.statistics import Histogram, TensorStatistics

__all__ = ["LEVELS", "Range", "noise_of", "power_of", "squared_errors"]

LEVELS: Final = 256
"""Of 8 bits."""
_LEAST_STEP: Final = 2.0**-32
"""In widths of a bin: a range of nothing but zero has no step."""


class Range(msgspec.Struct, frozen=True):
    """Least and greatest value that is represented; always holds zero."""

    low: float
    high: float


def noise_of(statistics: TensorStatistics, covered: Range, levels: int = LEVELS) -> float:
    """Mean squared error of the values in `levels` equal steps over a range, one of them at zero.

    Against `power_of` it gives the tensor's signal-to-noise ratio.
    """
    low, high = np.array([covered.low]), np.array([covered.high])
    return float(squared_errors(statistics.histogram, low, high, levels)[0])


def power_of(statistics: TensorStatistics) -> float:
    """Mean square of the values."""
    histogram = statistics.histogram
    if not histogram.total:
        return 0.0
    edges = histogram.edges
    centres = (edges[:-1] + edges[1:]) / 2
    squares = centres * centres + histogram.width**2 / 12
    return float(squares @ histogram.counts_but_zeros) / histogram.total


def squared_errors(
    histogram: Histogram, lows: np.ndarray, highs: np.ndarray, levels: int = LEVELS
) -> np.ndarray:
    """Mean squared error for each of several ranges, float64 of their number."""
    if not histogram.total:
        return np.zeros(len(lows))
    steps = np.maximum((highs - lows) / (levels - 1), histogram.width * _LEAST_STEP)[:, None]
    bottoms = np.rint(lows[:, None] / steps)
    edges = histogram.edges[None, :] / steps
    nearest = np.clip(np.rint(edges), bottoms, bottoms + (levels - 1))
    error, crossed = edges - nearest, np.diff(nearest) * (steps / histogram.width)
    left, right = error[:, :-1], error[:, 1:]
    # (u - k)^3 / 3 + k / 12 is an antiderivative of (u - k)^2 with k the nearest level, continuous
    # also where clipping begins; its difference over a bin is factored, so that nothing cancels
    means = (1 - crossed) * (left * left + left * right + right * right) / 3 + crossed / 12
    squared: np.ndarray = (means @ histogram.counts_but_zeros) * steps[:, 0] ** 2 / histogram.total
    return squared
