"""Opening a device directory: by one daemon at a time, with a record whatever became of it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

from edgekit_agent import record as records
from edgekit_agent.record import RecordFile
from edgekit_agent.slots import Slots
from edgekit_contract.errors import Refused

__all__ = ["lock", "open_record"]


def lock(directory: Path) -> int:
    """The descriptor that holds the lock, until it is closed. Errors: `Refused`."""
    descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise Refused(
            f"another agent runs in {directory}: stop it first, or give each its own --dir."
        ) from None
    return descriptor


def open_record(directory: Path, say: Callable[[str], None]) -> RecordFile:
    """The record; where both copies are damaged, with the floors of what is installed."""
    file = RecordFile(directory)
    if file.damaged:
        counters = {}
        for root in (directory / "models").iterdir():
            active = Slots(root).active()
            if active is not None:
                counters[root.name] = active.floor
        say("record.json and its copy are damaged: floors are those of what is installed")
        file.save(records.rebuilt(counters))
    return file
