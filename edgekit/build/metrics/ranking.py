"""Area under the ROC curve: how often a row of a class scores above a row of another. Pure.

Invariant: memory is bounded by `KEPT` scores; of more rows a uniform sample is kept, the same for
every variant. Equal scores count half. Sources: Hanley and McNeil, Radiology 143 (1982) (AUC is the
Mann-Whitney statistic); DeLong, DeLong and Clarke-Pearson, Biometrics 44 (1988) (its variance from
structural components, here summed per row over the classes, and per sample where rows are not
independent: Obuchowski, Biometrics 53 (1997)); Fawcett, Pattern Recognition Letters 27 (2006) (one
against the rest).
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from edgekit.build.metrics.classification import Seen
from edgekit.build.metrics.intervals import Z
from edgekit.build.metrics.meter import Meter, Outputs, Score
from edgekit.build.metrics.options import MetricOptions
from edgekit.build.metrics.reading import read_rows
from edgekit_contract.errors import Refused

__all__ = ["KEPT", "area", "auc"]

KEPT: Final = 1 << 20
"""Scores."""


def auc(options: MetricOptions) -> Meter:
    return _Auc(options)


class _Auc:
    """AUC of class 1 where there are two, else the mean over classes of one against the rest."""

    def __init__(self, options: MetricOptions) -> None:
        self._options = options
        self._seen = Seen()
        self._kept = _Sample()

    def add(self, got: Outputs, baseline: Outputs, labels: np.ndarray | None) -> None:
        rows = read_rows(got, baseline, self._options)
        if not rows.has_scores:
            raise Refused(
                f"output {rows.name!r} is classes without scores, which have no AUC: name the "
                "scores by [metric] output, or choose --metric f1."
            )
        own = rows.labels(labels)
        scores = rows.got.astype(np.float32)
        if scores.shape[1] == 2:  # the order of softmax's second, for probabilities and logits
            scores = scores[:, 1:] - scores[:, :1]
        within = np.arange(len(own)) if rows.units > 1 else np.zeros(len(own), np.int64)
        self._kept.add(scores, own, self._seen.units + within)
        self._seen.add(rows, own)

    def score(self) -> Score | None:
        if self._seen.is_empty():
            return None
        scores, labels, units = self._kept.rows()
        wants = [1] if scores.shape[1] == 1 else range(scores.shape[1])
        areas, influences = [], []
        for column, label in enumerate(wants):
            is_class = labels == label
            if is_class.any() and not is_class.all():
                value, influence = area(scores[:, column], is_class)
                areas.append(value)
                influences.append(influence)
        if not areas:
            raise Refused(
                "the validation data have rows of a single class, for which there is no AUC: give "
                "rows of two classes or more, well mixed."
            )
        value = float(np.mean(areas))
        per_unit = np.bincount(units, weights=np.mean(influences, axis=0))
        low, high = _interval(value, math.sqrt(float(per_unit @ per_unit)))
        return Score(value=value, low=low, high=high, rows=self._seen.rows)

    def remarks(self) -> tuple[str, ...]:
        said = self._seen.remarks()
        if self._kept.size < self._seen.rows:
            said += (f"AUC is of {self._kept.size} rows, drawn from {self._seen.rows}.",)
        return said


class _Sample:
    """Rows with their label and unit: all, or those of the least random numbers."""

    def __init__(self) -> None:
        self._random = np.random.default_rng(0)
        self._parts: list[tuple[np.ndarray, ...]] = []
        self._limit = self.size = 0

    def add(self, scores: np.ndarray, labels: np.ndarray, units: np.ndarray) -> None:
        self._limit = max(1, KEPT // scores.shape[1])
        self._parts.append((scores, labels, units, self._random.random(len(scores))))
        self.size += len(scores)
        if self.size > 2 * self._limit:
            self._cut()

    def _cut(self) -> None:
        columns = tuple(np.concatenate(column) for column in zip(*self._parts, strict=True))
        if self.size > self._limit:
            least = np.argpartition(columns[3], self._limit)[: self._limit]
            columns = tuple(column[least] for column in columns)
        self._parts = [columns]
        self.size = len(columns[0])

    def rows(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Scores, labels, and units numbered from 0 without gaps."""
        self._cut()
        scores, labels, units, _ = self._parts[0]
        return scores, labels, np.unique(units, return_inverse=True)[1]


def area(scores: np.ndarray, is_class: np.ndarray) -> tuple[float, np.ndarray]:
    """AUC, and by how much each row moves it: their squares sum to its variance.

    [rows] of scores and [rows] bool, which hold both values. Ties count half.
    """
    inside, outside = np.sort(scores[is_class]), np.sort(scores[~is_class])
    influence = np.empty(len(scores))
    for mine, others, where in ((inside, outside, is_class), (outside, inside, ~is_class)):
        own = scores[where]
        below = np.searchsorted(others, own, "left") + np.searchsorted(others, own, "right")
        component = below / (2 * len(others))
        spread = math.sqrt(len(mine) * max(1, len(mine) - 1))
        sign = 1 if mine is inside else -1
        influence[where] = sign * (component - component.mean()) / spread
        if mine is inside:
            value = float(component.mean())
    return value, influence


def _interval(value: float, deviation: float) -> tuple[float, float]:
    """On the logit scale, so that it stays between 0 and 1."""
    if not 0 < value < 1:
        return value, value
    logit = math.log(value / (1 - value))
    half = Z * deviation / (value * (1 - value))
    low, high = (
        1 / (1 + math.exp(-max(-700.0, min(700.0, x)))) for x in (logit - half, logit + half)
    )
    return low, high
