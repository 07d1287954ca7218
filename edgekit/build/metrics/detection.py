"""Detections: how many of float32's boxes a variant finds, and how many others. Pure.

Invariant: both models' outputs are read in the same way, and a box matches at most one other.
Boxes are matched as in PASCAL VOC (Everingham et al., IJCV 88 (2010), section 4.2): by falling
score, each to the box of its class that it overlaps most and that is still free. The value is F1 of
the matches, against float32's boxes as the truth.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import msgspec
import numpy as np

from edgekit.build.metrics.intervals import Replicates
from edgekit.build.metrics.meter import Meter, Outputs, Score
from edgekit.build.metrics.options import BoxLayout, DetectionOptions, MetricOptions
from edgekit.build.metrics.reading import are_numbers, named
from edgekit_contract.errors import Refused

__all__ = ["Boxes", "detection", "match", "overlaps", "read_boxes", "recognised", "suppress"]

_MOST: Final = 300
"""Boxes of a picture that are judged, by falling score; suppression looks at ten times as many."""


@dataclass(frozen=True, kw_only=True)
class Boxes:
    """The detections of one picture, by falling score."""

    corners: np.ndarray
    """[n, 4]: x, y, x, y, or y, x, y, x."""
    scores: np.ndarray
    classes: np.ndarray


def detection(options: MetricOptions) -> Meter:
    return _Detection(options)


class _Detection:
    def __init__(self, options: MetricOptions) -> None:
        self._options = options.detection
        self._replicates = Replicates()
        self._pictures = 0

    def add(self, got: Outputs, baseline: Outputs, labels: np.ndarray | None) -> None:
        if not self._replicates.samples:
            self._options = recognised(baseline, self._options)
        found, truth = (list(read_boxes(outputs, self._options)) for outputs in (got, baseline))
        if len(found) != len(truth):
            raise Refused(f"there are detections of {len(found)} pictures, not of {len(truth)}.")
        matched = sum(
            match(mine, theirs, self._options.iou)
            for mine, theirs in zip(found, truth, strict=True)
        )
        self._pictures += len(truth)
        self._replicates.add(np.array([matched, *(sum(map(_count, b)) for b in (found, truth))]))

    def score(self) -> Score | None:
        if not self._replicates.samples:
            return None
        low, high = self._replicates.interval(_f1)
        value = float(_f1(self._replicates.sums[None])[0])
        return Score(value=value, low=low, high=high, rows=self._pictures)

    def remarks(self) -> tuple[str, ...]:
        if not self._replicates.samples or self._replicates.sums[2]:
            return ()
        return (
            f"float32 detects nothing at a score of {self._options.min_score} or more: the metric "
            "says little ([metric.detection] min_score, or other validation data).",
        )


def _count(boxes: Boxes) -> int:
    return len(boxes.scores)


def _f1(sums: np.ndarray) -> np.ndarray:
    """[.., 3] of matches, boxes and float32's boxes; nothing found where nothing is is right."""
    matched, found, truth = np.moveaxis(sums, -1, 0)
    both = found + truth
    return np.where(both > 0, 2 * matched / np.maximum(both, 1), 1.0)


def recognised(outputs: Outputs, options: DetectionOptions) -> DetectionOptions:
    """The options with layout and names filled in from the shapes of float32's outputs.

    Errors: `Refused`.
    """
    layout = options.layout or _layout(outputs, options)
    replace = msgspec.structs.replace
    if layout is not BoxLayout.SEPARATE:
        first = next((name for name, array in outputs.items() if are_numbers(array)), "")
        return replace(options, layout=layout, boxes=options.boxes or first)
    told = {options.boxes, options.scores, options.classes}
    free = {name: array for name, array in outputs.items() if name not in told}
    boxes = options.boxes or _only(n for n, a in free.items() if are_numbers(a) and _is_boxes(a))
    if boxes is None:
        raise _ambiguous(outputs)
    free.pop(boxes, None)
    places = named(outputs, boxes, "detection.boxes").shape[:-1]
    of_places = {n: a for n, a in free.items() if a.shape[: len(places)] == places}
    scores = options.scores or _only(n for n, a in of_places.items() if are_numbers(a))
    if scores is None:
        raise _ambiguous(outputs)
    classes = options.classes or _only(n for n, a in of_places.items() if not are_numbers(a))
    return replace(options, layout=layout, boxes=boxes, scores=scores, classes=classes)


def _layout(outputs: Outputs, options: DetectionOptions) -> BoxLayout:
    floats = {name: array for name, array in outputs.items() if are_numbers(array)}
    if options.boxes or any(map(_is_boxes, floats.values())):
        return BoxLayout.SEPARATE
    if len(floats) == 1:
        (array,) = floats.values()
        if array.ndim in {2, 3}:
            rows, columns = array.shape[-2:]
            if columns == 6:
                return BoxLayout.CORNERS_SCORE_CLASS
            if rows > columns > 6:
                return BoxLayout.CENTER_OBJECTNESS_CLASSES
            if columns > rows > 4:
                return BoxLayout.CENTER_CLASSES_FIRST
    told = ", ".join(f"{name!r} {list(array.shape)}" for name, array in outputs.items())
    raise Refused(
        f"the outputs ({told}) are no detections that can be told by their shapes: say what they "
        "are by [metric.detection] layout in edgekit.toml, or choose another --metric."
    )


def _is_boxes(array: np.ndarray) -> bool:
    return array.ndim in {2, 3} and array.shape[-1] == 4


