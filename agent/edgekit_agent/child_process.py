"""Ends of the daemon's children.

Invariant: nothing here waits longer than a moment. A child that the kernel does not let go at once
(uninterruptible sleep on a failing medium) is left to `reap`, and what serves goes on serving.
Source: proc_pid_stat(5), state D.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from typing import Final

__all__ = ["end_process", "ending", "exit_code", "reap"]

_MOMENT_S: Final = 0.5

_unreaped: list[subprocess.Popen[bytes]] = []
"""Killed and still there. Children belong to the process, so this does too."""


def exit_code(process: subprocess.Popen[bytes]) -> int | None:
    """Of a child that has closed its channel; None where it stays nevertheless."""
    try:
        return process.wait(_MOMENT_S)
    except subprocess.TimeoutExpired:
        return None


def ending(code: int | None) -> str:
    """How a process ended, in words."""
    if code is None:
        return "closed its channel and stayed"
    if code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = str(-code)
        return f"was killed by {name}"
    return f"ended with code {code}"


def end_process(process: subprocess.Popen[bytes]) -> None:
    """Kill a child that leads its own process group, with all it has started, and reap it."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        if exit_code(process) is None and process not in _unreaped:
            _unreaped.append(process)


def reap() -> None:
    """Look after those that did not end at once."""
    _unreaped[:] = [process for process in _unreaped if process.poll() is None]
