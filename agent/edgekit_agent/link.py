"""What the daemon knows of its connection to the hub: a `Link`, and the events it hands in.

Invariant: the daemon is the same whether its link is MQTT over TLS or, in tests, a function call.
Nothing queues in a link while it is down: what must arrive waits in the outbox, what is retained is
sent again after `Connected`, and what was asked for is asked for again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from edgekit_contract.topics import Kind

__all__ = ["Connected", "Disconnected", "Link", "LinkEvent", "Received", "TakenOver"]


@dataclass(frozen=True)
class Connected:
    """Subscribed, and ready to publish."""


@dataclass(frozen=True)
class Disconnected:
    """Not connected (any more), or an attempt has failed; the link tries again by itself."""

    reason: str
    retry_s: float


@dataclass(frozen=True)
class TakenOver(Disconnected):
    """The broker gave the session to another client with this device's identity."""


@dataclass(frozen=True)
class Received:
    kind: Kind
    payload: bytes
    correlation: bytes | None = None


LinkEvent: TypeAlias = Connected | Disconnected | Received


class Link(Protocol):
    """A connection that mends itself. Methods return at once and may be called at any time."""

    def start(self, deliver: Callable[[LinkEvent], None]) -> None:
        """Connect, and hand in every event, from whatever thread."""
        ...

    def publish(self, kind: Kind, payload: bytes, *, retain: bool = False) -> None:
        """Send; lost where the link is down."""
        ...

    def fetch(self, payload: bytes, correlation: bytes) -> None:
        """Ask the hub for a range; `correlation` comes back with the answer."""
        ...

    @property
    def backlog(self) -> int:
        """Messages that were published and that nobody has taken yet."""
        ...

    def stop(self, farewell: bytes) -> None:
        """Publish `farewell` as the retained status where connected, and disconnect."""
        ...