def _only(names: Iterable[str]) -> str | None:
    found = list(names)
    return found[0] if len(found) == 1 else None


def _ambiguous(outputs: Outputs) -> Refused:
    told = ", ".join(
        f"{name!r} {array.dtype} {list(array.shape)}" for name, array in outputs.items()
    )
    return Refused(
        f"the outputs ({told}) do not tell boxes [n, 4], scores [n] or [n, classes], and classes "
        "[n] apart: name them by [metric.detection] boxes, scores and classes in edgekit.toml."
    )


def read_boxes(outputs: Outputs, options: DetectionOptions) -> Iterator[Boxes]:
    """The detections of each picture of a sample; `options` as recognised. Errors: `Refused`."""
    if options.layout is BoxLayout.SEPARATE:
        yield from _separate(outputs, options)
        return
    array = named(outputs, options.boxes or "", "detection.boxes")
    pictures = array[None] if array.ndim == 2 else array
    if options.layout is BoxLayout.CENTER_CLASSES_FIRST and array.ndim in {2, 3}:
        pictures = np.swapaxes(pictures, 1, 2)
    least, most = _COLUMNS[options.layout] if options.layout is not None else (0, 0)
    if pictures.ndim != 3 or not least <= pictures.shape[2] <= most:
        raise Refused(
            f"output {options.boxes!r} of shape {list(array.shape)} is not laid out as "
            f"[metric.detection] says: change its layout, or name the output by boxes."
        )
    for rows in pictures.astype(np.float64):
        if options.layout is BoxLayout.CORNERS_SCORE_CLASS:
            yield _detected(rows[:, :4], rows[:, 4], rows[:, 5], options)
            continue
        scores = rows[:, 4:]
        if options.layout is BoxLayout.CENTER_OBJECTNESS_CLASSES:
            scores = scores[:, :1] * scores[:, 1:]
        half = rows[:, 2:4] / 2
        corners = np.hstack([rows[:, :2] - half, rows[:, :2] + half])
        best = scores.argmax(axis=1)
        raw = _detected(corners, scores.max(axis=1), best, options, most=10 * _MOST)
        yield suppress(raw, options.suppression_iou)


_COLUMNS: Final = {
    BoxLayout.CORNERS_SCORE_CLASS: (6, 6),
    BoxLayout.CENTER_OBJECTNESS_CLASSES: (6, sys.maxsize),
    BoxLayout.CENTER_CLASSES_FIRST: (5, sys.maxsize),
}


def _separate(outputs: Outputs, options: DetectionOptions) -> Iterator[Boxes]:
    boxes = named(outputs, options.boxes or "", "detection.boxes").astype(np.float64)
    scores = named(outputs, options.scores or "", "detection.scores").astype(np.float64)
    if boxes.ndim == 2:
        boxes, scores = boxes[None], scores[None]
    scores = scores[..., None] if scores.ndim == 2 else scores
    if boxes.ndim != 3 or boxes.shape[2] != 4 or scores.shape[:-1] != boxes.shape[:2]:
        raise _ambiguous(outputs)
    classes, best = scores.argmax(axis=2), scores.max(axis=2)
    if options.classes is not None:
        given = named(outputs, options.classes, "detection.classes")
        if scores.shape[2] != 1 or given.size != best.size:
            raise _ambiguous(outputs)
        classes = given.reshape(best.shape)
    for picture in zip(boxes, best, classes, strict=True):
        yield _detected(*picture, options)


def _detected(
    corners: np.ndarray,
    scores: np.ndarray,
    classes: np.ndarray,
    options: DetectionOptions,
    *,
    most: int = _MOST,
) -> Boxes:
    """The best of those that count as detected. Errors: `Refused` for scores that are none."""
    if ((scores > 1.01) | (scores < -0.01)).any():
        raise Refused(
            "the scores of the detections are not between 0 and 1: check [metric.detection] "
            "layout, scores and classes, or judge by --metric package.module:callable."
        )
    order = np.argsort(-scores, kind="stable")
    order = order[scores[order] >= options.min_score][:most]
    return Boxes(
        corners=corners[order], scores=scores[order], classes=classes[order].astype(np.int64)
    )


def overlaps(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """[n, 4] and [m, 4] of corners -> [n, m] intersection over union."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(axis=2)
    mine, theirs = (np.clip(b[:, 2:] - b[:, :2], 0, None).prod(axis=1) for b in (boxes, others))
    union = mine[:, None] + theirs[None, :] - shared
    share: np.ndarray = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    return share


def suppress(boxes: Boxes, iou: float) -> Boxes:
    """Without those that overlap a better one of their class by more than `iou`."""
    kept: list[int] = []
    left = np.arange(len(boxes.scores))
    while len(left) and len(kept) < _MOST:
        best, left = left[0], left[1:]
        kept.append(best)
        over = overlaps(boxes.corners[[best]], boxes.corners[left])[0] > iou
        left = left[~(over & (boxes.classes[left] == boxes.classes[best]))]
    return Boxes(
        corners=boxes.corners[kept], scores=boxes.scores[kept], classes=boxes.classes[kept]
    )


def match(found: Boxes, truth: Boxes, iou: float) -> int:
    """How many of `found` match one of `truth`."""
    shared = overlaps(found.corners, truth.corners)
    shared[found.classes[:, None] != truth.classes[None, :]] = 0
    matched = 0
    for row in shared:
        if row.size and row.max() >= iou:
            matched += 1
            shared[:, row.argmax()] = 0
    return matched
