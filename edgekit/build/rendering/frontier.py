"""The Pareto frontier of a report: what no other candidate beats in metric and latency at once.

Pure. Invariant: only scores on the samples which the choice saw, over as many rows as float32's,
are compared: what is held out is run for two candidates alone. What was only screened, on fewer
samples, is neither on the frontier nor beats anything.
Source: Censor, "Pareto optimality in multiobjective problems" (1977).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgekit.build.report import Candidate, Latency, Outcome, Score

__all__ = ["Point", "frontier", "survey"]


@dataclass(frozen=True, kw_only=True)
class Point:
    """A candidate with both figures."""

    index: int
    """Its place among the candidates."""
    candidate: Candidate
    score: Score
    latency: Latency
    is_screened: bool
    """The score is on fewer samples than float32's."""

    @property
    def is_chosen(self) -> bool:
        return self.candidate.outcome is Outcome.CHOSEN


def survey(candidates: Sequence[Candidate]) -> tuple[Point, ...]:
    """All candidates that have a score and a latency, in their order; the first is float32."""
    baseline = candidates[0].score if candidates else None
    if baseline is None:
        return ()
    return tuple(
        Point(
            index=index,
            candidate=candidate,
            score=candidate.score,
            latency=candidate.latency,
            is_screened=candidate.score.rows != baseline.rows,
        )
        for index, candidate in enumerate(candidates)
        if candidate.score is not None and candidate.latency is not None
    )


def frontier(points: Sequence[Point]) -> tuple[Point, ...]:
    """The points that none beats, the fastest first."""
    best: list[Point] = []
    for point in sorted(
        (point for point in points if not point.is_screened),
        key=lambda point: (point.latency.ratio, -point.score.value),
    ):
        # slower than the last: it has to be more accurate, or the same in both
        if not best or point.score.value > best[-1].score.value or _same(point, best[-1]):
            best.append(point)
    return tuple(best)


def _same(one: Point, other: Point) -> bool:
    figures = (one.score.value, one.latency.ratio)
    return figures == (other.score.value, other.latency.ratio)
