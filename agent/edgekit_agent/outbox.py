"""Health and events that the hub has not acknowledged: append-only files, bounded in bytes.

Invariants: a sequence number is used once in its stream, also after a power cut: a segment owns the
numbers of all the records it may hold, and the first start after a boot begins a new one, beyond
whatever the cut has taken; a medium that refuses it is asked again before each message. Otherwise
numbers have no gaps. What is acknowledged is removed; what does not fit any more is removed oldest
first. Messages are stored without stream and number, so
that a new stream (after a takeover: somebody else may count in the old one) needs no rewriting.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from edgekit_agent import storage
from edgekit_contract.messages import Ack, Event, Health, encode
from edgekit_contract.topics import Kind

__all__ = ["MAX_QUEUE_BYTES", "Outbox"]

MAX_QUEUE_BYTES: Final = 4 << 20
"""Of health and of events each: days of health at one message in 30 s."""
_SEGMENT_RECORDS: Final = 1000
_SEGMENT_BYTES: Final = MAX_QUEUE_BYTES // 8
_SEGMENT: Final = re.compile(r"(health|event)-([0-9]{16})\.jsonl")
_KINDS: Final = {Kind.HEALTH: Health, Kind.EVENT: Event}


@dataclass
class _Segment:
    """One file, named by the sequence number of its first record."""

    path: Path
    first: int
    count: int = 0
    size_bytes: int = 0

    @property
    def last(self) -> int:
        return self.first + self.count - 1

    def beyond(self, sequence: int) -> int:
        """How many of its records have a higher number."""
        return max(0, self.last - max(sequence, self.first - 1))


@dataclass
class _Queue:
    kind: Kind
    directory: Path
    segments: deque[_Segment] = field(default_factory=deque)
    descriptor: int = -1
    first: int = 1
    """Number that the next segment begins with, until it is open."""
    acknowledged: int = 0
    sent: int = 0
    dropped: int = 0
    """Messages that were given up for lack of space."""

    def load(self, *, same_boot: bool) -> None:
        """See what is there; `begin` makes it ready for more."""
        for path in sorted(self.directory.iterdir()):
            match = _SEGMENT.fullmatch(path.name)
            if match and match[1] == self.kind.value:
                data = path.read_bytes()
                # a last line without an end was cut: it was never complete
                count = min(data.count(b"\n"), _SEGMENT_RECORDS)
                self.segments.append(_Segment(path, int(match[2]), count, len(data)))
        if self.segments:
            last = self.segments[-1]
            self.first = last.last + 1 if same_boot else last.first + _SEGMENT_RECORDS
            self.sent = self.acknowledged = self.segments[0].first - 1

    def begin(self) -> None:
        """Open a segment, once after each start. Errors: `OSError`, and then again."""
        if self.descriptor < 0:
            self._begin(self.first)

    def _begin(self, first: int) -> None:
        """Open the segment of `first`, which exists where it was begun and stayed empty."""
        path = self.directory / f"{self.kind.value}-{first:016}.jsonl"
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
        try:
            storage.sync_directory(self.directory)
        except OSError:
            os.close(descriptor)
            raise
        if self.descriptor >= 0:
            os.close(self.descriptor)
        self.descriptor = descriptor
        if self.segments and self.segments[-1].first == first:
            self.segments.pop()
        self.segments.append(_Segment(path, first))
        for segment in [s for s in self.segments if not s.count and s.first != first]:
            self.segments.remove(segment)
            storage.remove(segment.path)

    def append(self, line: bytes, *, durable: bool) -> None:
        segment = self.segments[-1]
        if segment.count >= _SEGMENT_RECORDS or segment.size_bytes >= _SEGMENT_BYTES:
            self._begin(segment.last + 1)
            segment = self.segments[-1]
        try:
            storage.append(self.descriptor, line, durable=durable)
        except OSError:
            os.ftruncate(self.descriptor, segment.size_bytes)  # the next line begins a line
            raise
        segment.count += 1
        segment.size_bytes += len(line)
        while sum(s.size_bytes for s in self.segments) > MAX_QUEUE_BYTES:
            self.dropped += self.segments[0].beyond(self.acknowledged)
            self._drop_first()

    def acknowledge(self, sequence: int) -> None:
        if not self.segments:
            return
        sequence = min(sequence, self.segments[-1].last)  # what comes next is nobody's yet
        self.acknowledged = max(self.acknowledged, sequence)
        self.sent = max(self.sent, sequence)
        while len(self.segments) > 1 and self.segments[0].last <= self.acknowledged:
            self._drop_first()

    def _drop_first(self) -> None:
        storage.remove(self.segments.popleft().path)

    def unsent(self, limit: int) -> Iterator[tuple[int, bytes]]:
        """The next records to send, by number."""
        for segment in list(self.segments):
            if limit <= 0:
                return
            if segment.last <= self.sent or not segment.count:
                continue
            lines = segment.path.read_bytes().split(b"\n")
            skip = max(0, self.sent + 1 - segment.first)
            for position, line in enumerate(lines[skip : segment.count][:limit], skip):
                limit -= 1
                yield segment.first + position, line

    @property
    def pending(self) -> bool:
        return any(segment.beyond(self.sent) for segment in self.segments)

    @property
    def unacknowledged(self) -> int:
        return sum(segment.beyond(self.acknowledged) for segment in self.segments)


class Outbox:
    """The directory `outbox/`."""

    def __init__(self, directory: Path, *, boot: str) -> None:
        """`boot`: another one after each start of the machine; what was not synced is lost then."""
        storage.create_directory(directory)
        self._stream_path, self._boot = directory / "stream", boot
        written = storage.read(self._stream_path, limit_bytes=256) or b""
        stream, _, last_boot = written.decode("ascii", "replace").partition("\n")
        self.stream = stream or secrets.token_hex(8)
        self._queues = {kind: _Queue(kind, directory) for kind in _KINDS}
        for queue in self._queues.values():
            queue.load(same_boot=last_boot == boot)
        self._noted = bool(stream) and last_boot == boot
        """Whether the medium knows stream and boot: not before it has the segments of this boot."""
        with contextlib.suppress(OSError):  # a device with a full disk serves all the same
            self._begin()

    def _begin(self) -> None:
        for queue in self._queues.values():
            queue.begin()
        if not self._noted:
            self._write_stream()

    def renew_stream(self) -> None:
        """Count in a stream of our own from here on."""
        self.stream, self._noted = secrets.token_hex(8), False
        self._begin()

    def _write_stream(self) -> None:
        storage.write(self._stream_path, f"{self.stream}\n{self._boot}".encode())
        self._noted = True

    def put(self, message: Health | Event) -> None:
        """Keep a message until it is acknowledged; its stream and number are given when sent.

        Events are on the medium at once; health may lose its last seconds in a power cut, which
        spares the flash. Errors: `OSError`, `MessageRejected`.
        """
        bare = msgspec.structs.replace(message, stream=self.stream, seq=0)
        kind = Kind.EVENT if isinstance(message, Event) else Kind.HEALTH
        self._begin()
        self._queues[kind].append(encode(bare) + b"\n", durable=kind is Kind.EVENT)

    def take(self, limit: int) -> list[tuple[Kind, bytes]]:
        """At most `limit` messages to publish now, events first; they count as sent. However many
        events there are, a fourth of `limit` is for health."""
        out: list[tuple[Kind, bytes]] = []
        kept = limit // 4 if self._queues[Kind.HEALTH].pending else 0
        for kind, most in ((Kind.EVENT, limit - kept), (Kind.HEALTH, limit)):
            queue = self._queues[kind]
            for sequence, line in list(queue.unsent(most - len(out))):
                queue.sent = sequence
                try:
                    message = msgspec.json.decode(line, type=_KINDS[kind])
                except msgspec.DecodeError:
                    continue  # a line that the medium lost
                numbered = msgspec.structs.replace(message, stream=self.stream, seq=sequence)
                out.append((kind, encode(numbered)))
        return out

    def resend(self) -> None:
        """Everything that is not acknowledged counts as unsent again."""
        for queue in self._queues.values():
            queue.sent = queue.acknowledged

    def acknowledge(self, ack: Ack) -> None:
        """Forget what the hub has stored. An ack for another stream says nothing about ours."""
        if ack.stream == self.stream:
            self._queues[Kind.HEALTH].acknowledge(ack.health)
            self._queues[Kind.EVENT].acknowledge(ack.event)

    @property
    def pending(self) -> bool:
        """Whether `take` has something."""
        return any(queue.pending for queue in self._queues.values())

    @property
    def unacknowledged(self) -> int:
        """Messages that the hub has not said to have stored."""
        return sum(queue.unacknowledged for queue in self._queues.values())

    @property
    def dropped(self) -> int:
        return sum(queue.dropped for queue in self._queues.values())
