"""Classes: top-1, top-5, agreement with float32, and F1. Pure.

Invariant: of equal scores the one at the lower index leads, as numpy.argmax has it, for every
variant. Sources: C. J. van Rijsbergen, "Information retrieval" (1979), chapter 7 (F); macro average
as scikit-learn's f1_score(labels=classes of the data, average="macro").
"""

from __future__ import annotations

from collections import Counter
from typing import Final

import numpy as np

from edgekit.build.metrics.intervals import REPLICATES, percentile_interval, wilson_interval
from edgekit.build.metrics.meter import Meter, Outputs, Score
from edgekit.build.metrics.options import MetricOptions
from edgekit.build.metrics.reading import Rows, Threshold, are_numbers, named, read_rows
from edgekit_contract.errors import Refused

__all__ = ["Seen", "agreement", "f1", "tells_classes", "top1", "top5"]

_TOP: Final = 5
_NAMED: Final = 5
"""Classes that a remark names one by one."""


def top1(options: MetricOptions) -> Meter:
    return _Share(options, top=1)


def top5(options: MetricOptions) -> Meter:
    return _Share(options, top=_TOP)


def agreement(options: MetricOptions) -> Meter:
    return _Share(options, top=None)


def f1(options: MetricOptions) -> Meter:
    return _F1(options)


def tells_classes(outputs: Outputs, options: MetricOptions) -> bool:
    """Whether the output that is judged is classes, or rows of probabilities."""
    name = options.output if options.output is not None else next(iter(outputs))
    array = named(outputs, name, "output")
    if not are_numbers(array):
        return True
    axis = options.class_axis
    if array.dtype.kind != "f" or array.ndim < 2 or not -array.ndim <= axis < array.ndim:
        return False
    if array.shape[axis] < 2:
        return False
    return bool((array >= 0).all() and np.allclose(array.sum(axis=axis), 1, atol=1e-2))


class Seen:
    """What every meter of rows remembers of them: how many, how independent, of which classes."""

    def __init__(self) -> None:
        self.samples = self.rows = self.units = 0
        self._left_out = 0
        self._classes: int | None = None
        self._labels: set[int] = set()

    def add(self, rows: Rows, labels: np.ndarray | None = None) -> None:
        self.samples += 1
        self.rows += len(rows.got)
        self.units += rows.units
        self._left_out += int(rows.left_out.sum())
        if labels is not None:
            self._classes = rows.classes
            self._labels.update(np.unique(labels).tolist())

    def is_empty(self) -> bool:
        """Whether there was no sample. Errors: `Refused` where none has a row to judge."""
        if self.samples and not self.rows:
            what = "is NaN in every row" if self._left_out else "has no row in any sample"
            raise Refused(f"float32's output {what}: check the model and its preprocessing.")
        return not self.samples

    def remarks(self) -> tuple[str, ...]:
        said = []
        if self._left_out:
            total = self.rows + self._left_out
            said.append(f"{self._left_out} of {total} rows were left out: float32 gives NaN there.")
        if self._classes is not None and (missing := self._classes - len(self._labels)):
            absent = (c for c in range(self._classes) if c not in self._labels)
            which = ", ".join(str(c) for c, _ in zip(absent, range(_NAMED), strict=False))
            said.append(
                f"The validation data have no row of {missing} of the {self._classes} classes "
                f"({which}{', …' if missing > _NAMED else ''}): the metric says nothing of them."
            )
        return tuple(said)


class _Share:
    """Share of rows whose greatest scores hold the label, or lead where float32's do."""

    def __init__(self, options: MetricOptions, *, top: int | None) -> None:
        self._options, self._top = options, top
        self._threshold = Threshold(options.threshold)
        self._seen = Seen()
        self._hits = np.zeros(2)

    def add(self, got: Outputs, baseline: Outputs, labels: np.ndarray | None) -> None:
        rows = read_rows(got, baseline, self._options)
        if self._top is None:
            self._seen.add(rows)
            right = self._threshold.classes(rows, rows.baseline)
        else:
            own = rows.labels(labels)
            self._seen.add(rows, own)
            if self._top > 1:
                self._hits += _is_among(rows, own, self._top).sum()
                return
            right = own
        self._hits += (self._threshold.classes(rows, rows.got) == right).sum(axis=1)

    def score(self) -> Score | None:
        if self._seen.is_empty():
            return None
        share = float(self._hits[self._threshold.index]) / self._seen.rows
        low, high = wilson_interval(share * self._seen.units, self._seen.units)
        return Score(value=share, low=low, high=high, rows=self._seen.rows)

    def remarks(self) -> tuple[str, ...]:
        return (*self._seen.remarks(), *self._threshold.remarks())


