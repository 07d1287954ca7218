"""The table that a build prints, and its line on the frontier."""

from __future__ import annotations

from typing import Final

from edgekit.build.rendering.figures import mb_text, ms_text, ratio_text, reported, score_text
from edgekit.build.rendering.frontier import frontier, survey
from edgekit.build.report import Outcome, Report

__all__ = ["HEADERS", "frontier_line", "frontier_titles", "table_rows"]

HEADERS: Final = ("recipe", "metric", "MB", "ms", "to float32", "outcome")


def table_rows(report: Report) -> list[list[str]]:
    """What was tried, in the report's order."""
    return [
        [
            candidate.title,
            score_text(reported(candidate)),
            mb_text(candidate.size_bytes),
            ms_text(candidate.latency),
            ratio_text(candidate.latency),
            candidate.outcome.value + (f": {candidate.reason}" if candidate.reason else ""),
        ]
        for candidate in report.candidates
        if candidate.outcome is not Outcome.SKIPPED
    ]


def frontier_titles(report: Report) -> list[str]:
    """Candidates that nothing beats in metric and latency, the fastest first."""
    return [point.candidate.title for point in frontier(survey(report.candidates))]


def frontier_line(report: Report) -> str:
    """Which candidates nothing beats, the fastest first; empty where none was measured."""
    best = frontier(survey(report.candidates))
    if not best:
        return ""
    return "on the frontier of metric and latency: " + ", ".join(
        f"{point.candidate.title} ({point.score.value:.4f}, {point.latency.ratio:.2f})"
        for point in best
    )
