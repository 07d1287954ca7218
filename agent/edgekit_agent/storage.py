"""The one module of durable writes.

Invariant: after a power cut every path holds either what it held before a call or what the call
gave it, never a part: temporary file, fsync, rename, fsync of the directory. A call that returned
is on the medium. Sources: rename(2), fsync(2); Pillai et al., "All File Systems Are Not Created
Equal", OSDI 2014, section 3.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Final

__all__ = [
    "append",
    "copy_file",
    "create_directory",
    "free_bytes",
    "move",
    "read",
    "remove",
    "sync_directory",
    "sync_file",
    "write",
]

_COPY_BYTES: Final = 1 << 20
_PRIVATE: Final = 0o600


def read(path: Path, *, limit_bytes: int) -> bytes | None:
    """The bytes of a file, or None where there is none or it is longer than the limit."""
    try:
        with path.open("rb") as stream:
            data = stream.read(limit_bytes + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return data if len(data) <= limit_bytes else None


def write(path: Path, data: bytes, *, mode: int = _PRIVATE) -> None:
    """Replace the content of `path` at once. Errors: `OSError`, and then nothing changed."""
    temporary = path.with_name(f".{path.name}.new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    try:
        _write_all(descriptor, data)
        os.fsync(descriptor)
    except OSError:
        os.close(descriptor)
        temporary.unlink(missing_ok=True)
        raise
    os.close(descriptor)
    os.replace(temporary, path)  # noqa: PTH105 - the tests count the calls of this module's os
    sync_directory(path.parent)


def append(descriptor: int, data: bytes, *, durable: bool) -> None:
    """Append to an open file; with `durable` it is on the medium when the call returns."""
    _write_all(descriptor, data)
    if durable:
        os.fdatasync(descriptor)


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def copy_file(source: Path, target: Path) -> None:
    """Copy a file's bytes; `sync_file` makes it durable."""
    with source.open("rb") as reader, target.open("wb") as writer:
        shutil.copyfileobj(reader, writer, _COPY_BYTES)


def move(source: Path, target: Path) -> None:
    """Rename, durable on both sides. An existing file at `target` is replaced."""
    os.replace(source, target)  # noqa: PTH105
    sync_directory(target.parent)
    if source.parent != target.parent:
        sync_directory(source.parent)


def create_directory(path: Path) -> None:
    """Make a directory and what is missing above it."""
    if path.is_dir():
        return
    create_directory(path.parent)
    path.mkdir(mode=0o700, exist_ok=True)
    sync_directory(path.parent)


def remove(path: Path) -> None:
    """Remove a file or a whole directory, or nothing where there is nothing."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        try:
            os.unlink(path)  # noqa: PTH108
        except FileNotFoundError:
            return
    sync_directory(path.parent)


def sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def free_bytes(path: Path) -> int:
    """Bytes that this user may still write to the file system of `path`."""
    stat = os.statvfs(path)
    return stat.f_bavail * stat.f_frsize
