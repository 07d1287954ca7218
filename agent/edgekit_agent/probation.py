"""Probation: is the new bundle's worker healthy? `judge` is pure; `Probation` keeps the time."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

from edgekit_agent.control import Stats

__all__ = ["Judgement", "Observation", "Probation", "ProbationLimits", "judge"]


@dataclass(frozen=True, kw_only=True)
class ProbationLimits:
    duration_s: float = 600.0
    least_inferences: int = 20
    """Wanted before COMMIT where requests come at all; waited for no longer than `patience`."""
    max_error_share: float = 0.05
    """Of the requests that were not wrong themselves."""
    max_rss_bytes: int | None = None
    patience: float = 6.0
    """As many durations, at most, until the least number of inferences has come."""


@dataclass(frozen=True, kw_only=True)
class Observation:
    """A worker on probation."""

    elapsed_s: float
    heard: bool = True
    """Whether it has said anything of itself yet."""
    inferences: int = 0
    errors: int = 0
    rss_bytes: int = 0
    lost: str | None = None
    """Why the worker is gone or counts as gone."""


class Judgement(enum.Enum):
    WAIT = "wait"
    HEALTHY = "healthy"
    UNHEALTHY = "unhealthy"


_ERRORS_TO_BE_SURE: Final = 5
"""As many errors end a probation before its time."""


def judge(seen: Observation, limits: ProbationLimits) -> tuple[Judgement, str]:
    """Whether probation goes on, and the reason where it ends badly.

    A device without traffic commits after the time: nothing spoke against the bundle.
    """
    if seen.lost is not None:
        return Judgement.UNHEALTHY, seen.lost
    if limits.max_rss_bytes is not None and seen.rss_bytes > limits.max_rss_bytes:
        return Judgement.UNHEALTHY, (
            f"the worker holds {seen.rss_bytes >> 20} MiB, {limits.max_rss_bytes >> 20} are allowed"
        )
    requests = seen.inferences + seen.errors
    over = seen.elapsed_s >= limits.duration_s
    if seen.errors > limits.max_error_share * requests and (
        over or seen.errors >= _ERRORS_TO_BE_SURE
    ):
        return Judgement.UNHEALTHY, f"{seen.errors} of {requests} live requests failed"
    if not over or not seen.heard:
        return Judgement.WAIT, ""
    waited = seen.elapsed_s >= limits.patience * limits.duration_s
    if requests == 0 or requests >= limits.least_inferences or waited:
        return Judgement.HEALTHY, ""
    return Judgement.WAIT, ""


class Probation:
    """One probation at a time; it begins with the first look at a worker that serves."""

    def __init__(self, limits: ProbationLimits) -> None:
        self._limits = limits
        self._began_at: float | None = None

    def begin(self) -> None:
        """The next look is the first."""
        self._began_at = None

    def look(self, now: float, stats: Stats | None, lost: str | None) -> tuple[Judgement, str]:
        """Judge by what a worker has said of itself, if anything yet."""
        if self._began_at is None:
            self._began_at = now
        seen = Observation(
            elapsed_s=now - self._began_at,
            heard=stats is not None,
            inferences=stats.inferences if stats else 0,
            errors=stats.errors if stats else 0,
            rss_bytes=stats.rss_bytes if stats else 0,
            lost=lost,
        )
        return judge(seen, self._limits)
