"""Asking for ranges over a link that loses, doubles, delays and shortens what it carries."""

from __future__ import annotations

import heapq
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit_agent.transfer import WINDOW, NotFound, Range, Transfer
from edgekit_contract.limits import MAX_CHUNK_BYTES
from edgekit_contract.messages import Chunk, ChunkStatus


class Line:
    """A simulated link and hub with a clock of its own."""

    def __init__(self, data: bytes, rng: random.Random, *, loss: float, busy: float) -> None:
        self.data, self.rng, self.loss, self.busy = data, rng, loss, busy
        self.now = 0.0
        self.requests = 0
        self.asked_bytes = 0
        self._on_the_way: list[tuple[float, int, int, Chunk]] = []
        self._order = 0

    def ask(self, number: int, wanted: Range) -> None:
        self.requests += 1
        self.asked_bytes += wanted.length
        draw = self.rng.random()
        if draw < self.loss:
            return
        copies = 2 if self.rng.random() < 0.1 else 1
        for _ in range(copies):
            if draw < self.loss + self.busy:
                chunk = Chunk(status=ChunkStatus.BUSY)
            else:
                length = wanted.length
                if self.rng.random() < 0.2:
                    length = self.rng.randint(1, wanted.length)
                body = self.data[wanted.offset : wanted.offset + length]
                chunk = Chunk(
                    status=ChunkStatus.OK, offset=wanted.offset, total=len(self.data), data=body
                )
            self._order += 1
            at = self.now + 0.01 + self.rng.random()
            heapq.heappush(self._on_the_way, (at, self._order, number, chunk))

    def next(self, wait_s: float) -> tuple[int, Chunk] | None:
        """What arrives within `wait_s`; the clock goes on."""
        if self._on_the_way and self._on_the_way[0][0] <= self.now + wait_s:
            at, _, number, chunk = heapq.heappop(self._on_the_way)
            self.now = max(self.now, at)
            return number, chunk
        self.now += max(wait_s, 0.001)
        return None


def run(line: Line, transfer: Transfer, size: int) -> bytes:
    body = bytearray(size)
    seen = [0] * size
    turns = 0
    while not transfer.done:
        turns += 1
        assert turns < 200_000
        out = transfer.due(line.now)
        for number, wanted in out:
            line.ask(number, wanted)
        assert len(transfer._waiting) <= WINDOW
        arrived = line.next(transfer.wait_s(line.now))
        if arrived is None:
            continue
        piece = transfer.receive(*arrived, line.now)
        if piece is not None:
            body[piece.offset : piece.offset + len(piece.data)] = piece.data
            for at in range(piece.offset, piece.offset + len(piece.data), 997):
                seen[at] += 1
    assert max(seen, default=0) <= 1, "a byte was given out twice"
    return bytes(body)


@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(1, 40 * MAX_CHUNK_BYTES),
    loss=st.floats(0, 0.5),
    busy=st.floats(0, 0.3),
    seed=st.integers(0, 2**32),
)
def test_every_byte_arrives_whatever_the_link_does(
    size: int, loss: float, busy: float, seed: int
) -> None:
    data = random.Random(seed).randbytes(size)
    line = Line(data, random.Random(seed + 1), loss=loss, busy=busy)
    transfer = Transfer([Range(0, size)], now=0.0, silence_s=5.0)
    assert run(line, transfer, size) == data


def test_a_sound_link_is_asked_for_each_byte_once() -> None:
    size = 100 * MAX_CHUNK_BYTES + 17
    line = Line(bytes(size), random.Random(1), loss=0, busy=0)
    line.rng.random = lambda: 0.5  # type: ignore[method-assign]
    run(line, Transfer([Range(0, size)], now=0.0, silence_s=5.0), size)
    assert line.asked_bytes == size
    assert line.requests == 101


def test_a_slow_link_is_not_taken_for_a_lossy_one() -> None:
    """64 KiB take longer than the silence, yet answers keep coming: nothing is asked for twice."""
    transfer = Transfer([Range(0, 32 * MAX_CHUNK_BYTES)], now=0.0, silence_s=5.0)
    data, now, asked = bytes(MAX_CHUNK_BYTES), 0.0, 0
    queue: list[tuple[int, Range]] = []
    while not transfer.done:
        out = transfer.due(now)
        asked += len(out)
        queue += out
        now += 4.0
        number, wanted = queue.pop(0)
        chunk = Chunk(
            status=ChunkStatus.OK, offset=wanted.offset, total=32 * MAX_CHUNK_BYTES, data=data
        )
        transfer.receive(number, chunk, now)
    assert asked == 32


def test_silence_halves_the_window_and_doubles_the_wait() -> None:
    transfer = Transfer([Range(0, 64 * MAX_CHUNK_BYTES)], now=0.0, silence_s=5.0)
    assert len(transfer.due(0.0)) == 16
    assert transfer.wait_s(0.0) == 5.0
    assert len(transfer.due(5.1)) == 8
    assert transfer.wait_s(5.1) == pytest.approx(10.0)
    assert transfer.due(10.0) == []
    assert len(transfer.due(15.2)) == 4


def test_a_busy_hub_is_left_alone_for_a_while() -> None:
    transfer = Transfer([Range(0, 4 * MAX_CHUNK_BYTES)], now=0.0, silence_s=5.0)
    numbers = [number for number, _ in transfer.due(0.0)]
    for number in numbers:
        transfer.receive(number, Chunk(status=ChunkStatus.BUSY), 0.1)
    assert transfer.due(0.1) == []
    assert transfer.wait_s(0.1) > 0
    assert transfer.due(0.1 + transfer.wait_s(0.1))


def test_what_is_not_there_is_said() -> None:
    transfer = Transfer([Range(0, 10)], now=0.0, silence_s=5.0)
    ((number, _),) = transfer.due(0.0)
    with pytest.raises(NotFound):
        transfer.receive(number, Chunk(status=ChunkStatus.NOT_FOUND), 0.1)


def test_an_answer_for_another_range_is_not_believed() -> None:
    transfer = Transfer([Range(0, 10)], now=0.0, silence_s=5.0)
    ((number, _),) = transfer.due(0.0)
    chunk = Chunk(status=ChunkStatus.OK, offset=5, total=20, data=b"x" * 10)
    assert transfer.receive(number, chunk, 0.1) is None
    assert transfer.due(0.1) == []
    assert transfer.due(0.1 + transfer.wait_s(0.1))


def test_a_total_that_changes_is_not_believed() -> None:
    """Else a later answer without data could say that there is no more to come."""
    transfer = Transfer([Range(0, 2 * MAX_CHUNK_BYTES)], now=0.0, silence_s=5.0)
    (first, _), (second, wanted) = transfer.due(0.0)
    total, data = 2 * MAX_CHUNK_BYTES, bytes(MAX_CHUNK_BYTES)
    assert transfer.receive(first, Chunk(status=ChunkStatus.OK, total=total, data=data), 0.1)
    short = Chunk(status=ChunkStatus.OK, offset=wanted.offset, total=wanted.offset)
    assert transfer.receive(second, short, 0.2) is None
    assert not transfer.done
    assert [again for _, again in transfer.due(1.0)] == [wanted]
