"""Calibration: one pass over the data, a range for every tensor and estimator.

Invariant: the data are streamed; what is kept of them are statistics and a digest. The model runs
in a child process: one that crashes there costs the ranges, not the build.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import onnx

from edgekit.build.data import Data
from edgekit.build.material import Material
from edgekit.build.progress import Progress
from edgekit.build.samples import FEEDS_DIGEST, DataRejected, Digest
from edgekit.build.shelf import KeptRanges
from edgekit_converters import external, isolation
from edgekit_converters.calibration.apart import observe_apart
from edgekit_converters.calibration.estimators import OF_EXTREMES, Estimator, Range, estimate
from edgekit_converters.calibration.watcher import SampleFailed
from edgekit_converters.quantization.selection import select_static

__all__ = ["Calibration", "Feed", "calibrate"]


_SHARED: Final = 256
"""Samples from which on children share them out: each has to open the model first."""
_CHILDREN: Final = 4
"""At most: each holds the model."""
_LEAST: Final = 16
"""Samples that are observed whatever the time they take,"""
_SAMPLE_S: Final = 120.0
"""and what one may take."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Ranges by estimator and tensor; empty where no recipe asked."""

    ranges: Mapping[Estimator, Mapping[str, Range]] = field(default_factory=dict)
    samples: int = 0
    sha256: str | None = None
    """Digest of the samples, see `samples.Digest`."""
    seen: frozenset[bytes] = frozenset()
    """What tells each sample's feeds from others, see `Sample.digest`."""
    is_cut: bool = False
    """Whether there were more samples than there was time for."""
    failure: str | None = None
    """Why there are no ranges, though recipes asked."""

    @property
    def widest(self) -> Mapping[str, Range]:
        """Ranges that clip nothing, where they were estimated; else others."""
        return self.ranges.get(Estimator.MINMAX) or next(iter(self.ranges.values()), {})


def calibrate(
    material: Material,
    estimators: tuple[Estimator, ...],
    workshop: isolation.Workshop,
    *,
    scratch: Path,
    progress: Progress,
    model: Path | None = None,
    most_s: float = math.inf,
    clock: Callable[[], float] = time.monotonic,
) -> Calibration:
    """Observe a model over the samples that variants are made with; where that would take more than
    `most_s` by the clock, over some from all parts of them.

    `model` is the normalized one where none is given. What is on the shelf is not estimated again.
    Where the child fails, that is the `failure` of the result. Errors: `DataRejected`.
    """
    data = material.calibration_source
    if not estimators or data is None:
        return Calibration()
    model = model or material.normalized.path
    shelf, role = material.shelf, material.calibration_role
    found, is_cut = shelf.ranges(model, estimators, role=role), False
    if len(found) < len(estimators):
        try:
            found, is_cut = _observed(
                material,
                data,
                estimators,
                workshop,
                model=model,
                scratch=scratch,
                progress=progress,
                feed=Feed(material, most_s, clock),
            )
        except (isolation.StepFailed, isolation.StepRefused) as error:
            return Calibration(failure=str(error).rstrip("."))
        if not is_cut:  # another build may have more time
            shelf.keep_ranges(model, found, role=role)
    first = found[estimators[0]]
    return Calibration(
        ranges={estimator: found[estimator].ranges for estimator in estimators},
        samples=first.samples,
        sha256=first.sha256,
        seen=first.seen,
        is_cut=is_cut,
    )


def _observed(
    material: Material,
    data: Data,
    estimators: tuple[Estimator, ...],
    workshop: isolation.Workshop,
    *,
    model: Path,
    scratch: Path,
    progress: Progress,
    feed: Feed,
) -> tuple[dict[Estimator, KeptRanges], bool]:
    """What the estimators say after a pass over the samples, and whether time cut it short."""
    tensors = select_static(onnx.load_model(model), wide=True).observed
    cores = len(os.sched_getaffinity(0))
    is_long = (material.calibration_count or 0) >= _SHARED
    children = min(cores, _CHILDREN) if is_long else 1
    with progress.stage("calibrating", material.calibration_count) as advance:
        try:
            statistics = observe_apart(
                workshop,
                model,
                tensors,
                feed,
                bounds=isolation.limits_for(external.size_bytes(model), timeout_s=_SAMPLE_S),
                threads=max(1, cores // children),
                children=children,
                scratch=scratch,
                counts=not OF_EXTREMES.issuperset(estimators),
                advance=advance,
            )
        except SampleFailed as error:
            raise DataRejected(
                f"the model fails on sample {feed.numbers[error.index]} of {data.title} "
                f"({str(error).rstrip('.')}): check that sample."
            ) from error
    if not feed.samples:
        raise DataRejected(f"{data.title} holds no sample: give at least one.")
    ranges: dict[Estimator, dict[str, Range]] = {estimator: {} for estimator in estimators}
    for estimator, found in ranges.items():
        for name, of_tensor in statistics.items():
            estimated = estimate(of_tensor, estimator)
            if estimated is not None:
                found[name] = estimated
    return (
        {
            estimator: KeptRanges(
                ranges=found,
                samples=feed.samples,
                sha256=feed.digest.hexdigest(),
                seen=frozenset(feed.seen),
            )
            for estimator, found in ranges.items()
        },
        feed.is_cut,
    )


class Feed:
    """The samples' feeds, counted and digested as they go by.

    The first `_LEAST` are given whatever they take. They tell how many more there is time for, and
    of those that follow as many are given, evenly spread where it is known how many there are.
    """

    def __init__(
        self, material: Material, most_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._material, self._most_s, self._clock = material, most_s, clock
        self.digest = Digest()
        self.seen: set[bytes] = set()
        self.samples = 0
        self.is_cut = False
        self.numbers: list[int] = []
        """In DATA, of the samples that went by."""

    def __iter__(self) -> Iterator[Mapping[str, np.ndarray]]:
        began, step, opened_s = self._clock(), 1, 0.0
        for index, sample in enumerate(self._material.calibration_samples()):
            spent_s = self._clock() - began
            if index == 1:
                opened_s = spent_s
            if index == _LEAST:
                step = self._step(spent_s, (spent_s - opened_s) / (_LEAST - 1))
            if index >= _LEAST and (spent_s >= self._most_s or (index - _LEAST) % step):
                self.is_cut = True
                if spent_s >= self._most_s:
                    return
                continue
            self.numbers.append(sample.number)
            self.digest.add(sample)
            self.seen.add(sample.digest()[:FEEDS_DIGEST])
            self.samples += 1
            yield sample.feeds

    def _step(self, spent_s: float, sample_s: float) -> int:
        """Of how many samples that follow the first ones one is taken; sessions opened with the
        very first."""
        count = self._material.calibration_count
        if count is None:
            return 1
        left_s = max(self._most_s - spent_s, 1e-9)
        return max(1, math.ceil((count - _LEAST) * sample_s / left_s))
