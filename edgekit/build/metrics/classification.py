"""temporarily minimal"""

from __future__ import annotations

import numpy as np

from edgekit.build.metrics.intervals import wilson_interval
from edgekit.build.metrics.meter import Meter, Outputs, Score
from edgekit.build.metrics.options import MetricOptions
from edgekit_contract.errors import Refused


def top1(options: MetricOptions) -> Meter:
    return _Top1(against_labels=True)


def agreement(options: MetricOptions) -> Meter:
    return _Top1(against_labels=False)


def tells_classes(outputs: Outputs, options: MetricOptions) -> bool:
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

    def remarks(self) -> tuple[str, ...]:
        return ()


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
