"""Run a function in a child process that may crash, hang, or eat memory without harm to this one.

Invariant: whatever the child does, `run` returns its JSON result or raises, within the limits, and
leaves no process behind. What the child writes goes where its arguments say: a scratch directory.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from edgekit_contract import limits
from edgekit_contract.errors import EdgekitError, Refused

__all__ = ["DISK_FAILED", "Limits", "StepFailed", "StepRefused", "limits_for", "run"]

DISK_FAILED: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO})
"""Failures of the disk, which are no step's fault and would be the next one's, too."""
_STDERR_TAIL_BYTES: Final = 4096
_NO_ROOM: Final = os.EX_IOERR
"""The child's exit code where the disk did not take its result."""
_RESULT: Final = "result.json"
_REQUEST: Final = "request.json"
# A child that libraries may start BLAS or OpenMP in: their pools would fight over the cores.
_ENVIRONMENT: Final = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a child may use."""

    timeout_s: float = 120.0
    memory_bytes: int = 4 * limits.GIB
    """Private writable memory (RLIMIT_DATA): mapped model files do not count."""
    file_bytes: int = limits.MAX_BUNDLE_BYTES


class StepFailed(Refused):
    """A child crashed, hung, ran out of memory or raised."""

    def __init__(self, step: str, detail: str) -> None:
        super().__init__(f"{step} failed: {detail}.")
        self.step, self.detail = step, detail


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


def limits_for(model_bytes: int, *, timeout_s: float = 120.0) -> Limits:
    """Limits that leave a model of this size room for about a dozen copies of its weights."""
    return Limits(timeout_s=timeout_s, memory_bytes=4 * limits.GIB + 12 * model_bytes)


def run(step: str, target: str, arguments: Mapping[str, Any], bounds: Limits) -> Any:
    """Call `module:function` with JSON keyword arguments in a child; its JSON result.

    `step` names the work in messages. Errors: `StepRefused` where the function raised an
    `EdgekitError`, `OSError` where the disk failed (`DISK_FAILED`), `StepFailed` for all else.
    """
    with tempfile.TemporaryDirectory(prefix="edgekit-step-") as directory:
        home = Path(directory)
        request = _Request(target, dict(arguments), bounds.memory_bytes, bounds.file_bytes)
        (home / _REQUEST).write_bytes(msgspec.json.encode(request))
        code, timed_out, tail = _spawn(home, bounds.timeout_s)
        if timed_out:
            raise StepFailed(step, f"it did not end within {bounds.timeout_s:g} s")
        try:
            answer = msgspec.json.decode((home / _RESULT).read_bytes(), type=_Answer)
        except (OSError, msgspec.DecodeError) as error:
            if code == _NO_ROOM:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
            raise StepFailed(step, _cause(code, tail)) from error
    if answer.refused is not None:
        raise StepRefused(answer.refused)
    if answer.disk_errno is not None:
        raise OSError(answer.disk_errno, os.strerror(answer.disk_errno))
    if answer.raised is not None:
        raise StepFailed(step, answer.raised)
    return answer.result


def _spawn(home: Path, timeout_s: float) -> tuple[int, bool, str]:
    paths = os.pathsep.join(path for path in sys.path if path)
    with (home / "stderr").open("wb+") as stderr:
        child = subprocess.Popen(
            [sys.executable, "-m", __name__, str(home)],
            cwd=home,
            stdin=subprocess.DEVNULL,
            stdout=stderr,
            stderr=stderr,
            env={**os.environ, **_ENVIRONMENT, "PYTHONPATH": paths, "TMPDIR": str(home)},
            start_new_session=True,
        )
        timed_out = False
        try:
            child.wait(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            timed_out = True
        finally:
            # its own children too: the session is the process group
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        size = stderr.seek(0, os.SEEK_END)
        stderr.seek(max(0, size - _STDERR_TAIL_BYTES))
        tail = stderr.read().decode(errors="replace")
    return child.returncode, timed_out, tail


def _cause(code: int, tail: str) -> str:
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"it crashed ({signal.Signals(-code).name})"
        return f"it crashed (signal {-code})"
    last = next((line.strip() for line in reversed(tail.splitlines()) if line.strip()), "")
    return f"it ended with code {code} and no result" + (f" ({last[:200]})" if last else "")


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


def _main(home: Path) -> None:
    request = msgspec.json.decode((home / _REQUEST).read_bytes(), type=_Request)
    _bound(request)
    answer = msgspec.json.encode(_answer(request))
    partial = home / "partial"
    try:
        partial.write_bytes(answer)
        partial.replace(home / _RESULT)
    except OSError as error:
        if error.errno not in DISK_FAILED:
            raise
        os._exit(_NO_ROOM)
    # A native library's destructors may crash or wait; the answer is given.
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
