"""Where jobs run, in what order, and how many may wait."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

from edgekit_agent.inference import INLINE_S, Runner
from edgekit_contract import limits


class Loop:
    """The server's thread: this one, which runs what is posted when it is told to."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()

    def post(self, call: Callable[[], None]) -> None:
        self._calls.put(call)

    def run(self, count: int) -> None:
        for _ in range(count):
            self._calls.get(timeout=60)()


def test_job_after_a_quick_one_runs_where_it_was_submitted() -> None:
    loop, done = Loop(), []
    runner: Runner[int] = Runner(post=loop.post, last_s=0.0)
    assert runner.submit(threading.get_ident, done.append)
    assert done == [threading.get_ident()]


def test_job_after_a_slow_one_runs_elsewhere_until_one_is_quick() -> None:
    loop, done = Loop(), []
    runner: Runner[int] = Runner(post=loop.post, last_s=2 * INLINE_S)
    assert runner.submit(threading.get_ident, done.append)
    assert done == []
    loop.run(1)
    assert done != [threading.get_ident()]
    assert runner.submit(threading.get_ident, done.append)
    assert done[-1] == threading.get_ident()


def test_jobs_run_one_at_a_time_in_their_order_and_no_more_wait_than_the_bound() -> None:
    loop = Loop()
    runner: Runner[int] = Runner(post=loop.post, last_s=1.0)
    gate, running, done = threading.Event(), threading.Semaphore(1), []

    def job(number: int) -> int:
        gate.wait(60)
        assert running.acquire(blocking=False)
        running.release()
        return number

    accepted = 0
    while runner.submit(lambda number=accepted: job(number), done.append):
        accepted += 1
    assert accepted == limits.MAX_QUEUED_INFERENCES + 1  # one runs, the others wait
    assert runner.full
    gate.set()
    loop.run(accepted)
    assert done == list(range(accepted))
    assert not runner.full


def test_running_job_tells_for_how_long() -> None:
    loop, gate = Loop(), threading.Event()
    runner: Runner[bool] = Runner(post=loop.post, last_s=1.0)
    assert runner.busy_s is None
    assert runner.submit(lambda: gate.wait(60), lambda result: None)
    while (first := runner.busy_s) is None:
        pass
    while (second := runner.busy_s) is not None and second <= first:
        pass
    assert second is not None
    gate.set()
    loop.run(1)
    assert runner.busy_s is None
