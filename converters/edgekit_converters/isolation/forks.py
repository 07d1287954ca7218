"""Forks: the process of a `Workshop`, and the far side of its calls.

It has imported what steps need and does nothing but fork. Each call is a fork of its own, so it
starts in milliseconds and yet inherits nothing from the call before. Where a library keeps an idle
thread (onnxruntime does), the fork lacks it, which none has minded: the workshop itself never opens
a session.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import resource
import select
import signal
import socket
import sys
import tempfile
import warnings
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from edgekit_contract.errors import EdgekitError
from edgekit_converters.isolation.letters import (
    DISK_FAILED,
    NO_ROOM,
    REQUEST,
    RESULT,
    STDERR,
    Answer,
    Request,
    StepFailed,
)


def _serve(channel: socket.socket, warm: list[str]) -> None:
    for module in warm:
        with contextlib.suppress(Exception):
            importlib.import_module(module)
    gc.freeze()  # a collection would touch, and so copy, every page that the forks share
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the supervisors
    # From 3.12 on Python warns of forks beside threads; see the module's docstring.
    warnings.simplefilter("ignore", DeprecationWarning)
    while True:
        home, handles, _, _ = socket.recv_fds(channel, 4096, 2)
        if not home:
            return
        if os.fork() == 0:
            channel.close()
            _supervise(Path(os.fsdecode(home)), *handles)
        for handle in handles:
            os.close(handle)


def _supervise(home: Path, writer: int, talk: int | None = None) -> NoReturn:
    """Lead the call's process group, tell its number and how the call ended, and end the group:
    when the call is over, or when nobody is there any more to be told."""
    os.setsid()
    try:
        woken, waker = os.pipe()
        os.set_blocking(waker, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
        os.write(writer, b"%d\n" % os.getpid())
        child = os.fork()
        if child == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for ours in (writer, woken, waker):
                os.close(ours)
            _work(home, talk)
        if talk is not None:
            os.close(talk)  # it ends with the call
        if (status := _awaited(child, woken, writer)) is not None:
            os.write(writer, b"%d\n" % os.waitstatus_to_exitcode(status))
    finally:
        # what the call has started, too; the pipe ends with this process
        os.killpg(0, signal.SIGKILL)
    raise AssertionError


def _awaited(child: int, woken: int, writer: int) -> int | None:
    """How the child ended; None where the reader of the pipe went first: the caller was killed."""
    events = select.poll()
    events.register(woken, select.POLLIN)
    events.register(writer, 0)  # errors are told unasked: a pipe without a reader is one
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status
        if writer in dict(events.poll()):
            return None
        os.read(woken, 64)


def _work(home: Path, talk: int | None) -> NoReturn:
    # Exceptions must not reach the frames of the process that forks.
    try:
        os.chdir(home)
        os.environ["TMPDIR"] = tempfile.tempdir = str(home)
        output = os.open(home / STDERR, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(output, 1)
        os.dup2(output, 2)
        request = msgspec.json.decode((home / REQUEST).read_bytes(), type=Request)
        _bound(request)
        _tell(home, msgspec.json.encode(_answer(request, talk)))
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except OSError as error:
        code = NO_ROOM if error.errno in DISK_FAILED else 1
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
    partial.replace(home / RESULT)


def _resolve(target: str) -> Any:
    module, _, function = target.partition(":")
    return getattr(importlib.import_module(module), function)


def _bound(request: Request) -> None:
    for kind, value in (
        (resource.RLIMIT_DATA, request.memory_bytes),
        (resource.RLIMIT_FSIZE, request.file_bytes),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(kind)
        most = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (most, hard))


def _answer(request: Request, talk: int | None) -> Answer:
    connected = {} if talk is None else {"connection": Connection(talk)}
    try:
        return Answer(result=_resolve(request.target)(**request.arguments, **connected))
    except StepFailed as error:
        return Answer(raised=error.detail)
    except EdgekitError as error:
        return Answer(refused=str(error))
    except MemoryError:
        return Answer(raised=f"it needs more than {request.memory_bytes >> 20} MiB of memory")
    except Exception as error:  # whatever a third party raises is an answer
        if isinstance(error, OSError) and error.errno in DISK_FAILED:
            return Answer(disk_errno=error.errno)
        text = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        return Answer(raised=f"{type(error).__name__}: {text[:300]}")


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])), sys.argv[2:])
