"""Letters: what a call and its child say to each other, in files of the call's directory."""

from __future__ import annotations

import errno
import os
from typing import Any, Final

import msgspec

__all__ = ["DISK_FAILED", "NO_ROOM", "REQUEST", "RESULT", "STDERR", "Answer", "Request"]

DISK_FAILED: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO})
"""Failures of the disk, which are no step's fault and would be the next one's, too."""
NO_ROOM: Final = os.EX_IOERR
"""The child's exit code where the disk did not take its result."""
RESULT: Final = "result.json"
REQUEST: Final = "request.json"
STDERR: Final = "stderr"


class Request(msgspec.Struct, frozen=True):
    target: str
    arguments: dict[str, Any]
    memory_bytes: int
    file_bytes: int


class Answer(msgspec.Struct, frozen=True):
    result: Any = None
    refused: str | None = None
    raised: str | None = None
    disk_errno: int | None = None
