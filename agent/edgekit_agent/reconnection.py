"""When to connect again, and whether somebody else has this device's identity. Pure.

A takeover is told by DISCONNECT with reason 0x8E, or it shows: mosquitto 2.0.11 just closes the old
connection. So a few short connections in a row that the broker ended without a word, while it kept
the session, are taken for takeovers too. After one the delay is long and grows further until a
connection has lasted: two devices with one identity slow each other down instead of fighting.
Source: MQTT 5.0, sections 3.2.2.1.1 (Session Present) and 3.14.2.1.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final

from edgekit_agent.transitions import retry_delay_s

__all__ = ["SESSION_TAKEN_OVER", "Backoff", "Reconnection"]

SESSION_TAKEN_OVER: Final = 0x8E
_SUSPECT_AFTER: Final = 3
"""Short connections in a row; a restart of the broker, which loses sessions, makes none."""


@dataclass(frozen=True, kw_only=True)
class Backoff:
    """Seconds between attempts to connect."""

    least_s: float = 1.0
    most_s: float = 120.0
    takeover_s: float = 30.0
    most_takeover_s: float = 3600.0
    lasting_s: float = 600.0
    """A connection of this length ends the growth."""


class Reconnection:
    """One device's connections, one after the other."""

    def __init__(self, backoff: Backoff, randomness: random.Random) -> None:
        self._backoff, self._randomness = backoff, randomness
        self._connected_at: float | None = None
        self._kept_session = False
        self._failures = self._short = self._takeovers = 0

    def connected(self, now: float, *, session_present: bool) -> None:
        """The broker has accepted; `session_present`: it knew this device's session."""
        self._connected_at, self._kept_session = now, session_present

    def ended(self, now: float, *, reason: int | None, by_peer: bool) -> tuple[float, bool]:
        """The connection, or the attempt, has ended: seconds to wait, and whether by a takeover.

        `reason`: of the broker's DISCONNECT, if it sent one; `by_peer`: it closed the connection.
        """
        began, self._connected_at = self._connected_at, None
        if began is not None:
            self._failures = 0
            if now - began >= self._backoff.lasting_s:
                self._short = self._takeovers = 0
            elif reason is None and by_peer and self._kept_session:
                self._short += 1
            elif reason != SESSION_TAKEN_OVER:
                self._short = 0
        taken_over = began is not None and (
            reason == SESSION_TAKEN_OVER or self._short >= _SUSPECT_AFTER
        )
        backoff = self._backoff
        if taken_over:
            least, most, count = backoff.takeover_s, backoff.most_takeover_s, self._takeovers
            self._takeovers += 1
        else:
            least, most, count = backoff.least_s, backoff.most_s, self._failures
            self._failures += 1
        delay_s = retry_delay_s(count, least_s=least, most_s=most, randomness=self._randomness)
        return delay_s, taken_over
