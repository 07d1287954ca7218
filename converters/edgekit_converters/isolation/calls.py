"""Calls: one function in one child, from the request to its end, and the talk with it meanwhile.

Invariant: whatever the child does, a call ends within its limits, in a result or an error, and
when it is stopped nothing of it is left.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final, NoReturn, Protocol

import msgspec

from edgekit_contract import limits
from edgekit_contract.errors import Refused
from edgekit_converters.isolation.letters import NO_ROOM, RESULT, STDERR, Answer, StepFailed

__all__ = [
    "Call",
    "Conversation",
    "Limits",
    "Neighbours",
    "StepRefused",
    "cause_of",
    "last_words",
    "limits_for",
]

_STDERR_TAIL_BYTES: Final = 4096
_GOODBYE_S: Final = 5.0
_DYING_S: Final = 0.002
_LOOK_S: Final = 0.2
"""How often a call that is not over is looked at for what it writes, and neighbours are."""
_WRITTEN_BYTES: Final = limits.GIB
"""What `limits_for` lets a call write into its own directory, and a dozen models."""
_SLOW_DISK_BYTES_PER_S: Final = 20 * limits.MIB


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a child may use."""

    timeout_s: float = 120.0
    memory_bytes: int = 4 * limits.GIB
    """Private writable memory (RLIMIT_DATA): mapped model files do not count."""
    file_bytes: int = limits.MAX_BUNDLE_BYTES
    directory: Path | None = None
    """Where the call writes besides its own temporary directory."""
    directory_bytes: int | None = None
    """How much it may write into both together; looked at now and then. None: not looked at."""


class Neighbours(Protocol):
    """Others on this machine, for whom a call holds still where they ask for it."""

    def are_waiting(self) -> bool:
        """Whether they ask the thread that runs this."""
        ...

    def give_way(self) -> None:
        """Let them, and return when they are done."""
        ...


class StepRefused(Refused):
    """The function in the child refused, with a sentence for the user."""


@dataclass(frozen=True, kw_only=True)
class _End:
    """How a call ended."""

    code: int | None
    """Exit code, or minus the signal; None where nobody could tell."""
    timed_out: bool
    written_bytes: int | None = None
    """Where it was stopped for writing so much."""


def limits_for(model_bytes: int, *, timeout_s: float = 40.0) -> Limits:
    """Limits that leave a model of this size room for about a dozen copies of its weights, in
    memory and in the call's own directory, and time to read them from a slow disk."""
    return Limits(
        timeout_s=timeout_s + model_bytes / _SLOW_DISK_BYTES_PER_S,
        memory_bytes=4 * limits.GIB + 12 * model_bytes,
        directory_bytes=_WRITTEN_BYTES + 12 * model_bytes,
    )


class Server(Protocol):
    """What forks children, see `workshop`."""

    def begin(self, home: Path, handles: list[int]) -> None: ...

    def kill(self) -> None: ...

    def cause(self) -> str:
        """Why a call got no answer."""
        ...


