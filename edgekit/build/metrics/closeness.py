"""How near numbers are to float32's: R2, cosine, and mean squared error. Pure.

Invariant: each is 1 where the outputs are equal and at least -1; elements that are not finite in
float32 are left out; of several outputs the worst decides. Sources: coefficient of determination as
scikit-learn's r2_score; mean squared error as a part of float32's mean square, which is the inverse
of the signal-to-quantization-noise ratio: 1 less it is 0.99 at 20 dB.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

from edgekit.build.metrics.intervals import Replicates
from edgekit.build.metrics.meter import Meter, Outputs, Score
from edgekit.build.metrics.options import MetricOptions
from edgekit.build.metrics.reading import are_numbers, named
from edgekit_contract.errors import Refused

__all__ = ["cosine", "mse", "r2"]

_WORST: Final = -1.0
"""Below zero a constant would do better; how far below tells nothing."""

_Statistic = Callable[[np.ndarray], np.ndarray]
"""[.., 6] sums of xx, yy, xy, squared error, y and 1 -> [..]."""


def r2(options: MetricOptions) -> Meter:
    return _Moments(options, _r2)


def cosine(options: MetricOptions) -> Meter:
    return _Moments(options, _cosine)


def mse(options: MetricOptions) -> Meter:
    return _Moments(options, _mse)


class _Moments:
    """Per output: sums over all elements of all samples."""

    def __init__(self, options: MetricOptions, statistic: _Statistic) -> None:
        self._options, self._statistic = options, statistic
        self._replicates = Replicates()
        self._names: list[str] = []
        self._elements = 0

    def add(self, got: Outputs, baseline: Outputs, labels: np.ndarray | None) -> None:
        self._names = self._names or self._judged(baseline)
        self._elements += sum(baseline[name].size for name in self._names)
        self._replicates.add(np.array([_sums(got, baseline, name) for name in self._names]))

    def _judged(self, baseline: Outputs) -> list[str]:
        asked = self._options.output
        if asked is not None:
            named(baseline, asked, "output")
        names = [name for name in baseline if asked in {None, name} and are_numbers(baseline[name])]
        if not names:
            told = ", ".join(f"{name!r} is {array.dtype}" for name, array in baseline.items())
            raise Refused(
                f"there is no output of numbers to compare ({told}): choose --metric agreement."
            )
        return names

    def score(self) -> Score | None:
        if not self._replicates.samples:
            return None
        finite = self._replicates.sums[:, 5] > 0
        if not finite.any():
            why = "has no finite element" if self._elements else "has no element"
            raise Refused(
                f"float32's output {self._names[0]!r} {why} in any sample: check the model and its "
                "preprocessing."
            )

        def worst(sums: np.ndarray) -> np.ndarray:
            least: np.ndarray = self._statistic(sums[:, finite]).min(axis=1)
            return least

        low, high = self._replicates.interval(worst)
        return Score(
            value=float(worst(self._replicates.sums[None])[0]),
            low=low,
            high=high,
            rows=self._replicates.samples,
        )

    def remarks(self) -> tuple[str, ...]:
        if self._statistic is not _mse or not self._replicates.samples:
            return ()
        sums = self._replicates.sums
        told = ", ".join(
            f"{error / count:.3g} of {name!r}"
            for name, error, count in zip(self._names, sums[:, 3], sums[:, 5], strict=True)
            if count
        )
        return (f"The mean squared error itself is {told}.",)


def _sums(got: Outputs, baseline: Outputs, name: str) -> list[float]:
    if got[name].size != baseline[name].size:
        raise Refused(
            f"output {name!r} has shape {list(got[name].shape)} where float32's has "
            f"{list(baseline[name].shape)}: choose a metric that matches what was found, such as "
            "detection, ctc or package.module:callable."
        )
    x, y = (array.astype(np.float64).ravel() for array in (got[name], baseline[name]))
    finite = np.isfinite(y)
    if not finite.all():
        x, y = x[finite], y[finite]
    off = x - y
    return [x @ x, y @ y, x @ y, off @ off, y.sum(), len(y)]


def _cosine(sums: np.ndarray) -> np.ndarray:
    xx, yy, xy = sums[..., 0], sums[..., 1], sums[..., 2]
    with np.errstate(divide="ignore", invalid="ignore"):
        value = xy / np.sqrt(xx * yy)
    return np.where((xx == 0) | (yy == 0), np.where(xx == yy, 1.0, 0.0), value)


def _r2(sums: np.ndarray) -> np.ndarray:
    _, yy, _, error, total, count = np.moveaxis(sums, -1, 0)
    variance = yy - total * total / np.maximum(count, 1)
    # constant outputs have no variance to explain: then any error is measured by their size
    return _explained(error, np.where(variance > 1e-12 * yy, variance, yy))


def _mse(sums: np.ndarray) -> np.ndarray:
    return _explained(sums[..., 3], sums[..., 1])


def _explained(error: np.ndarray, against: np.ndarray) -> np.ndarray:
    """1 less the error as a part of something."""
    with np.errstate(divide="ignore", invalid="ignore"):
        value = np.nan_to_num(1 - error / against, nan=_WORST)
    return np.where(error == 0, 1.0, np.maximum(_WORST, value))
