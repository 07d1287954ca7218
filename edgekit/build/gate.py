"""The gate: what sealed bundles pass before any of them is written."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from edgekit.build.pack import Sealed
from edgekit.build.progress import Progress
from edgekit_contract.profile import Profile

__all__ = ["Gate", "show"]

Gate = Callable[[Profile, Sealed], None]
"""Told each bundle before any is written; raises `Refused` where it does not do on its profile."""


def show(gate: Gate, bundles: Iterable[tuple[Profile, Sealed]], watch: Progress) -> None:
    """Tell a gate all bundles of a build. Errors: as the gate."""
    listed = list(bundles)
    with watch.stage("trying each on its profile", len(listed)) as advance:
        for profile, sealed in listed:
            gate(profile, sealed)
            advance(1)
