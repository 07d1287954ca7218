"""Time, handed in. A device may wake in 1970: `Clock.now` alone decides nothing about trust."""

from __future__ import annotations

import time
from datetime import datetime, timezone
from typing import Final, Protocol

__all__ = ["BUILT", "Clock", "SystemClock", "latest"]

BUILT: Final = datetime(2026, 10, 1, tzinfo=timezone.utc)
"""No earlier than this was this agent built: raised with each release."""


class Clock(Protocol):
    def now(self) -> datetime:
        """UTC, as far as the device knows it."""
        ...

    def monotonic(self) -> float:
        """Seconds that only grow."""
        ...


class SystemClock:
    def now(self) -> datetime:
        return datetime.now(timezone.utc).replace(microsecond=0)

    def monotonic(self) -> float:
        return time.monotonic()


def latest(now: datetime, *proven: datetime | None) -> datetime:
    """The time to judge validity by: the clock, or whatever later time is known for sure."""
    return max([now, BUILT, *(at for at in proven if at is not None)])
