"""Temporary directories that outlive whoever was killed: the next one to make such removes them.

A directory is its owner's while that holds a lock on a file in it, which ends with the process,
however that ends (flock(2)).

Invariant: nothing is removed whose owner lives, nor what has no such file.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

__all__ = ["Leased"]

_LEASE: Final = ".lease"


class Leased:
    """A new directory for temporary files."""

    def __init__(self, prefix: str) -> None:
        """Removes those of the same prefix first whose owners are gone. Errors: `OSError`."""
        for left in Path(tempfile.gettempdir()).glob(f"{prefix}*/{_LEASE}"):
            with contextlib.suppress(OSError), _locked(left):
                shutil.rmtree(left.parent, ignore_errors=True)
        self.path = Path(tempfile.mkdtemp(prefix=prefix))
        self._ends = contextlib.ExitStack()
        self._ends.callback(shutil.rmtree, self.path, ignore_errors=True)
        try:
            # under another name until it is locked: it looks forsaken before
            draft = self.path / f"{_LEASE}.new"
            draft.touch()
            self._ends.enter_context(_locked(draft))
            draft.rename(self.path / _LEASE)
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        self._ends.close()

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, *failure: object) -> None:
        self.close()


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Errors: `OSError` where another process has the lock."""
    held = os.open(path, os.O_RDWR)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(held)
