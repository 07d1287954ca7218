"""The bundle's archive: a stored ZIP whose bytes follow from its entries alone.

Invariant: for given (name, data) pairs there is exactly one archive. Reading regenerates every
header and compares, so a changed header byte, a gap, a comment, a duplicate or a hidden entry is
rejected without a rule of its own. No two entries share a byte, so what is read is never more than
what was sent. Source: PKWARE APPNOTE 6.3.10, sections 4.3.7, 4.3.12, 4.3.16.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Final

import msgspec

from edgekit_contract import limits
from edgekit_contract.errors import BundleRejected, Reason

__all__ = [
    "Archive",
    "Entry",
    "archive_bytes",
    "open_archive",
    "open_archive_bytes",
    "write_archive",
]

_LOCAL: Final = struct.Struct("<4s5H3I2H")
_CENTRAL: Final = struct.Struct("<4s6H3I5H2I")
_END: Final = struct.Struct("<4s4H2IH")
_VERSION: Final = 20
_UTF8: Final = 0x0800
_DOS_TIME: Final = 0
_DOS_DATE: Final = 0x21
"""1980-01-01, the epoch of ZIP."""
_MODE: Final = 0o100644 << 16
_MADE_BY: Final = 3 << 8 | _VERSION
_COPY_BYTES: Final = 1 * limits.MIB
_MAX_U16: Final = 0xFFFF


class Entry(msgspec.Struct, frozen=True):
    name: str
    size: int
    crc32: int

    @property
    def local_header_bytes(self) -> int:
        return _LOCAL.size + len(self.name.encode())

    def local_header(self) -> bytes:
        name = self.name.encode()
        head = _LOCAL.pack(
            b"PK\3\4", _VERSION, _UTF8, 0, _DOS_TIME, _DOS_DATE, self.crc32,
            self.size, self.size, len(name), 0,
        )  # fmt: skip
        return head + name

    def central_header(self, offset: int) -> bytes:
        name = self.name.encode()
        head = _CENTRAL.pack(
            b"PK\1\2", _MADE_BY, _VERSION, _UTF8, 0, _DOS_TIME, _DOS_DATE, self.crc32,
            self.size, self.size, len(name), 0, 0, 0, 0, _MODE, offset,
        )  # fmt: skip
        return head + name


class _Layout(msgspec.Struct, frozen=True):
    header_offsets: tuple[int, ...]
    data_offsets: tuple[int, ...]
    tail: bytes
    """Central directory and end record."""
    tail_offset: int

    @property
    def size(self) -> int:
        return self.tail_offset + len(self.tail)


def _layout(entries: Sequence[Entry]) -> _Layout:
    headers, data, at = [], [], 0
    for entry in entries:
        headers.append(at)
        data.append(at + entry.local_header_bytes)
        at = data[-1] + entry.size
    if at > limits.MAX_BUNDLE_BYTES:
        raise BundleRejected(Reason.TOO_LARGE, f"{at} bytes, a bundle holds at most 4 GiB")
    if len(entries) > _MAX_U16 or any(len(e.name.encode()) > _MAX_U16 for e in entries):
        raise BundleRejected(Reason.TOO_LARGE, "more than 65535 entries, or bytes in a name")
    central = b"".join(
        entry.central_header(offset) for entry, offset in zip(entries, headers, strict=True)
    )
    end = _END.pack(b"PK\5\6", 0, 0, len(entries), len(entries), len(central), at, 0)
    layout = _Layout(tuple(headers), tuple(data), central + end, at)
    if layout.size > limits.MAX_BUNDLE_BYTES:
        raise BundleRejected(Reason.TOO_LARGE, f"{layout.size} bytes")
    return layout


def archive_bytes(sizes: Iterable[tuple[str, int]]) -> int:
    """Size in bytes of an archive of entries with these names and sizes.

    Errors: `BundleRejected` over `limits.MAX_BUNDLE_BYTES`.
    """
    return _layout([Entry(name, size, 0) for name, size in sizes]).size


def write_archive(out: BinaryIO, members: Sequence[tuple[str, Path | bytes]]) -> None:
    """Write the archive of `members` (name, data or the file that holds it), in their order.

    Errors: `BundleRejected` over `limits.MAX_BUNDLE_BYTES`, before anything is written;
    `RuntimeError` where a file changed meanwhile.
    """
    entries = []
    for name, source in members:
        crc = size = 0
        for piece in _pieces(source):
            crc = zlib.crc32(piece, crc)
            size += len(piece)
        entries.append(Entry(name, size, crc))
    layout = _layout(entries)
    for entry, (_, source) in zip(entries, members, strict=True):
        out.write(entry.local_header())
        crc = size = 0
        for piece in _pieces(source):
            crc = zlib.crc32(piece, crc)
            size += len(piece)
            out.write(piece)
        if (crc, size) != (entry.crc32, entry.size):
            raise RuntimeError(f"{entry.name} changed while it was packed")
    out.write(layout.tail)


def _pieces(source: Path | bytes) -> Iterator[bytes]:
    if isinstance(source, bytes):
        yield source
        return
    with source.open("rb") as stream:
        while piece := stream.read(_COPY_BYTES):
            yield piece


class Archive:
    """An archive whose every header is canonical. Its data are untrusted until hashed."""

    def __init__(
        self,
        title: str,
        opener: Callable[[], BinaryIO],
        entries: Sequence[Entry],
        layout: _Layout,
    ) -> None:
        self.title, self._open = title, opener
        self.entries = {entry.name: entry for entry in entries}
        self._offsets = dict(zip(self.entries, layout.data_offsets, strict=True))

    def pieces(self, name: str) -> Iterator[bytes]:
        """The data of an entry, `limits.BLOCK_BYTES` at a time; its CRC-32 is checked at the end.

        Errors: `BundleRejected`.
        """
        entry = self.entries[name]
        left, crc = entry.size, 0
        with self._open() as stream:
            stream.seek(self._offsets[name])
            while left:
                piece = stream.read(min(left, limits.BLOCK_BYTES))
                if not piece:
                    raise self._rejected(Reason.NOT_A_BUNDLE, f"{name} is cut short")
                left -= len(piece)
                crc = zlib.crc32(piece, crc)
                yield piece
        if crc != entry.crc32:
            raise self._rejected(Reason.DIGEST_MISMATCH, f"CRC-32 of {name}")

    def read(self, name: str, *, limit_bytes: int) -> bytes:
        """The whole of a small entry. Errors: `BundleRejected` where absent, larger or damaged."""
        entry = self.entries.get(name)
        if entry is None:
            raise self._rejected(Reason.MISSING_FILE, name)
        if entry.size > limit_bytes:
            raise self._rejected(Reason.TOO_LARGE, f"{name} of {entry.size} bytes")
        return b"".join(self.pieces(name))

    def _rejected(self, reason: Reason, detail: str) -> BundleRejected:
        return BundleRejected(reason, detail, bundle=self.title)


def open_archive(path: Path) -> Archive:
    """Read the directory of a bundle file and compare all headers with the canonical layout.

    Errors: `BundleRejected`; `OSError` where the file cannot be read.
    """
    return _parse(
        path.name,
        lambda: path.open("rb"),
        max_entries=limits.MAX_BUNDLE_FILES + 1,
        max_name_bytes=limits.MAX_PATH_BYTES,
    )


def open_archive_bytes(data: bytes, *, title: str, max_entries: int) -> Archive:
    """As `open_archive`, of an archive in memory."""
    return _parse(title, lambda: io.BytesIO(data), max_entries=max_entries, max_name_bytes=_MAX_U16)


def _parse(
    title: str, opener: Callable[[], BinaryIO], *, max_entries: int, max_name_bytes: int
) -> Archive:
    def rejected(reason: Reason, detail: str) -> BundleRejected:
        return BundleRejected(reason, detail, bundle=title)

    with opener() as stream:
        size = stream.seek(0, io.SEEK_END)
        if size > limits.MAX_BUNDLE_BYTES:
            raise rejected(Reason.TOO_LARGE, f"{size} bytes")
        stream.seek(max(0, size - _END.size))
        end = stream.read(_END.size)
        if len(end) < _END.size:
            raise rejected(Reason.NOT_A_BUNDLE, f"{size} bytes")
        magic, _, _, _, count, central_bytes, central_at, _ = _END.unpack(end)
        if magic != b"PK\5\6":
            raise rejected(Reason.NOT_A_BUNDLE, "no ZIP end record at the end of the file")
        if count > max_entries:
            raise rejected(Reason.TOO_LARGE, f"{count} entries")
        most = count * (_CENTRAL.size + max_name_bytes)
        if central_bytes > most or central_at + central_bytes + _END.size != size:
            raise rejected(Reason.NOT_CANONICAL, "central directory")
        stream.seek(central_at)
        entries = _parse_central(stream.read(central_bytes), count, title)
        if len({entry.name for entry in entries}) != count:
            raise rejected(Reason.NOT_CANONICAL, "a name twice")
        layout = _layout(entries)
        stream.seek(layout.tail_offset)
        if layout.size != size or stream.read(len(layout.tail)) != layout.tail:
            raise rejected(Reason.NOT_CANONICAL, "central directory")
        for entry, offset in zip(entries, layout.header_offsets, strict=True):
            header = entry.local_header()
            stream.seek(offset)
            if stream.read(len(header)) != header:
                raise rejected(Reason.NOT_CANONICAL, f"header of {entry.name}")
    return Archive(title, opener, entries, layout)


def _parse_central(central: bytes, count: int, bundle: str) -> list[Entry]:
    entries, at = [], 0
    for _ in range(count):
        head = central[at : at + _CENTRAL.size]
        if len(head) < _CENTRAL.size or not head.startswith(b"PK\1\2"):
            raise BundleRejected(Reason.NOT_CANONICAL, "central directory", bundle=bundle)
        fields = _CENTRAL.unpack(head)
        crc, size, name_bytes = fields[7], fields[8], fields[10]
        if any(fields[11:13]):  # else what follows would be read out of step
            raise BundleRejected(Reason.NOT_CANONICAL, "extra field or comment", bundle=bundle)
        at += _CENTRAL.size
        try:
            name = central[at : at + name_bytes].decode()
        except UnicodeDecodeError as error:
            raise BundleRejected(Reason.BAD_PATH, "not UTF-8", bundle=bundle) from error
        at += name_bytes
        entries.append(Entry(name, size, crc))
    return entries