class Call:
    """A call that has begun, until it is stopped."""

    def __init__(
        self,
        step: str,
        home: Path,
        bounds: Limits,
        server: Server,
        connection: Connection | None,
    ) -> None:
        self._step, self._home, self._bounds, self._server = step, home, bounds, server
        self._ends = time.monotonic() + bounds.timeout_s
        self._group: int | None = None
        self._is_over, self._told = False, b""
        self._reader, writer = os.pipe()
        with contextlib.suppress(OSError):  # a server that is gone is seen by the pipe's end
            server.begin(home, [writer] + ([] if connection is None else [connection.fileno()]))
        os.close(writer)

    @property
    def timeout_s(self) -> float:
        return self._bounds.timeout_s

    def late(self) -> StepFailed:
        said = f"it did not end within {self.timeout_s:.3g} s"
        return StepFailed(self._step, said, timed_out=True)

    def result(self, neighbours: Neighbours | None = None) -> Any:
        """Wait for its end. Errors: as `Workshop.run`."""
        end = self._end(neighbours)
        if end.timed_out:
            raise self.late()
        if end.written_bytes is not None:
            said = f"it wrote {end.written_bytes >> 20} MiB to the disk and was stopped"
            raise StepFailed(self._step, said)
        try:
            answer = msgspec.json.decode((self._home / RESULT).read_bytes(), type=Answer)
        except (OSError, msgspec.DecodeError) as error:
            if end.code == NO_ROOM:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
            if end.code is None:
                raise StepFailed(self._step, self._server.cause()) from error
            raise StepFailed(self._step, cause_of(end.code, self._home / STDERR)) from error
        if answer.refused is not None:
            raise StepRefused(answer.refused)
        if answer.disk_errno is not None:
            raise OSError(answer.disk_errno, os.strerror(answer.disk_errno))
        if answer.raised is not None:
            raise StepFailed(self._step, answer.raised)
        return answer.result

    def _end(self, neighbours: Neighbours | None) -> _End:
        # first the process group of the call, then its exit code, then the end of all of it
        while (left_s := self._ends - time.monotonic()) > 0:
            if not select.select([self._reader], [], [], min(left_s, _LOOK_S))[0]:
                if (written := _too_much(self._home, self._bounds)) is not None:
                    return _End(code=None, timed_out=False, written_bytes=written)
                if self._group is not None and neighbours is not None and neighbours.are_waiting():
                    self._ends += _held_still(self._group, neighbours)
                continue
            if not self._read():
                code = self._told.split(b"\n")[1] if self._is_over else None
                return _End(code=int(code) if code else None, timed_out=False)
        return _End(code=None, timed_out=True)

    def _read(self) -> bool:
        """Whether more was told."""
        piece = os.read(self._reader, 64)
        if piece:
            self._told += piece
            self._group = int(self._told.split(b"\n")[0])
            self._is_over = self._told.count(b"\n") == 2
        return bool(piece)

    def extend(self) -> None:
        """Let its time begin anew."""
        self._ends = time.monotonic() + self.timeout_s

    def stop(self) -> None:
        """End it, whatever it does."""
        if self._group is None and select.select([self._reader], [], [], _GOODBYE_S)[0]:
            self._read()
        os.close(self._reader)
        if self._group is None:
            self._server.kill()
        elif not self._is_over:
            _kill(self._group)


class Conversation:
    """This side of a talk with a call: what is said is pickled.

    Errors of all methods: as `Workshop.run`, where the call has ended or does not answer in time.
    """

    def __init__(self, connection: Connection, call: Call) -> None:
        self._connection, self._call = connection, call

    def say(self, what: object) -> None:
        self._call.extend()
        try:
            self._connection.send(what)
        except OSError:
            self._raise_end()

    def hear(self) -> Any:
        """Wait for what it says next."""
        self._call.extend()
        try:
            if self._connection.poll(self._call.timeout_s):
                return self._connection.recv()
        except (EOFError, OSError):
            self._raise_end()
        raise self._call.late()

    def _raise_end(self) -> NoReturn:
        self._call.result()
        raise RuntimeError("the call ended before the talk was over")


def _kill(group: int) -> None:
    """And wait: what it still writes would be in the way of clearing up."""
    ends = time.monotonic() + _GOODBYE_S
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
        while time.monotonic() < ends:
            time.sleep(_DYING_S)
            os.killpg(group, 0)


def _held_still(group: int, neighbours: Neighbours) -> float:
    """Stop a call while neighbours go first; for how many seconds."""
    began = time.monotonic()
    try:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGSTOP)
            os.kill(group, signal.SIGCONT)  # its supervisor, which ends the call if this one dies
        neighbours.give_way()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGCONT)
    return time.monotonic() - began


def _too_much(home: Path, bounds: Limits) -> int | None:
    """Bytes on the disk, where they are more than the call may write."""
    if bounds.directory_bytes is None:
        return None
    written = 0
    for root in filter(None, (home, bounds.directory)):
        for directory, _, files in os.walk(root):
            for name in files:
                with contextlib.suppress(OSError):  # it may be gone by now
                    written += os.lstat(Path(directory, name)).st_blocks * 512
    return written if written > bounds.directory_bytes else None


def cause_of(code: int, stderr: Path) -> str:
    """Why a process ended without a result, by its exit code (or minus its signal)."""
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"it crashed ({signal.Signals(-code).name})"
        return f"it crashed (signal {-code})"
    last = last_words(stderr)
    return f"it ended with code {code} and no result" + (f" ({last[:200]})" if last else "")


def last_words(stderr: Path) -> str:
    """The last line that a process wrote to a file; empty where it wrote none."""
    with stderr.open("rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(0, size - _STDERR_TAIL_BYTES))
        lines = stream.read().decode(errors="replace").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
