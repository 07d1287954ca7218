"""Observation in a child process: a model that brings the runtime down takes no build with it.

Invariant: the child computes only between a sample that it is given and its answer; whatever
becomes of it, it does not outlive `observe_apart`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final, cast

import numpy as np

from edgekit_converters.calibration.observer import observe
from edgekit_converters.calibration.statistics import TensorStatistics
from edgekit_converters.calibration.watcher import SampleFailed
from edgekit_converters.isolation import Limits, Workshop

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
    advance: Callable[[int], None] = lambda steps: None,
) -> dict[str, TensorStatistics]:
    """As `observe`, in a child whose time `bounds` limit for each sample.

    Errors: `SampleFailed`, those of `Workshop.run`.
    """
    arguments = {
        "model": str(model),
        "tensors": tuple(tensors),
        "threads": threads,
        "scratch": str(scratch),
        "counts": counts,
    }
    with workshop.converse("calibration", _SERVE, arguments, bounds) as talk:
        for index, feeds in enumerate(samples):
            talk.say(feeds)
            if (failure := talk.hear()) is not None:
                raise SampleFailed(failure, index=index)
            advance(1)
        talk.say(None)
        return cast(dict[str, TensorStatistics], talk.hear())


def serve(
    connection: Connection,
    model: str,
    tensors: Sequence[str],
    threads: int,
    scratch: str,
    *,
    counts: bool,
) -> None:
    """In the child: observe what comes through the connection, until the end of it."""

    def samples() -> Iterator[Feeds]:
        while (feeds := connection.recv()) is not None:
            yield feeds
            connection.send(None)  # who asks for the next has entered this one

    try:
        found = observe(
            Path(model), tensors, samples(), threads=threads, scratch=Path(scratch), counts=counts
        )
    except SampleFailed as error:
        connection.send(error.detail)
    else:
        connection.send(found)
