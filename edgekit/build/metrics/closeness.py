"""How near numbers are to float32's. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import numpy as np

from edgekit.build.metrics.meter import Meter, Outputs, Score
from edgekit.build.metrics.options import MetricOptions
from edgekit_contract.errors import Refused

_WORST_R2: Final = -1.0


def r2(options: MetricOptions) -> Meter:
    return _Moments(_r2)


def cosine(options: MetricOptions) -> Meter:
    return _Moments(_cosine)


class _Moments:
    """Per output: sums over all elements of all samples, for cosine and R2."""

    def __init__(self, value: Callable[[np.ndarray], float]) -> None:
        self._value = value
        self._sums: dict[str, np.ndarray] = {}
        self._rows = 0

    def add(self, got: Outputs, baseline: Outputs, labels: np.ndarray | None) -> None:
        self._rows += 1
        for name, array in baseline.items():
            x = got[name].astype(np.float64).ravel()
            y = array.astype(np.float64).ravel()
            if len(x) != len(y):
                raise Refused(f"output {name!r} has another shape than the baseline's.")
            finite = np.isfinite(y)
            x, y = x[finite], y[finite]
            sums = np.array([x @ x, y @ y, x @ y, (x - y) @ (x - y), y.sum(), float(len(y))])
            self._sums[name] = self._sums.get(name, 0) + sums

    def score(self) -> Score | None:
        if not self._rows:
            return None
        return Score(value=min(map(self._value, self._sums.values())), rows=self._rows)

    def remarks(self) -> tuple[str, ...]:
        return ()


def _cosine(sums: np.ndarray) -> float:
    xx, yy, xy = sums[:3]
    if xx == 0 or yy == 0:
        return 1.0 if xx == yy else 0.0
    return float(xy / math.sqrt(xx * yy))


def _r2(sums: np.ndarray) -> float:
    _, yy, _, error, total, count = sums
    variance = yy - total * total / count if count else 0.0
    # constant outputs have no variance to explain: then any error is measured by their size
    against = variance if variance > 1e-12 * yy else yy
    if error == 0:
        return 1.0
    return max(_WORST_R2, float(1 - error / against)) if against > 0 else _WORST_R2
