"""Observation shared out to processes: each asks for a sample when it is free; all have one plan.

Invariant: statistics do not depend on how many processes there are, or on which saw which sample:
merging is exact, and what a sample adds follows from it and the plan alone. Whatever becomes of a
process, none outlives `observe_sharded`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import Final, cast

import numpy as np

from edgekit_contract.errors import Refused
from edgekit_converters.calibration.statistics import TensorStatistics
from edgekit_converters.calibration.watcher import Plan, SampleFailed, Watcher
from edgekit_runtime.session import InferenceFailed

__all__ = ["ShardFailed", "observe_sharded"]

_ENVIRONMENT: Final = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

Feeds = Mapping[str, np.ndarray]
Statistics = dict[str, TensorStatistics]


class ShardFailed(Refused):
    """A process that observed samples ended before it answered."""

    def __init__(self, cause: str) -> None:
        super().__init__(
            f"a process that observed calibration samples ended with {cause}: "
            "see that memory is free, and build again."
        )
        self.cause = cause


@dataclass(frozen=True, kw_only=True)
class _Work:
    """What a process is told first."""

    model: Path
    plan: Plan
    tensors: tuple[str, ...]
    counts: bool
    scratch: Path


@dataclass(frozen=True, kw_only=True)
class _Failure:
    """What a process says in place of asking for the next sample."""

    index: int
    detail: str


def observe_sharded(
    model: Path,
    plan: Plan,
    tensors: Iterable[str],
    samples: Iterable[Feeds],
    *,
    shards: int,
    scratch: Path,
    counts: bool = True,
    advance: Callable[[int], None] = lambda steps: None,
) -> Statistics:
    """Statistics of the tensors, as one `Watcher` in this process would have gathered them.

    Each process runs the model with one thread. Errors: `SampleFailed`, `ShardFailed`.
    """
    work = _Work(model=model, plan=plan, tensors=tuple(tensors), counts=counts, scratch=scratch)
    started: list[_Shard] = []
    try:
        for _ in range(shards):
            started.append(_Shard(work))
        by_connection = {shard.connection: shard for shard in started}
        for sample in enumerate(samples):
            # a process that has not asked yet is busy, one that has ended is ready to tell so
            free = cast(Connection, wait(list(by_connection))[0])
            by_connection[free].hand_over(sample)
            advance(1)
        merged = {name: TensorStatistics(counts=counts) for name in work.tensors}
        for shard in started:
            for name, found in shard.finish().items():
                merged[name].merge(found)
        return merged
    finally:
        for shard in started:
            shard.stop()


class _Shard:
    """A process that observes, as its parent sees it."""

    def __init__(self, work: _Work) -> None:
        self.connection, theirs = Pipe()
        paths = os.pathsep.join(path for path in sys.path if path)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", f"from {__name__} import serve; serve({theirs.fileno()})"],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={**os.environ, **_ENVIRONMENT, "PYTHONPATH": paths},
            )
        with self._telling_its_end():
            self.connection.send(work)

    def hand_over(self, sample: tuple[int, Feeds] | None) -> None:
        """Give it a sample, or the end of them, for which it has asked."""
        with self._telling_its_end():
            request = self.connection.recv()
            if isinstance(request, _Failure):
                raise SampleFailed(request.detail, index=request.index)
            self.connection.send(sample)

    def finish(self) -> Statistics:
        self.hand_over(None)
        with self._telling_its_end():
            return cast(Statistics, self.connection.recv())

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        self.connection.close()

    @contextlib.contextmanager
    def _telling_its_end(self) -> Iterator[None]:
        try:
            yield
        except (EOFError, OSError) as error:
            code = self._process.wait()
            names = {-number: number.name for number in signal.Signals}
            raise ShardFailed(names.get(code, f"code {code}")) from error


def serve(handle: int) -> None:
    """What the process does: observe what comes through a connection, until the end of it."""
    connection = Connection(handle)
    work: _Work = connection.recv()
    statistics = {name: TensorStatistics(counts=work.counts) for name in work.tensors}
    watcher = Watcher(work.model, work.plan, threads=1, scratch=work.scratch)
    connection.send(None)
    while (sample := connection.recv()) is not None:
        index, feeds = sample
        try:
            watcher.enter(feeds, statistics)
        except InferenceFailed as error:
            connection.send(_Failure(index=index, detail=error.detail))
            return
        connection.send(None)
    connection.send(statistics)
