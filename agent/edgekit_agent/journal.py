"""The journal of a model's update: written before each step, read after each start."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from edgekit_agent import storage
from edgekit_agent.control import Release
from edgekit_agent.slots import Active, Slot
from edgekit_contract.messages import Outcome, Phase

__all__ = ["Journal", "load", "save"]

_MAX_JOURNAL_BYTES: Final = 1 << 16


class Journal(msgspec.Struct, frozen=True, kw_only=True):
    phase: Phase = Phase.IDLE
    version: str | None = None
    """What the update machine works towards; None in IDLE."""
    release: Release | None = None
    """Known from PREFLIGHT on; kept in IDLE, so that `starts` belongs to a digest."""
    slot: Slot | None = None
    """The slot that is written: pending from CHECK on, whatever it holds."""
    previous: Active | None = None
    """Where ROLLBACK returns to; None: nothing served before."""
    starts: int = 0
    """Of the daemon, without a graceful stop, while this release was loaded or on probation."""
    reason: str = ""
    """Why ROLLBACK."""
    failed_in: Phase | None = None
    """Where ROLLBACK comes from."""
    last: Outcome | None = None

    @property
    def staged(self) -> Active:
        """What the slot holds from SWITCH on."""
        if self.slot is None or self.release is None:
            raise RuntimeError(f"{self.phase} without a staged release")
        return Active.of(self.slot, self.release)


def load(root: Path) -> Journal:
    """The journal in `models/NAME`; a new one where there is none or it is unreadable."""
    data = storage.read(root / "journal.json", limit_bytes=_MAX_JOURNAL_BYTES)
    if data is not None:
        try:
            return msgspec.json.decode(data, type=Journal)
        except msgspec.DecodeError:
            pass  # `active` still says what serves; the update begins again from CHECK
    return Journal()


def save(root: Path, journal: Journal) -> None:
    storage.write(root / "journal.json", msgspec.json.encode(journal))
