"""What a build gives back."""

from __future__ import annotations

from dataclasses import dataclass

from edgekit.build.pack import Packed
from edgekit.build.plan import Plan
from edgekit.build.report import Report

__all__ = ["BuildResult", "Built"]


@dataclass(frozen=True, kw_only=True)
class Built:
    """One bundle and how it came to be."""

    report: Report
    bundle: Packed
    contenders: tuple[Packed, ...] = ()
    """In the directory `contenders` of the output: variants to be measured beside it."""
    built_at: str | None = None
    """RFC 3339, UTC; None where there was nothing to build."""
    cached: bool = False
    """Whether it was built then, and only signed and written now."""


@dataclass(frozen=True, kw_only=True)
class BuildResult:
    plan: Plan
    built: tuple[Built, ...]
    """In the order of the request's profiles; empty after a dry run."""
