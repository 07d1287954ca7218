"""A report's candidates as numbered rows, in the order in which a reader wants them."""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass

from edgekit.build.rendering.frontier import Point, frontier
from edgekit.build.report import Candidate, Outcome, Report

__all__ = ["Row", "Standing", "not_tried", "rows_of"]


class Standing(enum.Enum):
    """Why a reader looks at a row, the most interesting first."""

    CHOSEN = "chosen"
    BASELINE = "baseline"
    FRONTIER = "frontier"
    LOST = "lost"
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True)
class Row:
    number: int
    """From 1; plots use it, too."""
    index: int
    """Of the candidate in the report."""
    candidate: Candidate
    standing: Standing


def rows_of(report: Report, points: Sequence[Point]) -> tuple[Row, ...]:
    """All that was tried: chosen, baseline, frontier, lost, failed; within these the fastest first.

    The baseline is the report's first candidate.
    """
    best = {point.index for point in frontier(points)}
    tried = [
        (_standing(index, candidate, best), index, candidate)
        for index, candidate in enumerate(report.candidates)
        if candidate.outcome is not Outcome.SKIPPED
    ]
    tried.sort(key=lambda row: (_ORDER[row[0]], _speed(row[2]), -_metric(row[2]), row[1]))
    return tuple(
        Row(number=number, index=index, candidate=candidate, standing=standing)
        for number, (standing, index, candidate) in enumerate(tried, start=1)
    )


def not_tried(report: Report) -> dict[str, list[str]]:
    """Recipes by the reason why they were left out."""
    found: dict[str, list[str]] = {}
    for candidate in report.candidates:
        if candidate.outcome is Outcome.SKIPPED:
            found.setdefault(candidate.reason or "no reason is given", []).append(candidate.title)
    return found


_ORDER = {standing: place for place, standing in enumerate(Standing)}


def _standing(index: int, candidate: Candidate, best: set[int]) -> Standing:
    if candidate.outcome is Outcome.CHOSEN:
        return Standing.CHOSEN
    if candidate.outcome is Outcome.FAILED:
        return Standing.FAILED
    if index == 0:
        return Standing.BASELINE
    return Standing.FRONTIER if index in best else Standing.LOST


def _speed(candidate: Candidate) -> float:
    return candidate.latency.ratio if candidate.latency is not None else math.inf


def _metric(candidate: Candidate) -> float:
    return candidate.score.value if candidate.score is not None else -math.inf
