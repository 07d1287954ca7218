"""Sequences read from CTC outputs: agreement by edit distance. Pure.

Invariant: what is compared are sequences of classes, decoded greedily: the best class of each step,
runs made one, blanks dropped. Sources: Graves et al., "Connectionist temporal classification", ICML
(2006), section 3.2 (best path decoding); 1 - edit distance / longer length, averaged over the
sequences, is the "1-NED" of the ICDAR 2019 robust reading challenges.
"""

from __future__ import annotations

import numpy as np

from edgekit.build.metrics.intervals import Replicates
from edgekit.build.metrics.meter import Meter, Outputs, Score
from edgekit.build.metrics.options import MetricOptions
from edgekit.build.metrics.reading import are_numbers, demand_classes, named
from edgekit_contract.errors import Refused

__all__ = ["ctc", "decode", "edit_distance"]


def ctc(options: MetricOptions) -> Meter:
    return _Sequences(options)


class _Sequences:
    """Against the labels where the data have them, else against float32's sequences."""

    def __init__(self, options: MetricOptions) -> None:
        self._options = options
        self._replicates = Replicates()
        self._has_labels = False

    def add(self, got: Outputs, baseline: Outputs, labels: np.ndarray | None) -> None:
        found, wanted = (decode(outputs, self._options) for outputs in (got, baseline))
        if self._replicates.samples and self._has_labels != (labels is not None):
            raise Refused("some of the validation data have labels and some have not: mend that.")
        self._has_labels = labels is not None
        if labels is not None:
            wanted = _given(labels, len(found), self._options)
        if len(found) != len(wanted):
            raise Refused(f"there are {len(found)} sequences, not {len(wanted)}.")
        pairs = list(zip(found, wanted, strict=True))
        agreed = sum(1 - edit_distance(a, b) / max(len(a), len(b), 1) for a, b in pairs)
        exact = sum(np.array_equal(a, b) for a, b in pairs)
        self._replicates.add(np.array([agreed, exact, len(pairs)]))

    def score(self) -> Score | None:
        if not self._replicates.samples:
            return None
        agreed, _, count = self._replicates.sums
        low, high = self._replicates.interval(lambda sums: sums[:, 0] / sums[:, 2])
        return Score(value=float(agreed / count), low=low, high=high, rows=int(count))

    def remarks(self) -> tuple[str, ...]:
        if not self._replicates.samples:
            return ()
        _, exact, count = self._replicates.sums
        against = "the labels" if self._has_labels else "float32's"
        return (f"{exact / count:.1%} of {int(count)} sequences are exactly {against}.",)


def decode(outputs: Outputs, options: MetricOptions) -> list[np.ndarray]:
    """The sequence of each row of the batch. Errors: `Refused`.

    The output is [time, classes], or has three axes, which `[metric]` and `[metric.ctc]` tell.
    """
    name = options.output if options.output is not None else next(iter(outputs))
    array = named(outputs, name, "output")
    axes, class_axis = array.ndim, options.class_axis
    if (
        axes not in {2, 3}
        or not are_numbers(array)
        or not -axes <= class_axis < axes
        or array.shape[class_axis] < 2
        or not array.size
    ):
        raise Refused(
            f"output {name!r} of shape {list(array.shape)} is no [batch, time, classes] of scores: "
            "name another by [metric] output, or its axes by class_axis and [metric.ctc] time_axis."
        )
    class_axis = class_axis % axes + 3 - axes
    array = array.reshape((1,) * (3 - axes) + array.shape)
    others = [axis for axis in range(3) if axis != class_axis]
    time_axis = options.ctc.time_axis
    if time_axis is None:
        time_axis = max(others, key=lambda axis: (array.shape[axis], axis))
    elif time_axis % 3 not in others:
        raise Refused(f"[metric.ctc] time_axis {time_axis} is the axis of the classes, too.")
    (batch_axis,) = set(others) - {time_axis % 3}
    blank = _blank(options, array.shape[class_axis])
    best = np.transpose(array, (batch_axis, time_axis, class_axis)).argmax(axis=2)
    return [_collapsed(row, blank) for row in best]


def _blank(options: MetricOptions, classes: int) -> int:
    blank = options.ctc.blank
    if not -classes <= blank < classes:
        raise Refused(f"[metric.ctc] blank is {blank}, the model has {classes} classes.")
    return blank % classes


def _collapsed(row: np.ndarray, blank: int) -> np.ndarray:
    first = np.append(True, row[1:] != row[:-1])[: len(row)]
    kept: np.ndarray = row[first & (row != blank)]
    return kept


def _given(labels: np.ndarray, rows: int, options: MetricOptions) -> list[np.ndarray]:
    """Labels of a sample as sequences; negative ones fill them up to one length."""
    demand_classes(labels)
    if len(labels) % rows:
        raise Refused(
            f"the validation data have {len(labels)} labels for {rows} sequences: fill them up to "
            "one length with -1."
        )
    return [row[(row >= 0) & (row != options.ctc.blank)] for row in labels.reshape(rows, -1)]


def edit_distance(a: np.ndarray, b: np.ndarray) -> int:
    """Least number of insertions, deletions and substitutions (Levenshtein, 1966).

    Row by row; what an insertion costs along a row is a running minimum.
    """
    steps = np.arange(len(b) + 1)
    row = steps
    for element in a:
        reached = row + 1
        reached[1:] = np.minimum(reached[1:], row[:-1] + (b != element))
        row = np.minimum.accumulate(reached - steps) + steps
    return int(row[-1])
