"""The workshop: calls of functions, each in a child process with limits; this side of them.

Invariant: whatever the child does, `run` returns its JSON result or raises, within the limits, and
leaves no process behind; not even where the caller is killed. What the child writes goes where its
arguments say: a scratch directory.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec

from edgekit_contract import limits
from edgekit_contract.errors import Refused
from edgekit_converters.isolation.letters import (
    NO_ROOM,
    REQUEST,
    RESULT,
    STDERR,
    Answer,
    Request,
    StepFailed,
)

__all__ = [
    "Limits",
    "Neighbours",
    "Run",
    "StepRefused",
    "Workshop",
    "limits_for",
    "run",
]

_WARM: Final = ("onnxruntime", "edgekit_converters.normalization", "edgekit_converters.recipes")
"""What a workshop imports before the first call; what cannot be imported is left to the calls."""
_FORKS: Final = "edgekit_converters.isolation.forks"
_STDERR_TAIL_BYTES: Final = 4096
_GOODBYE_S: Final = 5.0
_DYING_S: Final = 0.002
_LOOK_S: Final = 0.2
"""How often a call that is not over is looked at for what it writes, and neighbours are."""
_WRITTEN_BYTES: Final = limits.GIB
"""What `limits_for` lets a call write into its own directory, and a dozen models."""
_SLOW_DISK_BYTES_PER_S: Final = 20 * limits.MIB
# Libraries may start BLAS or OpenMP in a child: their pools would fight over the cores.
_ENVIRONMENT: Final = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


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


Run = Callable[[str, str, Mapping[str, Any], Limits], Any]
"""`run`, or that of a `Workshop`."""


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


def run(step: str, target: str, arguments: Mapping[str, Any], bounds: Limits) -> Any:
    """`Workshop.run` for a single call."""
    with Workshop(warm=()) as workshop:
        return workshop.run(step, target, arguments, bounds)


class Workshop:
    """A place to run calls in, each in a child of its own; a context manager.

    Threads may call `run` at the same time. A workshop that died is opened again by the next call.
    """

    def __init__(
        self, *, warm: tuple[str, ...] = _WARM, neighbours: Neighbours | None = None
    ) -> None:
        """While `neighbours` want it calls are stopped, and their time with them."""
        self._warm, self._neighbours = warm, neighbours
        self._lock = threading.Lock()
        self._server: _Server | None = None

    def __enter__(self) -> Workshop:
        self._server = _Server(self._warm)  # it imports while the caller goes on
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            if self._server is not None:
                self._server.close()
                self._server = None

    def run(self, step: str, target: str, arguments: Mapping[str, Any], bounds: Limits) -> Any:
        """Call `module:function` with JSON keyword arguments in a child; its JSON result.

        `step` names the work in messages. Errors: `StepRefused` where the function raised an
        `EdgekitError`, `OSError` where the disk failed (`DISK_FAILED`), `StepFailed` for all else.
        """
        server = self._living()
        with tempfile.TemporaryDirectory(prefix="call-", dir=server.home) as directory:
            home = Path(directory)
            request = Request(target, dict(arguments), bounds.memory_bytes, bounds.file_bytes)
            (home / REQUEST).write_bytes(msgspec.json.encode(request))
            end = server.call(home, bounds, self._neighbours)
            if end.timed_out:
                said = f"it did not end within {bounds.timeout_s:.3g} s"
                raise StepFailed(step, said, timed_out=True)
            if end.written_bytes is not None:
                said = f"it wrote {end.written_bytes >> 20} MiB to the disk and was stopped"
                raise StepFailed(step, said)
            try:
                answer = msgspec.json.decode((home / RESULT).read_bytes(), type=Answer)
            except (OSError, msgspec.DecodeError) as error:
                if end.code == NO_ROOM:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
                if end.code is None:
                    raise StepFailed(step, server.cause()) from error
                raise StepFailed(step, _cause(end.code, home / STDERR)) from error
        if answer.refused is not None:
            raise StepRefused(answer.refused)
        if answer.disk_errno is not None:
            raise OSError(answer.disk_errno, os.strerror(answer.disk_errno))
        if answer.raised is not None:
            raise StepFailed(step, answer.raised)
        return answer.result

    def _living(self) -> _Server:
        with self._lock:
            if self._server is None:
                raise RuntimeError("the workshop is closed")
            if not self._server.is_alive:
                self._server.close()
                self._server = _Server(self._warm)
            return self._server


class _Server:
    """This side of the process that forks."""

    def __init__(self, warm: tuple[str, ...]) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="edgekit-step-"))
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        paths = os.pathsep.join(path for path in sys.path if path)
        with theirs, (self.home / STDERR).open("wb") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, "-m", _FORKS, str(theirs.fileno()), *warm],
                cwd=self.home,
                stdin=subprocess.DEVNULL,
                stdout=stderr,
                stderr=stderr,
                env={**os.environ, **_ENVIRONMENT, "PYTHONPATH": paths},
                start_new_session=True,
                pass_fds=(theirs.fileno(),),
            )

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def call(self, home: Path, bounds: Limits, neighbours: Neighbours | None) -> _End:
        """Have the request in `home` carried out, and wait for its end."""
        ends = time.monotonic() + bounds.timeout_s
        reader, writer = os.pipe()
        group, is_over, told = None, False, b""
        try:
            try:
                socket.send_fds(self._channel, [os.fsencode(home)], [writer])
            except OSError:
                return _End(code=None, timed_out=False)
            finally:
                os.close(writer)
            # first the process group of the call, then its exit code, then the end of all of it
            while (left_s := ends - time.monotonic()) > 0:
                if not select.select([reader], [], [], min(left_s, _LOOK_S))[0]:
                    if (written := _too_much(home, bounds)) is not None:
                        return _End(code=None, timed_out=False, written_bytes=written)
                    if group is not None and neighbours is not None and neighbours.are_waiting():
                        ends += _held_still(group, neighbours)
                    continue
                if not (piece := os.read(reader, 64)):
                    code = told.split(b"\n")[1] if is_over else None
                    return _End(code=int(code) if code else None, timed_out=False)
                told += piece
                group, is_over = int(told.split(b"\n")[0]), told.count(b"\n") == 2
            return _End(code=None, timed_out=True)
        finally:
            os.close(reader)
            if group is None:
                self._process.kill()
            elif not is_over:
                _kill(group)

    def cause(self) -> str:
        """Why a call got no answer: this process is gone, or going."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_GOODBYE_S)
        return _cause(self._process.returncode or 0, self.home / STDERR)

    def close(self) -> None:
        self._channel.close()
        try:
            self._process.wait(_GOODBYE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self.home, ignore_errors=True)


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


def _cause(code: int, stderr: Path) -> str:
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"it crashed ({signal.Signals(-code).name})"
        return f"it crashed (signal {-code})"
    with stderr.open("rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(0, size - _STDERR_TAIL_BYTES))
        lines = stream.read().decode(errors="replace").splitlines()
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return f"it ended with code {code} and no result" + (f" ({last[:200]})" if last else "")
