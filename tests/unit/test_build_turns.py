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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from build_requests import DIGITS, host_profile, request

from edgekit.build import build
from edgekit.build.latency import measure_latencies
from edgekit.build.model_file import ModelFile
from edgekit.build.progress import Silent
from edgekit.build.report import Outcome
from edgekit.build.turns import Considerate, Turns, _directory, open_turns
from edgekit_contract.errors import Refused
from edgekit_contract.profile import RuntimeKind
from edgekit_converters.isolation import Limits, Workshop
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


def test_seconds_that_were_waited_are_no_time_of_the_build(tmp_path: Path) -> None:
    clock_s = 1000.0
    others = contextlib.ExitStack()

    def sleep(seconds: float) -> None:
        nonlocal clock_s
        clock_s += 100.0
        if clock_s % 300.0 == 0.0:  # the others are done
            others.close()

    turns = Turns(tmp_path, clock=lambda: clock_s, sleep=sleep)
    others.enter_context(others.enter_context(opened(tmp_path)).alone())
    with turns.together():
        assert (clock_s, turns.now()) == (1200.0, 1000.0)
        clock_s += 5.0
        assert turns.now() == 1005.0
        clock_s += 95.0
        others.enter_context(others.enter_context(opened(tmp_path)).together())
        with turns.alone():
            assert (clock_s, turns.now()) == (1500.0, 1100.0)
    assert not turns.disturbed
    turns.close()


def test_a_build_that_waited_searches_as_long_as_any(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another measures for longer than the whole search may take."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with opened(_directory()) as other, contextlib.ExitStack() as measuring:
        measuring.enter_context(other.alone())
        timer = threading.Timer(7.0, measuring.close)
        timer.start()
        order = request(
            DIGITS / "digits.onnx",
            tmp_path / "out",
            profiles=(host_profile(),),
            validation=str(DIGITS / "validation.npz"),
            search_time_s=6.0,
        )
        began = time.monotonic()
        built = build(order).built[0]
        assert time.monotonic() - began > 7.0
        timer.join(LONG_S)
    tried = [c for c in built.report.candidates if c.outcome is not Outcome.SKIPPED]
    assert len(tried) > 1, [c.reason for c in built.report.candidates]
    assert sum(built.report.seconds.values()) < time.monotonic() - began - 6.5


def tick(path: str, times: int) -> None:
    """In a child: it computes, a step after the other."""
    with Path(path).open("ab", buffering=0) as stream:
        for _ in range(times):
            stream.write(b".")
            time.sleep(0.05)


def test_what_a_build_has_a_child_compute_holds_still_and_its_time_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    ticks = tmp_path / "ticks"
    ticks.touch()
    seen = []

    def measure() -> None:
        with opened(tmp_path) as turns:
            while not ticks.stat().st_size:
                time.sleep(0.01)
            with turns.alone():
                before = ticks.stat().st_size
                time.sleep(3.0)
                seen.extend([before, ticks.stat().st_size, turns.disturbed])

    thread = threading.Thread(target=measure)
    thread.start()
    with (
        opened(tmp_path) as turns,
        turns.together(),
        Workshop(warm=(), neighbours=turns) as workshop,
    ):
        words = {"path": str(ticks), "times": 30}
        workshop.run("ticking", f"{__name__}:tick", words, Limits(timeout_s=4.0))
    thread.join(LONG_S)
    assert seen[0] == seen[1] < 30
    assert not seen[2]
    assert ticks.stat().st_size == 30


def test_one_that_never_gives_way_ends_patience_and_that_is_said(tmp_path: Path) -> None:
    with opened(tmp_path) as holder, holder.together(), opened(tmp_path, patience_s=0.05) as turns:
        with turns.alone():
            pass
        assert turns.disturbed


def test_one_that_went_on_without_leave_is_told_of(tmp_path: Path) -> None:
    with opened(tmp_path) as measuring, opened(tmp_path, patience_s=0.05) as hasty:
        with measuring.alone(), hasty.together():
            pass
        assert measuring.disturbed
        with opened(tmp_path) as next_one, next_one.alone():
            assert not next_one.disturbed


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


def test_no_way_is_given_while_another_thread_has_something_computed(tmp_path: Path) -> None:
    done = threading.Event()
    with (
        opened(tmp_path) as mine,
        opened(tmp_path, patience_s=0.05) as hasty,
        opened(tmp_path) as patient,
        ThreadPoolExecutor(2) as pool,
        mine.together(),
    ):
        running = mine.beside(pool, lambda: done.wait(LONG_S))
        with hasty.alone():
            assert hasty.disturbed and not mine.are_waiting()
        waiting = pool.submit(_measured, patient)
        ends = time.monotonic() + 0.1
        while time.monotonic() < ends:
            mine.give_way()
        assert not waiting.done()
        done.set()
        assert running.result(LONG_S)
        ends = time.monotonic() + LONG_S
        while not waiting.done() and time.monotonic() < ends:
            mine.give_way()
        waiting.result(LONG_S)
        assert not patient.disturbed


def _measured(turns: Turns) -> None:
    with turns.alone():
        pass


def test_locks_of_somebody_else_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / f"edgekit-{os.getuid()}").symlink_to(tmp_path)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with pytest.raises(Refused, match="not a directory of yours"), open_turns():
        pass
