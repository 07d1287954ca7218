"""Observe a model's tensors while it runs over samples: one pass, statistics only.

Invariant: one sample is in memory at a time, and of its tensors what `probes` gives out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from edgekit_converters.calibration.statistics import TensorStatistics
from edgekit_converters.calibration.watcher import Watcher, plan_probes

__all__ = ["observe"]


def observe(
    model: Path,
    tensors: Sequence[str],
    samples: Iterable[Mapping[str, np.ndarray]],
    *,
    threads: int,
    scratch: Path,
    advance: Callable[[int], None] = lambda steps: None,
) -> dict[str, TensorStatistics]:
    """Statistics of each named float tensor of an ONNX model, opset 13 or newer, over samples.

    Tensors that are not float32 or float16 are left out. Errors: those of the runtime.
    """
    statistics = {name: TensorStatistics() for name in tensors}
    watcher: Watcher | None = None
    for feeds in samples:
        if watcher is None:
            plan = plan_probes(model, statistics, feeds, threads=threads)
            watcher = Watcher(model, plan, threads=threads, scratch=scratch)
        watcher.enter(feeds, statistics)
        advance(1)
    if watcher is not None:
        watcher.close()
    return {name: found for name, found in statistics.items() if found.observations}
