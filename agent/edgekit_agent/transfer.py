"""Which ranges of a resource to ask for next: pure, with the clock handed in.

Invariant: every byte is asked for until it is here; at most `window` requests are out. Answers may
be short, late, double or lost. A request counts as lost when nothing at all has come for a while
(a slow link is not a lossy one) or when so many later ones were answered that it must have been
dropped; each silence halves the window and doubles the wait. A hub that is busy, or answers
something else, is left alone for a while. Source: RFC 5681 sections 3.1 and 3.2.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from edgekit_contract import limits
from edgekit_contract.messages import Chunk, ChunkStatus

__all__ = ["WINDOW", "NotFound", "Piece", "Range", "Transfer"]

WINDOW: Final = 16
_OVERTAKEN: Final = 2 * WINDOW
"""A request is lost after as many later ones were answered."""
_BUSY_S: Final = 0.25
_MOST_BUSY_S: Final = 8.0
_SILENCE_DOUBLINGS: Final = 4


class NotFound(Exception):
    """The hub has no such resource."""


@dataclass(frozen=True, order=True)
class Range:
    offset: int
    length: int


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Bytes that were missing until now."""

    offset: int
    data: bytes


class Transfer:
    """The ranges of one resource that are still missing."""

    def __init__(
        self,
        ranges: Iterable[Range],
        *,
        now: float,
        silence_s: float,
        first_number: int = 0,
        window: int = WINDOW,
    ) -> None:
        self._todo: list[Range] = []
        self.add(ranges)
        self._out: dict[int, Range] = {}
        """Requests that may yet be answered, lost ones too, by number."""
        self._waiting: set[int] = set()
        """Requests that fill the window."""
        self.next_number = first_number
        self._silence_s, self._doublings = silence_s, 0
        self._window = self._most = window
        self._heard = now
        self._not_before = now
        self._busy = 0
        self.useful_at = now
        """When the last missing byte came."""
        self.total: int | None = None
        """Length of the resource, once the hub has said it."""

    def add(self, ranges: Iterable[Range]) -> None:
        """Want these, in requests of at most `limits.MAX_CHUNK_BYTES`."""
        for wanted in ranges:
            for piece in _requests(wanted):
                heapq.heappush(self._todo, piece)

    @property
    def done(self) -> bool:
        return not self._todo and not self._waiting

    def due(self, now: float) -> list[tuple[int, Range]]:
        """Requests to send now, by number."""
        if self._waiting and now - self._heard > self._silence_s * (1 << self._doublings):
            self._lose(self._waiting)
            self._doublings = min(self._doublings + 1, _SILENCE_DOUBLINGS)
            self._window = max(1, self._window // 2)
            self._heard = now
        out: list[tuple[int, Range]] = []
        if now < self._not_before:
            return out
        if not self._waiting:
            self._heard = now  # silence counts from the first request on
        while self._todo and len(self._waiting) < self._window:
            wanted = heapq.heappop(self._todo)
            self._out[self.next_number] = wanted
            self._waiting.add(self.next_number)
            out.append((self.next_number, wanted))
            self.next_number += 1
        return out

    def wait_s(self, now: float) -> float:
        """Seconds until `due` may have something new to say, if nothing comes before."""
        if self._todo and len(self._waiting) < self._window:
            return max(0.0, self._not_before - now)
        return max(0.0, self._heard + self._silence_s * (1 << self._doublings) - now)

    def receive(self, number: int, chunk: Chunk, now: float) -> Piece | None:
        """Take an answer; the bytes in it that were still missing, or None.

        Errors: `NotFound`.
        """
        asked = self._out.pop(number, None)
        if asked is None:
            return None  # an answer to nobody, or a second one
        self._heard, self._doublings = now, 0
        waiting = number in self._waiting
        self._waiting.discard(number)
        if not waiting:
            # asked for again since: this answer came late, so the other request is not needed
            if asked not in self._todo:
                return None
            self._todo.remove(asked)
            heapq.heapify(self._todo)
        if chunk.status is ChunkStatus.NOT_FOUND:
            raise NotFound
        data = chunk.data[: asked.length]
        if chunk.status is ChunkStatus.BUSY or not self._answers(chunk, asked, data):
            heapq.heappush(self._todo, asked)
            self._not_before = now + min(_MOST_BUSY_S, _BUSY_S * (1 << self._busy))
            self._busy = min(self._busy + 1, 16)
            self._window = max(1, self._window // 2)
            return None
        self.total = chunk.total
        self._busy = 0
        self._window = min(self._most, self._window + 1)
        self.useful_at = now
        end = min(asked.offset + asked.length, chunk.total)
        if asked.offset + len(data) < end:
            self.add([Range(asked.offset + len(data), end - asked.offset - len(data))])
        self._lose([old for old in self._waiting if old < number - _OVERTAKEN])
        return Piece(offset=asked.offset, data=data)

    def _answers(self, chunk: Chunk, asked: Range, data: bytes) -> bool:
        """Whether it is what was asked for, of the resource that it was part of before."""
        if self.total is not None and chunk.total != self.total:
            return False
        return chunk.offset == asked.offset and (bool(data) or asked.offset >= chunk.total)

    def _lose(self, numbers: Iterable[int]) -> None:
        for number in list(numbers):
            self._waiting.discard(number)
            heapq.heappush(self._todo, self._out[number])


def _requests(wanted: Range) -> Iterator[Range]:
    end = wanted.offset + wanted.length
    for offset in range(wanted.offset, end, limits.MAX_CHUNK_BYTES):
        yield Range(offset, min(limits.MAX_CHUNK_BYTES, end - offset))
