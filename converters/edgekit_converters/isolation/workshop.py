"""The workshop: calls of functions, each in a child process with limits; this side of them.

Invariant: whatever the child does, `run` returns its JSON result or raises, within the limits, and
leaves no process behind; not even where the caller is killed. What the child writes goes where its
arguments say: a scratch directory.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any, Final

import msgspec

from edgekit_converters.isolation.calls import Call, Conversation, Limits, Neighbours, cause_of
from edgekit_converters.isolation.letters import REQUEST, STDERR, Request
from edgekit_converters.leases import Leased

__all__ = ["Run", "Workshop", "run"]

_WARM: Final = (
    "onnxruntime",
    "edgekit_converters.normalization",
    "edgekit_converters.recipes",
    "edgekit_converters.calibration.apart",
)
"""What a workshop imports before the first call; what cannot be imported is left to the calls."""
_FORKS: Final = "edgekit_converters.isolation.forks"
_GOODBYE_S: Final = 5.0
# Libraries may start BLAS or OpenMP in a child: their pools would fight over the cores.
_ENVIRONMENT: Final = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


Run = Callable[[str, str, Mapping[str, Any], Limits], Any]
"""`run`, or that of a `Workshop`."""


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
        with self._call(step, target, arguments, bounds) as call:
            return call.result(self._neighbours)

    @contextlib.contextmanager
    def converse(
        self, step: str, target: str, arguments: Mapping[str, Any], bounds: Limits
    ) -> Iterator[Conversation]:
        """Call a function that is given a `connection`, too, and talk with it inside the block,
        until it has nothing more to do. It does not outlive the block, and its time counts only
        while it is listened to. Errors: as `run`."""
        ours, theirs = Pipe()
        with ours, theirs, self._call(step, target, arguments, bounds, theirs) as call:
            theirs.close()
            yield Conversation(ours, call)
            call.result()

    @contextlib.contextmanager
    def _call(
        self,
        step: str,
        target: str,
        arguments: Mapping[str, Any],
        bounds: Limits,
        connection: Connection | None = None,
    ) -> Iterator[Call]:
        server = self._living()
        with tempfile.TemporaryDirectory(prefix="call-", dir=server.home) as directory:
            home = Path(directory)
            request = Request(target, dict(arguments), bounds.memory_bytes, bounds.file_bytes)
            (home / REQUEST).write_bytes(msgspec.json.encode(request))
            call = Call(step, home, bounds, server, connection)
            try:
                yield call
            finally:
                call.stop()

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
        self._lease = Leased("edgekit-step-")
        self.home = self._lease.path
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        paths = os.pathsep.join(path for path in sys.path if path)
        own = {**_ENVIRONMENT, "PYTHONPATH": paths}
        if cache := os.environ.get("EDGEKIT_CACHE"):
            own["EDGEKIT_CACHE"] = str(Path(cache).absolute())  # it works in another directory
        with theirs, (self.home / STDERR).open("wb") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, "-m", _FORKS, str(theirs.fileno()), *warm],
                cwd=self.home,
                stdin=subprocess.DEVNULL,
                stdout=stderr,
                stderr=stderr,
                env={**os.environ, **own},
                start_new_session=True,
                pass_fds=(theirs.fileno(),),
            )

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def begin(self, home: Path, handles: list[int]) -> None:
        """Have the request in `home` carried out, with these open files. Errors: `OSError`."""
        socket.send_fds(self._channel, [os.fsencode(home)], handles)

    def kill(self) -> None:
        self._process.kill()

    def cause(self) -> str:
        """Why a call got no answer: this process is gone, or going."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_GOODBYE_S)
        return cause_of(self._process.returncode or 0, self.home / STDERR)

    def close(self) -> None:
        self._channel.close()
        try:
            self._process.wait(_GOODBYE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._lease.close()
