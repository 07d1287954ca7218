"""The two slots of a model and the switch between them.

Invariants: the file `active` alone says which slot serves and what it holds; it changes by one
atomic rename. Nobody writes into the active slot. What the other slot holds is worth nothing
until a digest says so. Source: RAUC, "slot status" (docs/reference, A/B updates).
"""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Final

import msgspec

from edgekit_agent import storage
from edgekit_agent.control import Release
from edgekit_contract.messages import BundleRef

__all__ = ["Active", "Slot", "Slots", "cache_of"]

_MAX_ACTIVE_BYTES: Final = 4096


class Slot(enum.Enum):
    A = "a"
    B = "b"

    @property
    def other(self) -> Slot:
        return Slot.B if self is Slot.A else Slot.A


class Active(msgspec.Struct, frozen=True, kw_only=True):
    """A bundle in a slot."""

    slot: Slot
    version: str
    digest: str
    counter: int
    floor: int

    @classmethod
    def of(cls, slot: Slot, release: Release) -> Active:
        """The bundle of a release that was staged in a slot."""
        return cls(
            slot=slot,
            version=release.version,
            digest=release.digest,
            counter=release.counter,
            floor=release.floor,
        )

    @property
    def ref(self) -> BundleRef:
        return BundleRef(version=self.version, digest=self.digest, counter=self.counter)


def cache_of(slot: Path) -> Path:
    """Where a runtime may keep what it makes of a slot's model on this device; it is lost with what
    the slot holds."""
    return slot.with_name(f"{slot.name}-cache")


class Slots:
    """The directory `models/NAME`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._switch = root / "active"

    def directory(self, slot: Slot) -> Path:
        return self.root / slot.value

    def active(self) -> Active | None:
        """What serves; None where nothing does or the switch is unreadable."""
        data = storage.read(self._switch, limit_bytes=_MAX_ACTIVE_BYTES)
        if data is None:
            return None
        try:
            return msgspec.json.decode(data, type=Active)
        except msgspec.DecodeError:
            return None

    @property
    def inactive(self) -> Slot:
        """The slot that an update may write."""
        active = self.active()
        return Slot.A if active is None else active.slot.other

    def switch(self, target: Active | None) -> None:
        """Make `target` the active bundle, or none. Doing it twice is harmless."""
        if target is None:
            storage.remove(self._switch)
        elif self.active() != target:
            storage.write(self._switch, msgspec.json.encode(target))
