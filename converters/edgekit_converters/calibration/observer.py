"""Observe a model's tensors while it runs over samples: one pass, statistics only.

Invariant: of the samples only what `probes` gives out of a few of them is in memory at a time, and
the statistics are the same however the samples are shared out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from itertools import chain
from pathlib import Path

import numpy as np

from edgekit_converters.calibration.shards import observe_sharded
from edgekit_converters.calibration.statistics import TensorStatistics
from edgekit_converters.calibration.watcher import SampleFailed, Watcher, plan_probes
from edgekit_runtime.session import InferenceFailed

__all__ = ["observe"]


def observe(
    model: Path,
    tensors: Sequence[str],
    samples: Iterable[Mapping[str, np.ndarray]],
    *,
    threads: int,
    scratch: Path,
    counts: bool = True,
    shards: int = 1,
    advance: Callable[[int], None] = lambda steps: None,
) -> dict[str, TensorStatistics]:
    """Statistics of each named float tensor of an ONNX model, opset 13 or newer, over samples.

    Tensors that are not float32 or float16 are left out; without `counts` the histograms stay
    empty. With more than one shard the samples are
    shared out to so many processes of one thread each. Errors: `SampleFailed`, `ShardFailed`, and
    those of opening the model.
    """
    stream = iter(samples)
    first = next(stream, None)
    if first is None:
        return {}
    try:
        plan = plan_probes(model, tensors, first, threads=threads, samples=counts)
    except InferenceFailed as error:
        raise SampleFailed(error.detail, index=0) from error
    every = chain([first], stream)
    if shards > 1:
        found = observe_sharded(
            model,
            plan,
            tensors,
            every,
            counts=counts,
            shards=shards,
            scratch=scratch,
            advance=advance,
        )
    else:
        found = {name: TensorStatistics(counts=counts) for name in tensors}
        with closing(Watcher(model, plan, threads=threads, scratch=scratch)) as watcher:
            for index, feeds in enumerate(every):
                try:
                    watcher.enter(feeds, found)
                except InferenceFailed as error:
                    raise SampleFailed(error.detail, index=index) from error
                advance(1)
    return {name: each for name, each in found.items() if each.observations}
