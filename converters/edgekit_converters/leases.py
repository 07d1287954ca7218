"""Temporary directories that outlive whoever was killed: the next one to make such removes them.

A directory is its owner's while that holds a lock on a file in it, which ends with the process,
however that ends (flock(2)). The file is the last to go, so that a removal that is itself cut short
goes on next time.

Invariant: nothing is removed whose owner lives, nor what has no such file. Where a file system has
no locks, nothing that was left is removed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from pathlib import Path
from typing import Final

__all__ = ["Leased"]

_LEASE: Final = ".lease"


class Leased:
    """A new directory for temporary files."""

    def __init__(self, prefix: str) -> None:
        """Removes those of the same prefix first whose owners are gone. Errors: `OSError`."""
        for left in Path(tempfile.gettempdir()).glob(f"{prefix}*/{_LEASE}"):
            with contextlib.suppress(OSError):
                lock = _locked(left)
                _remove(left.parent)
                os.close(lock)
        self.path = Path(tempfile.mkdtemp(prefix=prefix))
        self._lock: int | None = None
        # under another name until it is locked: it looks forsaken before
        draft = self.path / f"{_LEASE}.new"
        try:
            draft.touch()
        except OSError:
            self.close()
            raise
        with contextlib.suppress(OSError):
            self._lock = _locked(draft)
            draft.rename(self.path / _LEASE)

    def close(self) -> None:
        _remove(self.path)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, *failure: object) -> None:
        self.close()


def _remove(directory: Path) -> None:
    """Whatever can be, the lease last."""
    with contextlib.suppress(OSError):
        for entry in directory.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry, ignore_errors=True)
            elif entry.name != _LEASE:
                entry.unlink()
    shutil.rmtree(directory, ignore_errors=True)


def _locked(path: Path) -> int:
    """The open file that has the lock. Errors: `OSError` where another process has it, or none can
    be had."""
    held = os.open(path, os.O_RDWR)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(held)
        raise
    return held
