"""The `[metric]` table of edgekit.toml: how a metric reads the outputs."""

from __future__ import annotations

import enum
from typing import Final

import msgspec

from edgekit_contract.errors import Misused

__all__ = ["DEFAULTS", "BoxLayout", "CtcOptions", "DetectionOptions", "MetricOptions"]


class BoxLayout(enum.Enum):
    """What the rows of a detector's outputs hold."""

    SEPARATE = "separate"
    """Boxes [.., n, 4] as two corners, scores [.., n] or [.., n, classes], perhaps classes
    [.., n], each an output of its own."""
    CORNERS_SCORE_CLASS = "corners-score-class"
    """[.., n, 6]: two corners, score, class."""
    CENTER_OBJECTNESS_CLASSES = "center-objectness-classes"
    """[.., n, 5 + classes]: center, width, height, objectness, a score for each class."""
    CENTER_CLASSES_FIRST = "center-classes-first"
    """[.., 4 + classes, n]: center, width, height, a score for each class."""


class DetectionOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[metric.detection]`. Errors: `Misused`."""

    layout: BoxLayout | None = None
    """None: by the shapes of the outputs."""
    boxes: str | None = None
    """Names of the outputs, where shapes do not tell them apart."""
    scores: str | None = None
    classes: str | None = None
    min_score: float = 0.25
    """What counts as detected."""
    iou: float = 0.5
    """Least intersection over union of a box and its match."""
    suppression_iou: float = 0.45
    """Of two boxes of a class that overlap more, the lesser falls, in layouts of raw candidates."""

    def __post_init__(self) -> None:
        for name in ("min_score", "iou", "suppression_iou"):
            if not 0 < getattr(self, name) <= 1:
                raise Misused(f"[metric.detection] {name} is not above 0 and at most 1.")


class CtcOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[metric.ctc]`."""

    blank: int = 0
    """The class that stands for nothing; -1: the last."""
    time_axis: int | None = None
    """None: of the two axes that are not classes, the longer."""


class MetricOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[metric]`."""

    output: str | None = None
    """The output that is judged; None: the first, and for metrics of numbers all of them."""
    class_axis: int = -1
    threshold: float | None = None
    """Of a single score, from where on it says yes; None: 0.5 if all float32's are in 0 to 1,
    else 0, as for logits."""
    detection: DetectionOptions = DetectionOptions()
    ctc: CtcOptions = CtcOptions()


DEFAULTS: Final = MetricOptions()
