"""Where things go in a plot: axes, marks and the frontier as fractions of the plot's area.

Pure geometry, drawn by `html` in SVG and by `markdown` in letters. Invariant: every coordinate is
in 0 to 1, x to the right, y upward; what lies outside the axes is put on the edge and says so.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from edgekit.build.rendering.frontier import Point, frontier

__all__ = [
    "Axis",
    "LabelPlace",
    "Mark",
    "ParetoPlot",
    "Tick",
    "linear_axis",
    "log_axis",
    "pareto_plot",
]

_TICKS: Final = 6
_PLOTTABLE: Final = 1e9
"""Figures beyond are left out: no metric or ratio of a sound report is."""
_PAD: Final = 0.06
_NARROWEST: Final = 1e-4
"""Part of an axis's greatest value that its range spans at least."""
_DROPS_SHOWN: Final = 3.0
"""How many times the allowed drop lies within the axis, below float32."""
_LEAST_RADIUS: Final = 4.0
_GREATEST_RADIUS: Final = 14.0
_LABEL: Final = (0.035, 0.06)
"""Width and height of a number, as parts of the plot."""


@dataclass(frozen=True, kw_only=True)
class Tick:
    at: float
    text: str


@dataclass(frozen=True, kw_only=True)
class Axis:
    low: float
    high: float
    is_log: bool
    ticks: tuple[Tick, ...]

    def at(self, value: float) -> float:
        return min(1.0, max(0.0, _fraction(value, self.low, self.high, is_log=self.is_log)))


class LabelPlace(enum.Enum):
    ABOVE = 1
    BELOW = -1


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A candidate in the plot."""

    point: Point
    x: float
    y: float
    area: float
    """File size, as part of the largest."""
    on_frontier: bool
    is_below: bool
    """Its metric is below the axis."""
    label: LabelPlace | None
    """Where its number goes, if it matters and the number hides no other's."""

    @property
    def radius(self) -> float:
        """In pixels."""
        return max(_LEAST_RADIUS, _GREATEST_RADIUS * math.sqrt(self.area))


@dataclass(frozen=True, kw_only=True)
class ParetoPlot:
    """Metric (y) against latency as a ratio to float32 (x, logarithmic)."""

    x: Axis
    y: Axis
    marks: tuple[Mark, ...]
    """The large ones first, so that they do not hide the small."""
    stairs: tuple[tuple[float, float], ...]
    """Corners of the frontier, from the left."""
    allowed: float | None
    """The least metric that the choice allows, if it is within the axis."""

    @property
    def steps(self) -> tuple[tuple[tuple[float, float], tuple[float, float]], ...]:
        """The frontier's lines, each from a corner to the next."""
        return tuple(pairwise(self.stairs))


def pareto_plot(points: Sequence[Point], *, max_drop: float) -> ParetoPlot | None:
    """The plot of surveyed candidates, None where there is nothing to plot.

    The first sets the range of the metric; the bound is drawn if it is float32.
    """
    points = [p for p in points if abs(p.score.value) < _PLOTTABLE]
    points = [p for p in points if 1 / _PLOTTABLE < p.latency.ratio < _PLOTTABLE]
    if not points:
        return None
    x = log_axis([point.latency.ratio for point in points] + [1.0])
    least = points[0].score.value - max_drop
    y = _metric_axis(points, least, max_drop)
    largest = max(point.candidate.size_bytes or 0 for point in points)
    best = {point.index for point in frontier(points)}
    labels = _labels(points, best, x, y)
    marks = [
        Mark(
            point=point,
            x=x.at(point.latency.ratio),
            y=y.at(point.score.value),
            area=(point.candidate.size_bytes or 0) / largest if largest else 1.0,
            on_frontier=point.index in best,
            is_below=point.score.value < y.low,
            label=labels.get(point.index),
        )
        for point in points
    ]
    return ParetoPlot(
        x=x,
        y=y,
        marks=tuple(sorted(marks, key=lambda mark: -mark.area)),
        stairs=_stairs([mark for mark in marks if mark.on_frontier]),
        allowed=y.at(least) if points[0].index == 0 and y.low < least < y.high else None,
    )


def _metric_axis(points: Sequence[Point], least: float, max_drop: float) -> Axis:
    """Around what may be chosen: a variant that lost everything would press the rest together."""
    values = [point.score.value for point in points]
    shown = [v for v in values if v >= points[0].score.value - _DROPS_SHOWN * max_drop]
    return linear_axis([*shown, least] if max_drop < 1 else shown)


def _labels(points: Sequence[Point], best: set[int], x: Axis, y: Axis) -> dict[int, LabelPlace]:
    """Of the chosen, the baseline and the frontier, by index: in this order while there is room."""
    wanted = sorted(
        (p for p in points if p.is_chosen or p.index in best or p is points[0]),
        key=lambda p: (not p.is_chosen, p is not points[0]),
    )
    labels: dict[int, LabelPlace] = {}
    taken: list[tuple[float, float]] = []
    for point in wanted:
        for place in LabelPlace:
            u = x.at(point.latency.ratio)
            v = y.at(point.score.value) + place.value * _LABEL[1]
            if all(abs(u - a) > _LABEL[0] or abs(v - b) > _LABEL[1] for a, b in taken):
                labels[point.index] = place
                taken.append((u, v))
                break
    return labels


def _stairs(marks: Sequence[Mark]) -> tuple[tuple[float, float], ...]:
    corners: list[tuple[float, float]] = []
    for mark in sorted(marks, key=lambda mark: (mark.x, mark.y)):
        corners.append((mark.x, corners[-1][1] if corners else 0.0))
        corners.append((mark.x, mark.y))
    return (*corners, (1.0, corners[-1][1])) if corners else ()


def linear_axis(values: Sequence[float]) -> Axis:
    """An axis around values, as far as they can be plotted, with round ticks."""
    low, high = (min(_PLOTTABLE, max(-_PLOTTABLE, v)) for v in (min(values), max(values)))
    pad = max((high - low) * _PAD, max(abs(low), abs(high), _NARROWEST) * _NARROWEST)
    low, high = low - pad, high + pad
    step = _step((high - low) / _TICKS)
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    first, last = math.ceil(low / step), math.floor(high / step)
    ticks = tuple(
        Tick(at=_fraction(n * step, low, high, is_log=False), text=f"{n * step:.{digits}f}")
        for n in range(first, last + 1)
    )
    return Axis(low=low, high=high, is_log=False, ticks=ticks)


def log_axis(values: Sequence[float]) -> Axis:
    """A logarithmic axis around values above 0, with ticks at 1, 2 and 5 times powers of ten."""
    low, high = min(values), max(values)
    pad = max((high / low) ** _PAD, 1.02)
    low, high = low / pad, high * pad
    if high / low < 4:
        even = linear_axis([low, high])
        inside = [float(tick.text) for tick in even.ticks]
    else:
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        inside = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
    inside = [value for value in inside if low <= value <= high]
    inside = inside[:: math.ceil(len(inside) / (2 * _TICKS))] if inside else []
    ticks = tuple(
        Tick(at=_fraction(value, low, high, is_log=True), text=f"{value:.10g}") for value in inside
    )
    return Axis(low=low, high=high, is_log=True, ticks=ticks)


def _step(least: float) -> float:
    """The round number from 1, 2 and 5 times powers of ten that is next above."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-9))


def _fraction(value: float, low: float, high: float, *, is_log: bool) -> float:
    if is_log:
        return math.log(value / low) / math.log(high / low)
    return (value - low) / (high - low)
