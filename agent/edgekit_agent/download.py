"""Getting resources from the hub through the daemon: metadata whole, files by verified blocks.

Invariant: only blocks whose SHA-256 the manifest lists reach the disk. What is there is hashed
again before it is trusted, and that is the resume: no bitmap can lie about the medium.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Final

from edgekit_agent import storage
from edgekit_agent.clock import Clock
from edgekit_agent.control import BlobPacket, Channel, Request, ToUpdater
from edgekit_agent.transfer import WINDOW, NotFound, Piece, Range, Transfer
from edgekit_contract import limits
from edgekit_contract.errors import MessageRejected
from edgekit_contract.manifest import FileEntry
from edgekit_contract.messages import blob_resource, decode_chunk

__all__ = ["Hub", "HubSilent", "NotFound", "missing_blocks"]

_CORRUPT_BLOCKS: Final = 3
"""Wrong answers for one block before the download gives up for now."""
_SYNC_EVERY_BLOCKS: Final = 16


class HubSilent(Exception):
    """Nothing useful came from the hub for too long, or only wrong bytes: try again later."""


class Hub:
    """The hub, as the updater sees it: ranges asked for and answered over the daemon's channel."""

    def __init__(
        self,
        channel: Channel[ToUpdater],
        clock: Clock,
        *,
        request_timeout_s: float,
        stall_timeout_s: float,
    ) -> None:
        self._channel, self._clock = channel, clock
        self._request_timeout_s, self._stall_timeout_s = request_timeout_s, stall_timeout_s
        self._next_number = 0

    def read(self, resource: str, *, limit_bytes: int) -> bytes:
        """The whole of a small resource.

        Errors: `NotFound`, `HubSilent` (also where it is longer than the limit), `PeerGone`.
        """
        first = Range(0, min(limits.MAX_CHUNK_BYTES, limit_bytes + 1))
        transfer = self._begin([first])
        body = bytearray()
        sized = False
        for piece in self._pieces(resource, transfer):
            total = transfer.total or 0
            if total > limit_bytes:
                raise HubSilent(f"{resource} has {total} bytes, at most {limit_bytes} are read")
            if not sized:
                sized = True
                body.extend(bytes(total))
                transfer.add([Range(first.length, total - first.length)])
            if piece.offset + len(piece.data) > len(body):
                raise HubSilent(f"{resource} changed while it was read")
            body[piece.offset : piece.offset + len(piece.data)] = piece.data
        return bytes(body)

    def download(self, entry: FileEntry, path: Path, on_bytes: Callable[[int], None]) -> None:
        """Complete the file at `path`: every block of it verified, and on the medium.

        `on_bytes` hears of each verified block that came.
        Errors: `NotFound`, `HubSilent`, `PeerGone`, `OSError`.
        """
        wanted = missing_blocks(entry, path)
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
        with os.fdopen(os.open(path, flags, 0o600), "r+b") as stream:
            stream.truncate(entry.size)
            if wanted:
                self._fill(entry, stream, wanted, on_bytes)
            os.fsync(stream.fileno())
        storage.sync_directory(path.parent)

    def _fill(
        self,
        entry: FileEntry,
        stream: BinaryIO,
        wanted: list[int],
        on_bytes: Callable[[int], None],
    ) -> None:
        blocks = {index: _Block(_block_range(entry, index)) for index in wanted}
        transfer = self._begin(block.range for block in blocks.values())
        resource, written = blob_resource(entry.sha256), 0
        for piece in self._pieces(resource, transfer):
            if transfer.total != entry.size:
                raise HubSilent(
                    f"the hub's {resource} has {transfer.total} bytes, not {entry.size}"
                )
            index = piece.offset // limits.BLOCK_BYTES
            block = blocks[index]
            block.put(piece)
            if not block.full:
                continue
            if hashlib.sha256(block.data).hexdigest() != entry.blocks[index]:
                block.reset()
                if block.failures >= _CORRUPT_BLOCKS:
                    raise HubSilent(f"the hub sends wrong bytes for {entry.path}")
                transfer.add([block.range])
                continue
            stream.seek(block.range.offset)
            stream.write(block.data)
            del blocks[index]
            written += 1
            if written % _SYNC_EVERY_BLOCKS == 0:
                stream.flush()
                os.fdatasync(stream.fileno())
            on_bytes(block.range.length)
        stream.flush()
        if blocks:
            raise HubSilent(f"the hub left out {len(blocks)} blocks of {entry.path}")

    def _begin(self, ranges: Iterator[Range] | list[Range]) -> Transfer:
        return Transfer(
            ranges,
            now=self._clock.monotonic(),
            silence_s=self._request_timeout_s,
            first_number=self._next_number,
            window=WINDOW,
        )

    def _pieces(self, resource: str, transfer: Transfer) -> Iterator[Piece]:
        while not transfer.done:
            now = self._clock.monotonic()
            if now - transfer.useful_at > self._stall_timeout_s:
                raise HubSilent(
                    f"the hub sent nothing of {resource} for {now - transfer.useful_at:.0f} s"
                )
            for number, wanted in transfer.due(now):
                self._channel.send(
                    Request(
                        number=number,
                        resource=resource,
                        offset=wanted.offset,
                        length=wanted.length,
                    )
                )
                self._next_number = number + 1
            wait_s = min(transfer.wait_s(now), self._stall_timeout_s)
            packet = self._channel.receive(max(wait_s, 0.01))
            if not isinstance(packet, BlobPacket):
                continue  # nothing came in time; the daemon says nothing else meanwhile
            try:
                chunk = decode_chunk(packet.payload)
            except MessageRejected:
                continue  # asked for again when it stays away
            piece = transfer.receive(packet.number, chunk, self._clock.monotonic())
            if piece is not None:
                yield piece


class _Block:
    """A block on its way: kept in memory until it is whole and right."""

    def __init__(self, range_: Range) -> None:
        self.range = range_
        self.failures = 0
        self.data = bytearray()
        self._missing = range_.length

    def put(self, piece: Piece) -> None:
        if not self.data:
            self.data = bytearray(self.range.length)
        at = piece.offset - self.range.offset
        self.data[at : at + len(piece.data)] = piece.data
        self._missing -= len(piece.data)

    @property
    def full(self) -> bool:
        return self._missing == 0

    def reset(self) -> None:
        self.failures += 1
        self.data = bytearray()
        self._missing = self.range.length


def _block_range(entry: FileEntry, index: int) -> Range:
    offset = index * limits.BLOCK_BYTES
    return Range(offset, min(limits.BLOCK_BYTES, entry.size - offset))


def missing_blocks(entry: FileEntry, path: Path) -> list[int]:
    """Indices of the blocks of `entry` that the file at `path` does not hold."""
    missing = []
    try:
        stream = path.open("rb")
    except FileNotFoundError:
        return list(range(len(entry.blocks)))
    with stream:
        for index, digest in enumerate(entry.blocks):
            block = stream.read(_block_range(entry, index).length)
            if hashlib.sha256(block).hexdigest() != digest:
                missing.append(index)
    return missing
