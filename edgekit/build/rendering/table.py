"""The table that a build prints, and its line on the frontier."""

from __future__ import annotations

from typing import Final

from edgekit.build.rendering.figures import (
    device_text,
    has_device_times,
    mb_text,
    ms_text,
    ratio_text,
    score_text,
)
from edgekit.build.rendering.frontier import frontier, survey
from edgekit.build.report import Candidate, Outcome, Report

__all__ = [
    "frontier_line",
    "frontier_titles",
    "headers",
    "held_out_line",
    "is_screened",
    "marked_score",
    "table_rows",
]

SCREENED: Final = " ~"
"""Behind a figure that is of a few samples only."""


def headers(report: Report) -> tuple[str, ...]:
    """Of `table_rows`; where something is known of the profile's device, with a column for it."""
    if not has_device_times(report):
        return ("recipe", "metric", "MB", "ms", "to float32", "outcome")
    return (
        "recipe", "metric", "MB", "HOST ms", "to float32", f"{report.profile} ms", "outcome"
    )  # fmt: skip


def table_rows(report: Report) -> list[list[str]]:
    """What was tried, in the report's order."""
    on_device = has_device_times(report)
    return [
        [
            candidate.title,
            marked_score(report, candidate),
            mb_text(candidate.size_bytes),
            ms_text(candidate.latency),
            ratio_text(candidate.latency),
            *([device_text(candidate.estimate, candidate.figure)] if on_device else []),
            candidate.outcome.value + (f": {candidate.reason}" if candidate.reason else ""),
        ]
        for candidate in report.candidates
        if candidate.outcome is not Outcome.SKIPPED
    ]


def marked_score(report: Report, candidate: Candidate) -> str:
    """Its figure on the samples that the choice saw, marked where it is of fewer than float32's."""
    return score_text(candidate.score) + (SCREENED if is_screened(report, candidate) else "")


def is_screened(report: Report, candidate: Candidate) -> bool:
    """Whether its figure is of fewer samples than float32's."""
    full = report.candidates[0].score if report.candidates else None
    return full is not None and candidate.score is not None and candidate.score.rows < full.rows


def held_out_line(report: Report) -> str:
    """How float32 and the chosen variant did on what the choice did not see; empty for nothing."""
    chosen = next((c for c in report.candidates if c.outcome is Outcome.CHOSEN), None)
    if chosen is None or chosen.held_out is None or report.candidates[0].held_out is None:
        return ""
    baseline = report.candidates[0]
    told = f"held out from the choice ({chosen.held_out.rows:,}): "
    if chosen is not baseline:
        told += f"{baseline.title} {score_text(baseline.held_out)}, "
    return f"{told}{chosen.title} {score_text(chosen.held_out)}"


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
