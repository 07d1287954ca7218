"""Observe a model's tensors while it runs over samples: one pass, statistics only.

Invariant: of the samples only what `probes` gives out of a few of them is in memory at a time, and
the statistics are the same in whatever order the samples come.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from itertools import chain
from pathlib import Path

import numpy as np

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
    planned_by: Mapping[str, np.ndarray] | None = None,
) -> dict[str, TensorStatistics]:
    """Statistics of each named float tensor of an ONNX model, opset 13 or newer, over samples.

    Tensors that are not float32 or float16 are left out; without `counts` the histograms stay
    empty. What is told of a tensor depends on its shape for the first sample, or for `planned_by`:
    those that share samples out plan by the same one. Errors: `SampleFailed`, and those of opening
    the model.
    """
    stream = iter(samples)
    first = next(stream, None)
    if first is None:
        return {}
    typical = first if planned_by is None else planned_by
    try:
        plan = plan_probes(model, tensors, typical, threads=threads, samples=counts)
    except InferenceFailed as error:
        raise SampleFailed(error.detail, index=0) from error
    found = {name: TensorStatistics(counts=counts) for name in tensors}
    with closing(Watcher(model, plan, threads=threads, scratch=scratch)) as watcher:
        for index, feeds in enumerate(chain([first], stream)):
            try:
                watcher.enter(feeds, found)
            except InferenceFailed as error:
                raise SampleFailed(error.detail, index=index) from error
    return {name: each for name, each in found.items() if each.observations}
