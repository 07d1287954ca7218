"""What a metric is: fed one sample at a time, greater is better, float32 against itself is best.

Invariant: memory is flat in the number of samples.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import msgspec
import numpy as np

__all__ = ["Meter", "Outputs", "Score"]

Outputs = Mapping[str, np.ndarray]
"""What a model gave for one sample, by name, in the model's order."""


class Score(msgspec.Struct, frozen=True, kw_only=True):
    """A metric over some samples, with a 95% confidence interval where it has one."""

    value: float
    """Greater is better, so that a drop is float32's value less the variant's."""
    low: float | None = None
    high: float | None = None
    rows: int
    """How many things were judged: rows of scores, images, sequences, samples."""


class Meter(Protocol):
    """A metric over the samples so far."""

    def add(self, got: Outputs, baseline: Outputs, labels: np.ndarray | None) -> None:
        """Take in one sample: the variant's outputs, the baseline's, and the labels if any.

        Errors: `Refused` where outputs or labels are not what the metric is for.
        """
        ...

    def score(self) -> Score | None:
        """None before the first sample. Errors: `Refused` where the samples do not define it."""
        ...

    def remarks(self) -> tuple[str, ...]:
        """What the reader should know of the data or the figure, in whole sentences."""
        ...
