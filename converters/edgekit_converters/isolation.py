"""Run a function in a child process that may crash, hang, or eat memory without harm to this one.

Invariant: whatever the child does, `run` returns its JSON result or raises, within the limits, and
leaves no process behind. What the child writes goes where its arguments say: a scratch directory.

A `Workshop` is a process that has imported what steps need and does nothing but fork. Each call is
a fork of its own, so it starts in milliseconds and yet inherits nothing from the call before. Where
a library keeps an idle thread (onnxruntime does), the fork lacks it, which none has minded: the
workshop itself never opens a session.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import importlib
import os
import resource
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

import msgspec

from edgekit_contract import limits
from edgekit_contract.errors import EdgekitError, Refused

__all__ = [
    "DISK_FAILED",
    "Limits",
    "Run",
    "StepFailed",
    "StepRefused",
    "Workshop",
    "limits_for",
    "run",
]

DISK_FAILED: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO})
"""Failures of the disk, which are no step's fault and would be the next one's, too."""
_WARM: Final = ("onnxruntime", "edgekit_converters.normalization", "edgekit_converters.recipes")
"""What a workshop imports before the first call; what cannot be imported is left to the calls."""
_STDERR_TAIL_BYTES: Final = 4096
_NO_ROOM: Final = os.EX_IOERR
"""The child's exit code where the disk did not take its result."""
_RESULT: Final = "result.json"
_REQUEST: Final = "request.json"
_STDERR: Final = "stderr"
_GOODBYE_S: Final = 5.0
_LOOK_S: Final = 0.5
"""How often a call that is not over is looked at for what it writes."""
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


Run = Callable[[str, str, Mapping[str, Any], Limits], Any]
"""`run`, or that of a `Workshop`."""


class StepFailed(Refused):
    """A child crashed, hung, ran out of memory or raised."""

    def __init__(self, step: str, detail: str, *, timed_out: bool = False) -> None:
        super().__init__(f"{step} failed: {detail}.")
        self.step, self.detail, self.timed_out = step, detail, timed_out


class StepRefused(Refused):
    """The function in the child refused, with a sentence for the user."""


class _Request(msgspec.Struct, frozen=True):
    target: str
    arguments: dict[str, Any]
    memory_bytes: int
    file_bytes: int


class _Answer(msgspec.Struct, frozen=True):
    result: Any = None
    refused: str | None = None
    raised: str | None = None
    disk_errno: int | None = None


@dataclass(frozen=True, kw_only=True)
class _End:
    """How a call ended."""

    code: int | None
    """Exit code, or minus the signal; None where nobody could tell."""
    timed_out: bool
    written_bytes: int | None = None
    """Where it was stopped for writing so much."""


def limits_for(model_bytes: int, *, timeout_s: float = 40.0) -> Limits:
    """Limits that leave a model of this size room for about a dozen copies of its weights, and time
    to read them from a slow disk."""
    return Limits(
        timeout_s=timeout_s + model_bytes / _SLOW_DISK_BYTES_PER_S,
        memory_bytes=4 * limits.GIB + 12 * model_bytes,
    )


def run(step: str, target: str, arguments: Mapping[str, Any], bounds: Limits) -> Any:
    """`Workshop.run` for a single call."""
    with Workshop(warm=()) as workshop:
        return workshop.run(step, target, arguments, bounds)


