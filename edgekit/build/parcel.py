"""A parcel: a value and files, as one archive that may lie in a cache or cross a network.

Invariant: what is unpacked is what was packed, by SHA-256 of each file and of the value; anything
else is a `DamagedParcel`. No name in a parcel becomes a path: files are unpacked by number.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final, Generic, TypeVar

import msgspec

from edgekit_contract import limits
from edgekit_contract.archive import Archive, open_archive, open_archive_bytes, write_archive
from edgekit_contract.errors import BundleRejected, Refused

__all__ = ["DamagedParcel", "Unpacked", "pack", "unpack"]

_HEAD: Final = "parcel.json"
_READ_BYTES: Final = limits.MIB
T = TypeVar("T")


class DamagedParcel(Refused):
    """The bytes are not those that were packed."""

    def __init__(self, what: str) -> None:
        super().__init__(f"what was built came back damaged ({what}): build again.")


class _Head(msgspec.Struct, frozen=True):
    value: msgspec.Raw
    value_sha256: str
    files: dict[str, str]
    """SHA-256 by name."""


@dataclass(frozen=True, kw_only=True)
class Unpacked(Generic[T]):
    value: T
    files: Mapping[str, Path]


def pack(out: BinaryIO, value: object, files: Mapping[str, Path | bytes]) -> None:
    """Write the parcel of a value (Struct, dataclass, dict) and files."""
    told = msgspec.json.encode(value, order="deterministic")
    head = _Head(
        value=msgspec.Raw(told),
        value_sha256=hashlib.sha256(told).hexdigest(),
        files={name: _sha256(_pieces(source)) for name, source in files.items()},
    )
    write_archive(out, [(_HEAD, msgspec.json.encode(head)), *files.items()])


def unpack(parcel: Path | bytes, kind: type[T], *, into: Path) -> Unpacked[T]:
    """Open a parcel of a value of this kind; its files go to new files in the directory `into`.

    Errors: `DamagedParcel`; `OSError`.
    """
    try:
        archive = (
            open_archive(parcel)
            if isinstance(parcel, Path)
            else open_archive_bytes(
                parcel, title="a parcel", max_entries=limits.MAX_BUNDLE_FILES + 1
            )
        )
        words = archive.read(_HEAD, limit_bytes=3 * limits.MAX_ENVELOPE_BYTES)
        head = msgspec.json.decode(words, type=_Head)
        value = bytes(head.value)
        if hashlib.sha256(value).hexdigest() != head.value_sha256:
            raise DamagedParcel("its value")
        if archive.entries.keys() != {_HEAD, *head.files}:
            raise DamagedParcel("a file too many or too few")
        told = msgspec.json.decode(value, type=kind)
        into.mkdir(parents=True, exist_ok=True)
        places = {name: into / str(index) for index, name in enumerate(head.files)}
        for name, path in places.items():
            _extract(archive, name, path, sha256=head.files[name])
    except (BundleRejected, msgspec.DecodeError) as error:
        raise DamagedParcel(str(error).rstrip(".")) from error
    return Unpacked(value=told, files=places)


def _extract(archive: Archive, name: str, path: Path, *, sha256: str) -> None:
    found = hashlib.sha256()
    with path.open("xb") as stream:
        for piece in archive.pieces(name):
            found.update(piece)
            stream.write(piece)
    if found.hexdigest() != sha256:
        raise DamagedParcel(name)


def _sha256(pieces: Iterator[bytes]) -> str:
    found = hashlib.sha256()
    for piece in pieces:
        found.update(piece)
    return found.hexdigest()


def _pieces(source: Path | bytes) -> Iterator[bytes]:
    if isinstance(source, bytes):
        yield source
        return
    with source.open("rb") as stream:
        while piece := stream.read(_READ_BYTES):
            yield piece
