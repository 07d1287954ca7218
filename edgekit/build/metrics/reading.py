"""From the outputs of a model to rows of scores, and from these to classes. Pure.

Invariant: a row that is NaN in float32 is left out for every variant. Integers of 8 bits are
quantized numbers; wider ones and booleans are classes as they are, compared by equality.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from edgekit.build.metrics.meter import Outputs
from edgekit.build.metrics.options import MetricOptions
from edgekit_contract.errors import Refused

__all__ = ["Rows", "Threshold", "are_numbers", "demand_classes", "named", "read_rows"]

_QUANTIZED: Final = frozenset({"int8", "uint8"})


def are_numbers(array: np.ndarray) -> bool:
    """Whether the elements are measures, of which one may be a little off."""
    return array.dtype.kind == "f" or array.dtype.name in _QUANTIZED


def demand_classes(labels: np.ndarray) -> None:
    """Errors: `Refused` where labels are what should come out, not classes."""
    if labels.dtype.kind == "f":
        raise Refused(
            "the validation data have labels with fractions, and the metric takes the numbers of "
            "classes: convert them, or give --metric package.module:callable."
        )


def named(outputs: Outputs, name: str, option: str) -> np.ndarray:
    """Errors: `Refused` where the model has no such output."""
    if name not in outputs:
        raise Refused(
            f"[metric] {option} names {name!r}, the model's outputs are {', '.join(outputs)}."
        )
    return outputs[name]


@dataclass(frozen=True, kw_only=True)
class Rows:
    """What is judged of one sample."""

    name: str
    """Of the output."""
    got: np.ndarray
    """[rows, classes] of scores, or [rows] of classes."""
    baseline: np.ndarray
    left_out: np.ndarray
    """[rows before] bool: the rows that were dropped since float32 gives NaN there."""
    units: int
    """Rows that are independent: those of one picture or text are not."""

    @property
    def has_scores(self) -> bool:
        return self.got.ndim == 2

    @property
    def classes(self) -> int | None:
        """How many there are; None where the output does not tell."""
        return max(2, self.got.shape[1]) if self.has_scores else None

    def labels(self, labels: np.ndarray | None) -> np.ndarray:
        """The labels of the rows. Errors: `Refused`."""
        if labels is None:
            raise Refused(
                "the validation data have no labels: add an array `labels`, or choose "
                "--metric agreement."
            )
        demand_classes(labels)
        if len(labels) != len(self.left_out):
            raise Refused(
                f"the validation data have {len(labels)} labels for {len(self.left_out)} rows of "
                f"output {self.name!r}: give one for each row, or name another output by "
                "[metric] output."
            )
        if self.classes is not None:
            wrong = labels[(labels < 0) | (labels >= self.classes)]
            if len(wrong):
                raise Refused(
                    f"the validation data have label {int(wrong[0])}, the model has classes 0 to "
                    f"{self.classes - 1}: renumber the labels."
                )
        kept: np.ndarray = labels[~self.left_out]
        return kept


def read_rows(got: Outputs, baseline: Outputs, options: MetricOptions) -> Rows:
    """The rows of the output that is judged. Errors: `Refused`."""
    name = options.output if options.output is not None else next(iter(baseline))
    mine, truth = (named(outputs, name, "output") for outputs in (got, baseline))
    if mine.shape != truth.shape:
        raise Refused(
            f"output {name!r} has shape {list(mine.shape)} where float32's has "
            f"{list(truth.shape)}: choose a metric that matches what was found, such as detection, "
            "ctc or package.module:callable."
        )
    if not are_numbers(truth):
        structured = truth.size > (len(truth) if truth.ndim else 1)
        return Rows(
            name=name,
            got=mine.reshape(-1),
            baseline=truth.reshape(-1),
            left_out=np.zeros(truth.size, bool),
            units=1 if structured else truth.size,
        )
    mine, truth = (_last(array, name, options.class_axis) for array in (mine, truth))
    rows = truth.reshape(-1, truth.shape[-1])
    nan = np.isnan(rows).any(axis=1) if rows.dtype.kind == "f" else np.zeros(len(rows), bool)
    return Rows(
        name=name,
        got=mine.reshape(rows.shape)[~nan],
        baseline=rows[~nan],
        left_out=nan,
        units=int((~nan).sum()) if truth.ndim <= 2 else int(not nan.all()),
    )


def _last(array: np.ndarray, name: str, class_axis: int) -> np.ndarray:
    """The array with its axis of classes at the end."""
    if array.ndim == 0:
        return array.reshape(1, 1)
    if not -array.ndim <= class_axis < array.ndim:
        raise Refused(
            f"[metric] class_axis is {class_axis}, output {name!r} has shape {list(array.shape)}."
        )
    if not array.shape[class_axis]:
        raise Refused(
            f"output {name!r} of shape {list(array.shape)} has no classes to rank: choose --metric "
            "r2, or name another output by [metric] output."
        )
    return np.moveaxis(array, class_axis, -1)


class Threshold:
    """Where a single score says yes.

    Unless the user says so, two places are tried side by side: whether scores are probabilities
    or logits is known only when float32's have all been seen.
    """

    def __init__(self, value: float | None) -> None:
        self._told = value
        self._outside = False

    def classes(self, rows: Rows, scores: np.ndarray) -> np.ndarray:
        """[1, rows] of classes, or [2, rows] where both places are tried.

        `scores` are `rows.got` or `rows.baseline`.
        """
        if not rows.has_scores:
            return scores[None]
        if scores.shape[1] > 1:
            found: np.ndarray = scores.argmax(axis=1)[None]
            return found
        self._outside |= bool(((rows.baseline < 0) | (rows.baseline > 1)).any())
        places = np.array([0.5, 0.0] if self._told is None else [self._told])
        return (scores[:, 0] >= places[:, None]).astype(np.int64)

    @property
    def index(self) -> int:
        """Which row of `classes` holds."""
        return int(self._told is None and self._outside)

    def remarks(self) -> tuple[str, ...]:
        if not self.index:
            return ()
        return (
            "float32's scores are not all between 0 and 1: they were taken for logits, which say "
            "yes from 0 on ([metric] threshold changes that).",
        )
