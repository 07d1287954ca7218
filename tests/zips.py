"""A ZIP writer that can do what a bundle's may not: to make what readers must refuse.

Without options its bytes are those of `edgekit_contract.archive`, so a test changes one thing.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Deviation:
    """What is done otherwise, to every entry but the first (the envelope)."""

    deflate: bool = False
    data_descriptor: bool = False
    zip64: bool = False
    mode: int = 0o100644
    dos_time: int = 0
    version: int = 20
    local_extra: bytes = b""
    central_extra: bytes = b""
    entry_comment: bytes = b""
    archive_comment: bytes = b""
    gap: bytes = b""
    """Bytes between entries that belong to none."""
    prefix: bytes = b""
    """Bytes before the first entry, with the offsets set right."""
    trailing: bytes = b""
    local_name: str | None = None
    """Another name in the local header than in the central directory."""
    disk: int = 0


NONE = Deviation()


def zip_bytes(members: Sequence[tuple[str, bytes]], how: Deviation = NONE) -> bytes:
    """The ZIP of `members`, with one thing done otherwise."""
    body, central = bytearray(how.prefix), bytearray()
    for index, (name, data) in enumerate(members):
        do = how if index else NONE
        offset = len(body)
        local, entry, payload = _entry(name, data, offset, do)
        body += local + payload + do.gap
        central += entry
    end = struct.pack(
        "<4s4H2IH", b"PK\5\6", how.disk, how.disk, len(members), len(members), len(central),
        len(body), len(how.archive_comment),
    )  # fmt: skip
    return bytes(body + central + end + how.archive_comment + how.trailing)


def _entry(name: str, data: bytes, offset: int, do: Deviation) -> tuple[bytes, bytes, bytes]:
    raw, crc, method = data, zlib.crc32(data), 0
    if do.deflate:
        deflater = zlib.compressobj(9, zlib.DEFLATED, -15)
        raw, method = deflater.compress(data) + deflater.flush(), 8
    flags = 0x0800 | (0x0008 if do.data_descriptor else 0)
    sizes = (len(raw), len(data))
    tail = struct.pack("<4s3I", b"PK\7\10", crc, *sizes) if do.data_descriptor else b""
    local_extra, central_extra = do.local_extra, do.central_extra
    shown = sizes
    if do.zip64:
        extra = struct.pack("<2H2Q", 1, 16, len(data), len(raw))
        local_extra, central_extra, shown = extra, extra, (0xFFFFFFFF, 0xFFFFFFFF)
    in_local = (0, 0, 0) if do.data_descriptor else (crc, *shown)
    local_name = (do.local_name or name).encode()
    local = struct.pack(
        "<4s5H3I2H", b"PK\3\4", do.version, flags, method, do.dos_time, 0x21, *in_local,
        len(local_name), len(local_extra),
    )  # fmt: skip
    central = struct.pack(
        "<4s6H3I5H2I", b"PK\1\2", 3 << 8 | 20, do.version, flags, method, do.dos_time, 0x21, crc,
        *shown, len(name.encode()), len(central_extra), len(do.entry_comment), 0, 0,
        do.mode << 16, offset,
    )  # fmt: skip
    return (
        local + local_name + local_extra,
        central + name.encode() + central_extra + do.entry_comment,
        raw + tail,
    )