class Workshop:
    """A place to run calls in, each in a child of its own; a context manager.

    Threads may call `run` at the same time. A workshop that died is opened again by the next call.
    """

    def __init__(self, *, warm: tuple[str, ...] = _WARM) -> None:
        self._warm = warm
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
            request = _Request(target, dict(arguments), bounds.memory_bytes, bounds.file_bytes)
            (home / _REQUEST).write_bytes(msgspec.json.encode(request))
            end = server.call(home, bounds)
            if end.timed_out:
                said = f"it did not end within {bounds.timeout_s:.3g} s"
                raise StepFailed(step, said, timed_out=True)
            if end.written_bytes is not None:
                said = f"it wrote {end.written_bytes >> 20} MiB to the disk and was stopped"
                raise StepFailed(step, said)
            try:
                answer = msgspec.json.decode((home / _RESULT).read_bytes(), type=_Answer)
            except (OSError, msgspec.DecodeError) as error:
                if end.code == _NO_ROOM:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
                if end.code is None:
                    raise StepFailed(step, server.cause()) from error
                raise StepFailed(step, _cause(end.code, home / _STDERR)) from error
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
        with theirs, (self.home / _STDERR).open("wb") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(theirs.fileno()), *warm],
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

    def call(self, home: Path, bounds: Limits) -> _End:
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
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(group, signal.SIGKILL)

    def cause(self) -> str:
        """Why a call got no answer: this process is gone, or going."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_GOODBYE_S)
        return _cause(self._process.returncode or 0, self.home / _STDERR)

    def close(self) -> None:
        self._channel.close()
        try:
            self._process.wait(_GOODBYE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self.home, ignore_errors=True)


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


# What follows runs in the process that forks, and in its forks.


def _serve(channel: socket.socket, warm: list[str]) -> None:
    for module in warm:
        with contextlib.suppress(Exception):
            importlib.import_module(module)
    gc.freeze()  # a collection would touch, and so copy, every page that the forks share
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the supervisors
    # From 3.12 on Python warns of forks beside threads; see the module's docstring.
    warnings.simplefilter("ignore", DeprecationWarning)
    while True:
        home, writers, _, _ = socket.recv_fds(channel, 4096, 1)
        if not home:
            return
        if os.fork() == 0:
            channel.close()
            _supervise(Path(os.fsdecode(home)), writers[0])
        os.close(writers[0])


def _supervise(home: Path, writer: int) -> NoReturn:
    """Lead the call's process group, tell its number and how the call ended, and end the group."""
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.write(writer, b"%d\n" % os.getpid())
    child = os.fork()
    if child == 0:
        os.close(writer)
        _work(home)
    _, status = os.waitpid(child, 0)
    os.write(writer, b"%d\n" % os.waitstatus_to_exitcode(status))
    os.killpg(0, signal.SIGKILL)  # what the call has started, too; the pipe ends with this process
    raise AssertionError


def _work(home: Path) -> NoReturn:
    # Exceptions must not reach the frames of the process that forks.
    try:
        os.chdir(home)
        os.environ["TMPDIR"] = tempfile.tempdir = str(home)
        output = os.open(home / _STDERR, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(output, 1)
        os.dup2(output, 2)
        request = msgspec.json.decode((home / _REQUEST).read_bytes(), type=_Request)
        _bound(request)
        _tell(home, msgspec.json.encode(_answer(request)))
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except OSError as error:
        code = _NO_ROOM if error.errno in DISK_FAILED else 1
        _say(error)
    except BaseException as error:  # the last frame: there is nobody to catch it
        code = 1
        _say(error)
    # A native library's destructors may crash or wait; the answer is given.
    os._exit(code)


def _say(error: BaseException) -> None:
    with contextlib.suppress(OSError):  # a full disk takes no words
        os.write(2, f"{type(error).__name__}: {error}\n".encode(errors="replace"))


def _tell(home: Path, answer: bytes) -> None:
    partial = home / "partial"
    partial.write_bytes(answer)
    partial.replace(home / _RESULT)


def _resolve(target: str) -> Any:
    module, _, function = target.partition(":")
    return getattr(importlib.import_module(module), function)


def _bound(request: _Request) -> None:
    for kind, value in (
        (resource.RLIMIT_DATA, request.memory_bytes),
        (resource.RLIMIT_FSIZE, request.file_bytes),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(kind)
        most = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (most, hard))


def _answer(request: _Request) -> _Answer:
    try:
        return _Answer(result=_resolve(request.target)(**request.arguments))
    except EdgekitError as error:
        return _Answer(refused=str(error))
    except MemoryError:
        return _Answer(raised=f"it needs more than {request.memory_bytes >> 20} MiB of memory")
    except Exception as error:  # whatever a third party raises is an answer
        if isinstance(error, OSError) and error.errno in DISK_FAILED:
            return _Answer(disk_errno=error.errno)
        text = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        return _Answer(raised=f"{type(error).__name__}: {text[:300]}")


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])), sys.argv[2:])
