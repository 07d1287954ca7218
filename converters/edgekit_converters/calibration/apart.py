"""Observation in child processes: a model that brings the runtime down takes no build with it.

Invariant: a child computes only between a sample that it is given and its answer; whatever becomes
of it, it does not outlive `observe_apart`. Statistics do not depend on how many children share the
samples out: merging is exact, and what a sample adds follows from it and the first one alone.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final, cast

import numpy as np

from edgekit_converters.calibration.observer import observe
from edgekit_converters.calibration.statistics import TensorStatistics
from edgekit_converters.calibration.watcher import SampleFailed
from edgekit_converters.isolation import Conversation, Limits, Workshop

__all__ = ["observe_apart"]

Feeds = Mapping[str, np.ndarray]

_SERVE: Final = "edgekit_converters.calibration.apart:serve"


def observe_apart(
    workshop: Workshop,
    model: Path,
    tensors: Sequence[str],
    samples: Iterable[Feeds],
    *,
    bounds: Limits,
    threads: int,
    scratch: Path,
    counts: bool = True,
    children: int = 1,
    advance: Callable[[int], None] = lambda steps: None,
) -> dict[str, TensorStatistics]:
    """As `observe`, in `children` that take turns, each with so many threads; `bounds` limit their
    time for a sample.

    Errors: `SampleFailed`, those of `Workshop.run`.
    """
    stream = iter(samples)
    first = next(stream, None)
    if first is None:
        return {}
    arguments = {
        "model": str(model),
        "tensors": tuple(tensors),
        "threads": threads,
        "scratch": str(scratch),
        "counts": counts,
    }
    with contextlib.ExitStack() as stack:
        talks = [
            stack.enter_context(workshop.converse("calibration", _SERVE, arguments, bounds))
            for _ in range(children)
        ]
        for talk in talks:
            talk.say(first)
        busy: deque[tuple[int, Conversation]] = deque()
        for index, feeds in enumerate(chain([first], stream)):
            talk = talks[index % children]
            talk.say(feeds)
            busy.append((index, talk))
            if len(busy) == children:  # nothing is asked for that nobody is free to take
                _await_answer(*busy.popleft(), advance)
        for index, talk in busy:
            _await_answer(index, talk, advance)
        return _merged(talks)


def _await_answer(index: int, talk: Conversation, advance: Callable[[int], None]) -> None:
    if (failure := talk.hear()) is not None:
        raise SampleFailed(failure, index=index)
    advance(1)


def _merged(talks: Sequence[Conversation]) -> dict[str, TensorStatistics]:
    merged: dict[str, TensorStatistics] = {}
    for talk in talks:
        talk.say(None)
    for talk in talks:
        for name, found in cast(dict[str, TensorStatistics], talk.hear()).items():
            if name in merged:
                merged[name].merge(found)
            else:
                merged[name] = found
    return merged


def serve(
    connection: Connection,
    model: str,
    tensors: Sequence[str],
    threads: int,
    scratch: str,
    *,
    counts: bool,
) -> None:
    """In the child: plan by what comes through the connection first, and observe the rest, until
    the end of it."""
    typical = connection.recv()

    def samples() -> Iterator[Feeds]:
        while (feeds := connection.recv()) is not None:
            yield feeds
            connection.send(None)  # who asks for the next has entered this one

    try:
        found = observe(
            Path(model),
            tensors,
            samples(),
            threads=threads,
            scratch=Path(scratch),
            counts=counts,
            planned_by=typical,
        )
    except SampleFailed as error:
        connection.send(error.detail)
    else:
        connection.send(found)
