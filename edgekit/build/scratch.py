"""The scratch directory of a build: where steps and variants are, and what ends with it.

Invariant: a disk that is full or broken is the user's to mend, and never a traceback.
"""

from __future__ import annotations

import contextlib
import errno
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from edgekit_contract.errors import Refused
from edgekit_converters.isolation import DISK_FAILED
from edgekit_converters.leases import Leased

__all__ = ["ScratchFailed", "open_scratch"]

_MENDABLE: Final = DISK_FAILED | {errno.EFBIG}


class ScratchFailed(Refused):
    """The disk that scratch files are on is full or fails."""

    def __init__(self, directory: str, why: str) -> None:
        super().__init__(
            f"cannot write scratch files in {directory} ({why}); nothing was built: make room, or "
            "set TMPDIR to another directory."
        )
        self.directory, self.why = directory, why


@contextlib.contextmanager
def open_scratch() -> Iterator[Path]:
    """A new directory, removed in the end, or by the next build where this one is killed.

    Errors: `ScratchFailed`, also from within.
    """
    try:
        with Leased("edgekit-build-") as directory:
            yield directory
    except OSError as error:
        if error.errno not in _MENDABLE:
            raise
        raise ScratchFailed(tempfile.gettempdir(), str(error.strerror)) from error
