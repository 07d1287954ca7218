"""Letters: what a call and its child say to each other, in files of the call's directory."""

from __future__ import annotations

import errno
import os
from typing import Any, Final

import msgspec

from edgekit_contract.errors import Refused

__all__ = [
    "DISK_FAILED",
    "NO_ROOM",
    "REQUEST",
    "RESULT",
    "STDERR",
    "Answer",
    "Request",
    "StepFailed",
]

DISK_FAILED: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO})
"""Failures of the disk, which are no step's fault and would be the next one's, too."""
NO_ROOM: Final = os.EX_IOERR
"""The child's exit code where the disk did not take its result."""
RESULT: Final = "result.json"
REQUEST: Final = "request.json"
STDERR: Final = "stderr"


class StepFailed(Refused):
    """A call crashed, hung, ran out of memory or raised; also told by a child, of a
    process of its own."""

    def __init__(self, step: str, detail: str, *, timed_out: bool = False) -> None:
        super().__init__(f"{step} failed: {detail}.")
        self.step, self.detail, self.timed_out = step, detail, timed_out


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
