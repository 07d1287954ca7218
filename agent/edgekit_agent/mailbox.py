"""What the link brings, on its way into the loop.

Invariant: what waits is bounded, so that in a flood messages are lost before memory is. A range is
asked for again, an acknowledgement comes again; but what the hub desires is retained, and does not
come again before the next connection: the newest of that waits here until there is room.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from edgekit_agent.link import LinkEvent, Received
from edgekit_agent.loop import Loop
from edgekit_contract.topics import Kind

__all__ = ["Mailbox"]

_MOST_BLOBS: Final = 64
"""Frames with ranges that wait for the loop: a few windows of the updater."""
_MOST_WAITING: Final = 256


class Mailbox:
    def __init__(self, loop: Loop, take: Callable[[LinkEvent], None]) -> None:
        """`take` gets every event that is let in, in the loop's thread."""
        self._loop, self._take = loop, take
        self._desired: deque[Received] = deque(maxlen=1)

    def deliver(self, event: LinkEvent) -> None:
        """Let an event in, or lose it; from whatever thread."""
        if isinstance(event, Received):
            most = _MOST_BLOBS if event.kind is Kind.BLOB else _MOST_WAITING
            is_full = self._loop.waiting >= most
            if event.kind is Kind.DESIRED and (is_full or self._desired):
                self._desired.append(event)
                return
            if is_full:
                return
        self._loop.post(lambda: self._take(event))

    def tick(self) -> None:
        """Hand over what had to wait."""
        while self._desired:
            self._take(self._desired.popleft())
