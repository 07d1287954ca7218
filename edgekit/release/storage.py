"""Durable writes of the host: temp file, fsync, rename, fsync directory.

Invariant: a reader, also one after a power loss, sees a file's old bytes or its new ones.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, Final

__all__ = [
    "TEMPORARY_PREFIX",
    "locked",
    "sync_directory",
    "write_file",
    "write_pieces",
    "write_temporary",
]

TEMPORARY_PREFIX: Final = ".new-"
"""Names that begin so are unfinished; nobody reads them and anybody may delete them."""


def write_file(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Put `data` at `path`, in place of what is there. Errors: `OSError`."""
    write_pieces(path, [data], mode=mode)


def write_pieces(path: Path, pieces: Iterable[bytes], *, mode: int = 0o644) -> None:
    """Put `pieces` at `path`; where their iterator raises, `path` stays as it was."""
    temporary = write_temporary(path, lambda stream: stream.writelines(pieces), mode=mode)
    try:
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def write_temporary(path: Path, fill: Callable[[BinaryIO], object], *, mode: int = 0o644) -> Path:
    """Make a file beside `path` that can be renamed to it, durable but for its name.

    Errors: `OSError`, and what `fill` raises; nothing is left then.
    """
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as stream:
            os.fchmod(descriptor, mode)
            fill(stream)
            stream.flush()
            os.fsync(descriptor)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # what a full disk does not say
        raise
    return temporary


def sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold the advisory lock of the file `path`, made where absent; ends with the process.

    Errors: `BlockingIOError` where `wait` is false and another process holds it.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(descriptor)
