"""The Pareto frontier of a report: what no other candidate beats in metric and latency at once.

Pure. Invariant: all candidates are compared by one kind of score: that on held-out samples where
each has it, else that on the samples which the choice saw.
Source: Censor, "Pareto optimality in multiobjective problems" (1977).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgekit.build.report import Candidate, Latency, Outcome, Report, Score

__all__ = ["Point", "frontier", "judged_scores", "survey"]


@dataclass(frozen=True, kw_only=True)
class Point:
    """A candidate with both figures."""

    index: int
    """Its place among the candidates."""
    candidate: Candidate
    score: Score
    latency: Latency
    on_frontier: bool

    @property
    def is_chosen(self) -> bool:
        return self.candidate.outcome is Outcome.CHOSEN


def survey(candidates: Sequence[Candidate]) -> tuple[Point, ...]:
    """All candidates that have a score and a latency, in their order."""
    scores = judged_scores(candidates)
    measured = [
        (index, candidate, score, candidate.latency)
        for index, (candidate, score) in enumerate(zip(candidates, scores, strict=True))
        if score is not None and candidate.latency is not None
    ]
    return tuple(
        Point(
            index=index,
            candidate=candidate,
            score=score,
            latency=latency,
            on_frontier=not any(_beats(s, t, score, latency) for _, _, s, t in measured),
        )
        for index, candidate, score, latency in measured
    )


def frontier(report: Report) -> list[Point]:
    """The points on it, the fastest first."""
    best = [point for point in survey(report.candidates) if point.on_frontier]
    return sorted(best, key=lambda point: point.latency.ratio)


def judged_scores(candidates: Sequence[Candidate]) -> list[Score | None]:
    """The scores by which candidates can be compared with each other."""
    scored = [candidate for candidate in candidates if candidate.score is not None]
    if scored and all(candidate.held_out is not None for candidate in scored):
        return [candidate.held_out for candidate in candidates]
    return [candidate.score for candidate in candidates]


def _beats(score: Score, latency: Latency, other: Score, other_latency: Latency) -> bool:
    """No worse in both, better in one."""
    mine, theirs = (score.value, -latency.ratio), (other.value, -other_latency.ratio)
    return mine != theirs and all(a >= b for a, b in zip(mine, theirs, strict=True))