def _is_among(rows: Rows, labels: np.ndarray, top: int) -> np.ndarray:
    """[rows] bool: fewer than `top` classes are before the label's."""
    if not rows.has_scores or rows.got.shape[1] <= top:
        raise Refused(
            f"output {rows.name!r} has no more than {top} classes, so that top{top} is always "
            "right: choose --metric top1."
        )
    own = np.take_along_axis(rows.got, labels[:, None], axis=1)
    earlier = np.arange(rows.got.shape[1]) < labels[:, None]
    before = (rows.got > own) | ((rows.got == own) & earlier)
    among: np.ndarray = before.sum(axis=1) < top
    return among


class _F1:
    """F1: of class 1 where the output is a single score, else the mean over the data's classes.

    Kept are the counts of the pairs (label, class found). Resampling rows is drawing from them.
    """

    def __init__(self, options: MetricOptions) -> None:
        self._options = options
        self._threshold = Threshold(options.threshold)
        self._seen = Seen()
        self._pairs: tuple[Counter[tuple[int, int]], ...] = (Counter(), Counter())
        self._is_binary = False

    def add(self, got: Outputs, baseline: Outputs, labels: np.ndarray | None) -> None:
        rows = read_rows(got, baseline, self._options)
        own = rows.labels(labels)
        self._seen.add(rows, own)
        self._is_binary = rows.has_scores and rows.got.shape[1] == 1
        for pairs, found in zip(self._pairs, self._threshold.classes(rows, rows.got), strict=False):
            met, counts = np.unique(np.stack([own, found]), axis=1, return_counts=True)
            pairs.update(dict(zip(zip(*met.tolist(), strict=True), counts.tolist(), strict=True)))

    def score(self) -> Score | None:
        if self._seen.is_empty():
            return None
        pairs = self._pairs[self._threshold.index]
        wants = [1] if self._is_binary else sorted({label for label, _ in pairs})
        place = {label: index for index, label in enumerate(wants)}
        labels, found = (
            np.array([place.get(pair[side], len(wants)) for pair in pairs]) for side in (0, 1)
        )
        counts = np.array(list(pairs.values()))
        drawn = np.random.default_rng(0).multinomial(
            self._seen.units, counts / counts.sum(), size=REPLICATES
        )
        resampled = [_mean_f1(labels, found, weights, len(wants)) for weights in drawn]
        value = _mean_f1(labels, found, counts, len(wants))
        if np.isnan(value):
            raise Refused(
                "the validation data have no row of class 1 and the model finds none, so that "
                "there is no F1: give data of both classes."
            )
        low, high = percentile_interval(np.array(resampled))
        return Score(value=value, low=low, high=high, rows=self._seen.rows)

    def remarks(self) -> tuple[str, ...]:
        return (*self._seen.remarks(), *self._threshold.remarks())


def _mean_f1(labels: np.ndarray, found: np.ndarray, counts: np.ndarray, classes: int) -> float:
    """Mean F1 over the classes of which there is any row; NaN where there is none.

    [pairs] each; class number `classes` is any other.
    """
    true, predicted, both = (
        np.bincount(which, weights=weights, minlength=classes + 1)[:classes]
        for which, weights in (
            (labels, counts),
            (found, counts),
            (labels, counts * (labels == found)),
        )
    )
    total = true + predicted
    held = total > 0 if classes == 1 else true > 0
    return float((2 * both[held] / total[held]).mean()) if held.any() else float("nan")
