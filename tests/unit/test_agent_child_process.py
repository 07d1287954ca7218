"""Ends of the daemon's children."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator

import pytest

from edgekit_agent import child_process
from edgekit_agent.child_process import end_process, ending, exit_code, reap


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "600"], start_new_session=True) as process:
        yield process
        process.kill()


def test_a_child_that_the_kernel_keeps_is_not_waited_for_and_reaped_later(
    child: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in uninterruptible sleep: the signal is sent and nothing happens."""
    with monkeypatch.context() as patch:
        patch.setattr(os, "killpg", lambda group, number: None)
        end_process(child)
        end_process(child)
    reap()
    assert child_process._unreaped == [child]
    os.killpg(child.pid, signal.SIGKILL)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    reap()
    assert child_process._unreaped == []
    assert child.returncode == -signal.SIGKILL


def test_a_child_is_killed_and_reaped(child: subprocess.Popen[bytes]) -> None:
    assert exit_code(child) is None
    end_process(child)
    assert ending(child.returncode) == "was killed by SIGKILL"
    assert child_process._unreaped == []
