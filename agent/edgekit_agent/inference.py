"""Runs one job at a time on the model, off the server's loop unless that would only cost time.

Invariant: jobs run one after the other in the order of `submit`, each on exactly one thread. A
hop to the inference thread and back costs tens of microseconds, a large part of a small model's
time; so when nothing is waiting and the job before took less than `INLINE_S`, the job runs where
it was submitted. Anything slower leaves the loop free to accept, refuse and tell its health.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import Final, Generic, TypeVar

from edgekit_contract import limits

__all__ = ["INLINE_S", "Runner"]

INLINE_S: Final = 0.002

Result = TypeVar("Result")
Job = Callable[[], Result]
Done = Callable[[Result], None]


class Runner(Generic[Result]):
    """`submit` belongs to the server's thread; `busy_s` may be asked anywhere."""

    def __init__(self, *, post: Callable[[Callable[[], None]], None], last_s: float) -> None:
        """`post` runs a call on the server's thread; `last_s` is how long a job took before."""
        self._post = post
        self._last_s = last_s
        self._outstanding = 0
        self._started_s: float | None = None
        self._jobs: queue.SimpleQueue[tuple[Job[Result], Done[Result]]] = queue.SimpleQueue()
        threading.Thread(target=self._work, name="inference", daemon=True).start()

    def submit(self, job: Job[Result], done: Done[Result]) -> bool:
        """Run `job` and hand its result to `done` on this thread, now or later.

        False, and nothing runs, where `limits.MAX_QUEUED_INFERENCES` wait. A job does not raise.
        """
        if self._outstanding == 0 and self._last_s < INLINE_S:
            done(self._timed(job))
            return True
        if self._outstanding > limits.MAX_QUEUED_INFERENCES:
            return False
        self._outstanding += 1
        self._jobs.put((job, done))
        return True

    @property
    def busy_s(self) -> float | None:
        """How long the running job has been running; None where none is."""
        started = self._started_s
        return None if started is None else time.monotonic() - started

    @property
    def full(self) -> bool:
        return self._outstanding > limits.MAX_QUEUED_INFERENCES

    def _timed(self, job: Job[Result]) -> Result:
        self._started_s = started = time.monotonic()
        try:
            return job()
        finally:
            self._started_s = None
            self._last_s = time.monotonic() - started

    def _work(self) -> None:
        while True:
            job, done = self._jobs.get()
            result = self._timed(job)

            def finish(done: Done[Result] = done, result: Result = result) -> None:
                self._outstanding -= 1
                done(result)

            self._post(finish)
            del job, done, result, finish  # a body may be large, and the next job far
