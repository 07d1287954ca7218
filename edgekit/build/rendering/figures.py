"""Figures of a report as people read them. An empty text stands for what was not measured."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TypeVar

from edgekit.build.report import Estimate, Figure, Latency, Report, Score

__all__ = [
    "aim_text",
    "bytes_text",
    "db_text",
    "device_text",
    "greatest_first",
    "has_device_times",
    "mb_text",
    "measured_text",
    "ms_text",
    "ratio_text",
    "rounded",
    "score_text",
    "shape_text",
]

Number = TypeVar("Number", int, float)


def score_text(score: Score | None) -> str:
    """With its interval, where it has one."""
    if score is None:
        return ""
    text = f"{score.value:.4f}"
    if score.low is not None and score.high is not None:
        text += f" [{score.low:.3f}, {score.high:.3f}]"
    return text


def ratio_text(latency: Latency | None) -> str:
    if latency is None:
        return ""
    return f"{latency.ratio:.2f} [{latency.low:.2f}, {latency.high:.2f}]"


def ms_text(latency: Latency | None) -> str:
    return f"{latency.median_ms:.3f}" if latency is not None else ""


def rounded(value: float, digits: int = 2) -> str:
    """To so many significant digits, and never with an exponent."""
    places = digits - 1 - math.floor(math.log10(value)) if value > 0 else 0
    return f"{round(value, places):.{max(0, places)}f}"


def device_text(guess: Estimate | None, figure: Figure | None) -> str:
    """On the profile's device: `about` where it is an estimate, beside what a device measured."""
    parts = []
    if figure is not None:
        low, high = rounded(figure.low, 3), rounded(figure.high, 3)
        parts.append(f"{rounded(figure.median_ms, 3)} [{low}, {high}] measured")
    if guess is not None:
        parts.append(f"about {rounded(guess.ms)} [{rounded(guess.low)}, {rounded(guess.high)}]")
    return ", ".join(parts)


def has_device_times(report: Report) -> bool:
    """Whether anything is known of times on the profile's device, which is not this machine."""
    return any(c.estimate is not None or c.figure is not None for c in report.candidates)


def mb_text(size_bytes: int | None) -> str:
    return f"{size_bytes / 1e6:.3f}" if size_bytes is not None else ""


def db_text(closeness_db: float | None) -> str:
    return f"{closeness_db:.1f}" if closeness_db is not None else ""


def bytes_text(size_bytes: int) -> str:
    """In the unit that leaves few digits."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size_bytes >= scale:
            return f"{size_bytes / scale:.3g} {unit}"
    return f"{size_bytes} bytes"


def greatest_first(parts: Mapping[str, Number]) -> dict[str, Number]:
    """The same, the greatest part first."""
    return dict(sorted(parts.items(), key=lambda part: -part[1]))


def shape_text(shape: tuple[int | str, ...]) -> str:
    return " x ".join(str(axis) for axis in shape) or "one number"


def aim_text(report: Report) -> str:
    """What the choice was after."""
    if not report.measured_threads:
        return "There was nothing to choose"
    share = f"{100 * report.max_drop:g}%"
    return f"By {report.objective.value}, with at most {share} of the metric lost"


def measured_text(report: Report) -> str:
    """How the figures came to be, in a line."""
    if not report.measured_threads:
        return "packed as it was given: nothing was measured"
    return (
        f"{report.metric} on {report.validation_samples:,} samples, latency measured on "
        f"{'' if report.on_target else 'HOST '}{report.measured_on}, "
        f"{report.measured_threads} thread{'s' if report.measured_threads > 1 else ''}"
    )
