"""Builds on one machine compute together; who measures is alone."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from build_requests import DIGITS

from edgekit.build.latency import measure_latencies
from edgekit.build.model_file import ModelFile
from edgekit.build.progress import Silent
from edgekit.build.turns import Considerate, Turns, open_turns
from edgekit_contract.errors import Refused
from edgekit_contract.profile import RuntimeKind
from edgekit_runtime.session import SessionOptions

LONG_S = 30.0
"""Nothing takes so long that works."""


class Worker(threading.Thread):
    """A build that computes, a step after the other, until it is told to stop."""

    def __init__(self, directory: Path) -> None:
        super().__init__(daemon=True)
        self._directory = directory
        self.steps = 0
        self.computing = threading.Event()
        self.stop = threading.Event()

    def run(self) -> None:
        turns = Turns(self._directory)
        with turns.together(), Considerate(Silent(), turns).stage("computing", None) as advance:
            self.computing.set()
            while not self.stop.is_set():
                self.steps += 1
                advance(1)
        turns.close()


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[list[Worker]]:
    found = [Worker(tmp_path) for _ in range(3)]
    for worker in found:
        worker.start()
        assert worker.computing.wait(LONG_S)
    yield found
    for worker in found:
        worker.stop.set()
        worker.join(LONG_S)
        assert not worker.is_alive()


@contextlib.contextmanager
def opened(directory: Path, *, patience_s: float = LONG_S) -> Iterator[Turns]:
    turns = Turns(directory, patience_s=patience_s)
    yield turns
    turns.close()


def test_builds_compute_together(workers: list[Worker]) -> None:
    """All are inside at once: none waited for another to end."""
    before = [worker.steps for worker in workers]
    ends = time.monotonic() + LONG_S
    while any(w.steps <= b for w, b in zip(workers, before, strict=True)):
        assert time.monotonic() < ends
        time.sleep(0.01)


def test_nobody_computes_while_one_measures_and_who_measures_is_not_starved(
    workers: list[Worker], tmp_path: Path
) -> None:
    with opened(tmp_path) as turns, turns.together():
        for _ in range(5):
            with turns.alone():
                before = [worker.steps for worker in workers]
                time.sleep(0.03)
                assert [worker.steps for worker in workers] == before
        assert not turns.disturbed


def test_two_do_not_measure_at_once(tmp_path: Path) -> None:
    inside = 0
    most = 0

    def measure() -> None:
        nonlocal inside, most
        with opened(tmp_path) as turns, turns.together():
            for _ in range(10):
                with turns.alone():
                    inside += 1
                    most = max(most, inside)
                    time.sleep(0.001)
                    inside -= 1

    threads = [threading.Thread(target=measure) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG_S)
    assert most == 1


def test_one_that_never_gives_way_ends_patience_and_that_is_said(tmp_path: Path) -> None:
    with opened(tmp_path) as holder, holder.together(), opened(tmp_path, patience_s=0.05) as turns:
        with turns.alone():
            pass
        assert turns.disturbed


def test_after_impatience_locks_are_as_before(tmp_path: Path) -> None:
    with opened(tmp_path, patience_s=0.05) as turns:
        with opened(tmp_path) as holder, holder.together(), turns.alone():
            pass
        with opened(tmp_path, patience_s=0.05) as other, other.alone():
            assert not other.disturbed


def test_a_killed_build_leaves_no_lock(tmp_path: Path) -> None:
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from edgekit.build.turns import Turns\n"
        "with Turns(Path(sys.argv[1])).alone():\n"
        "    print('in', flush=True)\n"
        "    time.sleep(100)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"in\n"
        with opened(tmp_path, patience_s=0.05) as turns, turns.alone():
            assert turns.disturbed
        holder.send_signal(signal.SIGKILL)
        holder.wait(LONG_S)
    with opened(tmp_path) as turns, turns.alone():
        assert not turns.disturbed


def test_what_is_timed_is_timed_alone(tmp_path: Path) -> None:
    """At each look at the clock nobody else can be computing, and before and after they can."""
    room = os.open(tmp_path / "room.lock", os.O_RDWR | os.O_CREAT)
    looks = []

    def is_free() -> bool:
        try:
            fcntl.flock(room, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        fcntl.flock(room, fcntl.LOCK_UN)
        return True

    def clock() -> float:
        looks.append(is_free())
        return time.perf_counter()

    model = ModelFile(path=DIGITS / "digits.onnx", kind=RuntimeKind.ONNXRUNTIME)
    with open_turns(tmp_path):
        assert is_free()
        measure_latencies(
            {"same": model},
            baseline=model,
            options={RuntimeKind.ONNXRUNTIME: SessionOptions(threads=1)},
            feeds=[{"image": np.zeros((1, 1, 28, 28), np.float32)}],
            budget_s=0.01,
            clock=clock,
        )
        assert is_free()
    os.close(room)
    assert len(looks) > 10
    assert not any(looks)


def test_locks_of_somebody_else_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / f"edgekit-{os.getuid()}").symlink_to(tmp_path)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with pytest.raises(Refused, match="not a directory of yours"), open_turns():
        pass
