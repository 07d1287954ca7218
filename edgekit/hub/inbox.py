"""What has come from devices and is not yet on the disk; what may be acknowledged of it.

Invariants: an acknowledgement is made only of what a batch that was written holds. A gap holds it
back until `SETTLED_S` after the stream was first heard on this connection, which an acknowledgement
marks: a device sends again what was not acknowledged for `RESEND_S` (docs/wire.md), so what is
missing then was never sent. Memory is bounded by what comes between two batches.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from edgekit.hub.records import Batch, Heard, Kept
from edgekit.hub.sequence import Sequence
from edgekit_contract.messages import Ack, Event, Health

__all__ = ["Inbox"]

RESEND_S: Final = 60.0
SETTLED_S: Final = 1.5 * RESEND_S
STREAMS_PER_DEVICE: Final = 4
"""Births of a device's queue that are remembered; of clones, as many can be told apart."""


class _Stream:
    """One birth of a device's queue."""

    __slots__ = ("acknowledged", "due", "event", "health", "heard_at", "taken")

    def __init__(self, health: int = 0, event: int = 0) -> None:
        self.health, self.event = Sequence(health), Sequence(event)
        self.taken = self.acknowledged = (health, event)
        """Handed out in a batch; and written."""
        self.heard_at: float | None = None
        """When it was first heard on this connection."""
        self.due = False
        """Whether the device must be told where it stands, news or not."""

    def take(self, sequence: Sequence, seq: int, at: float) -> bool:
        """Whether a message is new. One that is not is acknowledged again: it was not known."""
        if self.heard_at is None:
            self.heard_at, self.due = at, True
        self.due |= seq <= sequence.stored
        return sequence.take(seq)

    def settle(self, now: float) -> None:
        if self.heard_at is not None and now - self.heard_at >= SETTLED_S:
            self.health.bridge()
            self.event.bridge()


class Inbox:
    """Collects words for the next batch. Instants are Unix seconds of the hub's clock."""

    def __init__(self, streams: Mapping[tuple[str, str], tuple[int, int]]) -> None:
        """`streams`: what was acknowledged before, the newest last."""
        self._streams = {key: _Stream(*upto) for key, upto in streams.items()}
        self._recent: dict[str, list[str]] = {}
        """Device to its streams, the newest last."""
        for device, stream in streams:
            self._recent.setdefault(device, []).append(stream)
        self._batch = Batch()

    def reconnected(self) -> None:
        """Messages may have been missed: gaps are waited for again."""
        for stream in self._streams.values():
            stream.heard_at = None

    def heard(self, device: str, at: float) -> Heard:
        """The device's entry of the next batch, to be filled in."""
        heard = self._batch.devices.setdefault(device, Heard(at=at))
        heard.at = at
        return heard

    def health(self, device: str, message: Health, body: bytes, at: float) -> None:
        stream = self._stream(device, message.stream)
        if stream.take(stream.health, message.seq, at):
            self._batch.health.append(Kept(device, message.stream, message.seq, at, body))

    def event(self, device: str, message: Event, body: bytes, at: float) -> None:
        stream = self._stream(device, message.stream)
        if stream.take(stream.event, message.seq, at):
            self._batch.events.append(Kept(device, message.stream, message.seq, at, body))

    def remark(self, kept: Kept) -> None:
        """Keep an event of the hub's own."""
        self._batch.events.append(kept)

    def take(self, now: float) -> tuple[Batch, dict[str, Ack]]:
        """The batch to write, and device to the acknowledgement to publish once it is written.

        One at a time: `written` comes before the next.
        """
        acks: dict[str, Ack] = {}
        for (device, name), stream in self._streams.items():
            stream.settle(now)
            upto = (stream.health.stored, stream.event.stored)
            if upto != stream.taken:
                stream.taken = upto
                self._batch.streams[device, name] = upto
            elif not stream.due:
                continue
            stream.due = False
            acks[device] = Ack(stream=name, health=upto[0], event=upto[1])
        batch, self._batch = self._batch, Batch()
        batch.at = now
        return batch, acks

    @property
    def size(self) -> int:
        """Messages that wait to be taken."""
        return len(self._batch.health) + len(self._batch.events)

    def written(self, batch: Batch) -> None:
        """A batch that was taken is on the disk."""
        for key, upto in batch.streams.items():
            if key in self._streams:
                self._streams[key].acknowledged = upto

    def acks(self) -> dict[str, Ack]:
        """Device to the newest acknowledgement."""
        found = {}
        for device, names in self._recent.items():
            name = names[-1]
            health, event = self._streams[device, name].acknowledged
            found[device] = Ack(stream=name, health=health, event=event)
        return found

    def _stream(self, device: str, name: str) -> _Stream:
        names = self._recent.setdefault(device, [])
        if (device, name) not in self._streams:
            self._streams[device, name] = _Stream()
        elif names[-1] != name:
            names.remove(name)
        if not names or names[-1] != name:
            names.append(name)
        if len(names) > STREAMS_PER_DEVICE:
            oldest = names.pop(0)
            del self._streams[device, oldest]
            self._batch.streams.pop((device, oldest), None)
            self._batch.dropped.append((device, oldest))
        return self._streams[device, name]
