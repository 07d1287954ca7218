"""What of a device's numbered messages may be acknowledged. Pure.

A device drops what is acknowledged, so `stored` stays below a gap while what is missing may still
come: a message that the broker took while the hub was away is sent again. Once that time is over
(`bridge`), a gap is the device's own: numbers that it never used, or gave up for lack of space.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

__all__ = ["Sequence"]

MAX_AHEAD: Final = 4096
"""More than so many beyond a gap are not waited with."""


@dataclass(slots=True)
class Sequence:
    """One kind of message of one stream; numbers begin at 1."""

    stored: int = 0
    """Up to here may be acknowledged."""
    _ahead: set[int] = field(default_factory=set)

    def take(self, seq: int) -> bool:
        """Note that `seq` came; whether it is new."""
        if seq <= self.stored or seq in self._ahead:
            return False
        self._ahead.add(seq)
        while self.stored + 1 in self._ahead:
            self.stored += 1
            self._ahead.discard(self.stored)
        if len(self._ahead) > MAX_AHEAD:
            self.bridge()
        return True

    def bridge(self) -> None:
        """Wait for nothing that is missing below what came."""
        if self._ahead:
            self.stored = max(self._ahead)
            self._ahead.clear()
