"""How good a variant is: metrics that are fed one sample at a time. Pure.

Invariant: memory is flat in the number of samples. Sources: Wilson interval: E. B. Wilson,
"Probable inference, the law of succession, and statistical inference", JASA 22 (1927).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Final, Protocol

import numpy as np

from edgekit.build.report import Score
from edgekit.build.request import MetricKind
from edgekit_contract.errors import Refused

__all__ = ["Meter", "is_distribution", "new_meter", "wilson_interval"]

_Z: Final = 1.959963984540054
"""Two-sided 95% of the normal distribution."""

_WORST_R2: Final = -1.0
"""Below zero a constant would do better; how far below tells nothing."""

Outputs = Mapping[str, np.ndarray]


class Meter(Protocol):
    """A metric over the samples so far."""

    def add(self, got: Outputs, baseline: Outputs, labels: np.ndarray | None) -> None:
        """Take in one sample: the variant's outputs, the baseline's, and the labels if any."""
        ...

    def score(self) -> Score | None:
        """None before the first sample."""
        ...


def wilson_interval(hits: int, rows: int) -> tuple[float, float]:
    """95% confidence interval of a share."""
    share, z2 = hits / rows, _Z * _Z
    centre = (share + z2 / (2 * rows)) / (1 + z2 / rows)
    half = _Z / (1 + z2 / rows) * math.sqrt(share * (1 - share) / rows + z2 / (4 * rows * rows))
    return max(0.0, centre - half), min(1.0, centre + half)


def is_distribution(outputs: Outputs) -> bool:
    """Whether the first output is rows of probabilities: the mark of a classifier."""
    array = next(iter(outputs.values()))
    if array.dtype.kind != "f" or array.ndim != 2 or array.shape[-1] < 2:
        return False
    return bool((array >= 0).all() and np.allclose(array.sum(axis=-1), 1, atol=1e-2))


class _Top1:
    """Share of rows whose greatest score, in the first output, is at the right place."""

    def __init__(self, *, against_labels: bool) -> None:
        self._against_labels = against_labels
        self._hits = self._rows = 0

    def add(self, got: Outputs, baseline: Outputs, labels: np.ndarray | None) -> None:
        classes = _classes(got)
        if self._against_labels:
            right = _right(labels, len(classes), _class_count(got))
        else:
            right = _classes(baseline)
        self._hits += int((classes == right).sum())
        self._rows += len(classes)

    def score(self) -> Score | None:
        if not self._rows:
            return None
        low, high = wilson_interval(self._hits, self._rows)
        return Score(value=self._hits / self._rows, low=low, high=high, rows=self._rows)


def _class_count(outputs: Outputs) -> int:
    array = next(iter(outputs.values()))
    return array.shape[-1] if array.ndim else 1


def _classes(outputs: Outputs) -> np.ndarray:
    name, array = next(iter(outputs.items()))
    if array.ndim == 0 or array.shape[-1] < 2:
        raise Refused(
            f"output {name!r} of shape {list(array.shape)} has no classes to rank: "
            "choose --metric r2 or cosine."
        )
    classes: np.ndarray = np.argmax(array.reshape(-1, array.shape[-1]), axis=-1)
    return classes


def _right(labels: np.ndarray | None, rows: int, classes: int) -> np.ndarray:
    if labels is None:
        raise Refused(
            "the validation data have no labels: add an array `labels`, or choose "
            "--metric agreement."
        )
    if len(labels) != rows:
        raise Refused(f"the validation data have {len(labels)} labels for {rows} rows.")
    if labels.min() < 0 or labels.max() >= classes:
        raise Refused(
            f"the validation data have label {int(labels.max())}, the model has classes 0 to "
            f"{classes - 1}: renumber the labels."
        )
    return labels


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


_METERS: Final[Mapping[MetricKind, Callable[[], Meter]]] = {
    MetricKind.TOP1: lambda: _Top1(against_labels=True),
    MetricKind.AGREEMENT: lambda: _Top1(against_labels=False),
    MetricKind.COSINE: lambda: _Moments(_cosine),
    MetricKind.R2: lambda: _Moments(_r2),
}


def new_meter(kind: MetricKind) -> Meter:
    """A meter of this kind. Errors: `KeyError` for `AUTO`, which is to be resolved before."""
    return _METERS[kind]()
