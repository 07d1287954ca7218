"""When an update of one model is tried: pure, with clock and randomness handed in."""

from __future__ import annotations

import random
from typing import Final

from edgekit_agent.clock import BUILT, Clock
from edgekit_agent.config import Knobs
from edgekit_agent.transitions import retry_delay_s
from edgekit_agent.window import closed_s

__all__ = ["Attempts"]

_NEVER: Final = float("inf")
_BACK_S: Final = 2.0


class Attempts:
    """What the hub wants, and when to work on it next."""

    def __init__(self, knobs: Knobs, clock: Clock, randomness: random.Random) -> None:
        self._knobs, self._clock, self._randomness = knobs, clock, randomness
        self.wanted: str | None = None
        self.insisted = False
        """The hub asked anew: even an answer that was given before is given again."""
        self._failures = 0
        self._at = _NEVER

    def want(self, version: str, *, anew: bool) -> bool:
        """Take what the hub wants; whether that is news."""
        if version == self.wanted and not anew:
            return False
        self.wanted, self.insisted, self._failures = version, anew, 0
        return True

    def due(self, now: float) -> bool:
        return now >= self._at

    def begin(self) -> str:
        """The version to work on; not due again until one of the following is called."""
        if self.wanted is None:
            raise RuntimeError("nothing is wanted")
        self._at = _NEVER
        return self.wanted

    def at_once(self) -> None:
        if self.wanted is not None:
            self._at = self._clock.monotonic()

    def satisfied(self) -> None:
        """Nothing to do but to look again after a while."""
        self._failures, self.insisted = 0, False
        if self.wanted is not None:
            poll_s = self._knobs.poll_s * self._randomness.uniform(0.9, 1.1)
            self._at = self._clock.monotonic() + poll_s

    def interrupted(self) -> float:
        """Try again after a delay that grows, while the window is open; the delay in seconds."""
        if closed := self._closed_s():
            self._failures = 0
            delay_s = closed + self._randomness.uniform(0, self._knobs.retry_s)
            self._at = self._clock.monotonic() + delay_s
            return delay_s
        delay_s = retry_delay_s(
            self._failures,
            least_s=self._knobs.retry_s,
            most_s=self._knobs.most_retry_s,
            randomness=self._randomness,
        )
        self._failures += 1
        self._at = self._clock.monotonic() + delay_s
        return delay_s

    def hub_is_back(self) -> None:
        """Do not sit out a delay that the hub's absence has caused; nor all devices at once."""
        if self._failures and self._at < _NEVER:
            soon = self._clock.monotonic() + self._randomness.uniform(0, _BACK_S)
            self._at = min(self._at, soon)

    def _closed_s(self) -> float:
        now = self._clock.now()
        # a clock that stands before the agent's build knows no time of the day
        return closed_s(self._knobs.window, now) if now >= BUILT else 0.0
