"""First looks at a stranger's file: what it begins with, and what a ZIP says that it holds.

Invariant: nothing is unpacked or unpickled; a few KiB and a ZIP's directory are all that is read.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from edgekit_contract import limits
from edgekit_contract.errors import Refused

__all__ = ["HEAD_BYTES", "entry", "head", "zip_names"]

HEAD_BYTES: Final = 4096
_ZIP_MAGIC: Final = b"PK\x03\x04"
_MAX_ENTRIES: Final = 1 << 16
_DAMAGED: Final = (zipfile.BadZipFile, ValueError, EOFError, NotImplementedError, RuntimeError)


def head(path: Path) -> bytes:
    """Its first bytes; of a directory none. Errors: `OSError`."""
    if not path.is_file():
        return b""
    with path.open("rb") as stream:
        return stream.read(HEAD_BYTES)


def zip_names(path: Path) -> Sequence[str]:
    """Entries of a ZIP; none of anything else. Errors: `Refused` for a damaged one, `OSError`."""
    if not head(path).startswith(_ZIP_MAGIC):
        return ()
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except _DAMAGED as error:
        raise Refused(
            f"{path.name} is a ZIP archive that is cut short or damaged ({error}): "
            "export or download it again."
        ) from error
    if entries and min(entry.header_offset for entry in entries) > 0:
        raise Refused(
            f"{path.name} is a ZIP archive that is cut short or damaged (its directory is that of "
            "another one inside): export or download it again."
        )
    unpacked = sum(entry.file_size for entry in entries)
    if len(entries) > _MAX_ENTRIES or unpacked > limits.MAX_BUNDLE_BYTES:
        raise Refused(
            f"{path.name} unpacks to {len(entries)} files of {unpacked >> 20} MiB, a bundle holds "
            "at most 4 GiB: choose a smaller model."
        )
    return [entry.filename for entry in entries]


def entry(path: Path, name: str, *, limit_bytes: int) -> bytes:
    """The start of an entry of a ZIP. Errors: `Refused` where it is damaged, `OSError`."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open(name) as stream:
            return stream.read(limit_bytes)
    except (*_DAMAGED, KeyError) as error:
        raise Refused(
            f"{path.name} is a ZIP archive whose entry {name[:100]!r} is damaged ({error}): "
            "export or download it again."
        ) from error
