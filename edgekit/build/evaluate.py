"""Run variants on data, in the runtime code that devices use: right numbers, how good, how fast.

Invariant: all variants and the baseline see the same samples in the same order; latencies are
measured turn by turn with the baseline, so that a noisy machine is noisy for both.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from edgekit.build.metrics import Meter, Metric, new_meter
from edgekit.build.report import Latency, Score
from edgekit.build.samples import Sample
from edgekit_contract.errors import Refused
from edgekit_contract.profile import RuntimeKind
from edgekit_runtime.session import Session, SessionOptions, Tensors, open_session

__all__ = [
    "Accuracy",
    "Clock",
    "measure_accuracy",
    "measure_latencies",
    "ratio_of",
]

MIN_HELD_OUT: Final = 100
"""Samples from which on half are kept from the choice and used for the report alone."""
_GROUP_BYTES: Final = 1 << 30
"""Model files that are open at a time."""
_ROUND_S: Final = 0.004
"""A round repeats a run until it is at least this long: the clock's jitter is then nothing."""
_MIN_ROUNDS: Final = 15
_MAX_ROUNDS: Final = 200
_LOOK_EVERY: Final = 15
_PRECISE: Final = 0.01
"""Width of the ratio's interval, as a part of it, at which measuring ends early."""
_HOPELESS: Final = 1.2
"""So much slower than the best so far, and sure of it: no need to know it better."""
_BASELINE: Final = ""
"""The baseline's name in a race; no recipe has it."""
_WARM_UP_RUNS: Final = 3
_RESAMPLES: Final = 1000

Clock = Callable[[], float]
Outputs = Mapping[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """What a pass over the data found of one variant."""

    score: Score | None = None
    held_out: Score | None = None
    samples: int = 0
    failure: str | None = None
    """Why the variant is unusable: it does not load, does not run, or gives wrong numbers."""


class _Contestant:
    """A variant during the pass: its session, and its meters while it has not failed."""

    def __init__(
        self,
        name: str,
        path: Path,
        *,
        kind: RuntimeKind,
        options: SessionOptions,
        metric: Metric,
    ) -> None:
        self.name = name
        self.failure: str | None = None
        self.session: Session | None = None
        self.whole: Meter = new_meter(metric)
        self.parts = (new_meter(metric), new_meter(metric))
        self.samples = 0
        try:
            self.session = open_session(kind, path, options)
        except Refused as error:
            self.failure = str(error).rstrip(".")

    def take(self, sample: Sample, baseline: Outputs) -> None:
        """Run a sample and enter the outputs into the meters, unless it has failed before."""
        if self.session is None or self.failure is not None:
            return
        try:
            outputs = self.session.run(sample.feeds)
        except Refused as error:
            self.failure = str(error).rstrip(".")
            return
        self.failure = _wrong(outputs, baseline)
        if self.failure is None:
            for meter in (self.whole, self.parts[self.samples % 2]):
                meter.add(outputs, baseline, sample.labels)
            self.samples += 1

    def result(self) -> Accuracy:
        if self.failure is not None:
            return Accuracy(failure=self.failure)
        if self.samples < MIN_HELD_OUT:
            return Accuracy(score=self.whole.score(), samples=self.samples)
        selection, held_out = (part.score() for part in self.parts)
        return Accuracy(score=selection, held_out=held_out, samples=self.samples)


def _wrong(got: Outputs, baseline: Outputs) -> str | None:
    """What no tolerance excuses: other outputs, shapes or types, or NaN where there was none."""
    if list(got) != list(baseline):
        return f"its outputs are {list(got)}, not {list(baseline)}"
    for name, want in baseline.items():
        array = got[name]
        if array.shape != want.shape or array.dtype != want.dtype:
            return f"output {name!r} is {array.dtype} {list(array.shape)}"
        if array.dtype.kind == "f" and (~np.isfinite(array) & np.isfinite(want)).any():
            return f"output {name!r} has NaN or infinity where float32 has none"
    return None


def measure_accuracy(
    variants: Mapping[str, Path],
    *,
    baseline: Path,
    kind: RuntimeKind,
    options: SessionOptions,
    metric: Metric,
    samples: Callable[[], Iterable[Sample]],
    advance: Callable[[int], None],
) -> dict[str, Accuracy]:
    """Run each variant and the baseline over the samples; the baseline may be among them.

    With `MIN_HELD_OUT` samples or more, every other one is held out from `score`.
    `advance` hears one step per sample and group. Errors: `Refused` where the baseline itself
    fails, or the metric does not fit the data.
    """
    found: dict[str, Accuracy] = {}
    for group in groups(variants):
        reference = open_session(kind, baseline, options)
        contestants = [
            _Contestant(name, variants[name], kind=kind, options=options, metric=metric)
            for name in group
        ]
        # Nothing is timed here: contestants share the cores, each has its own session and meters.
        with ThreadPoolExecutor(max(1, len(os.sched_getaffinity(0)) // options.threads)) as pool:
            for index, sample in enumerate(samples()):
                truth = _truth(reference, sample, index)
                list(pool.map(lambda c, s=sample, t=truth: c.take(s, t), contestants))
                advance(1)
        for contestant in contestants:
            found[contestant.name] = contestant.result()
            if contestant.session is not None:
                contestant.session.close()
        reference.close()
    return found


def _truth(reference: Session, sample: Sample, index: int) -> Outputs:
    try:
        return reference.run(sample.feeds)
    except Refused as error:
        raise Refused(
            f"the model itself fails on sample {index} of the data ({str(error).rstrip('.')}): "
            "check that sample."
        ) from error


def groups(variants: Mapping[str, Path]) -> list[list[str]]:
    """Variants that are open together: as many as `_GROUP_BYTES` of model files allow."""
    grouped: list[list[str]] = []
    used = 0
    for name, path in variants.items():
        size = path.stat().st_size
        if not grouped or used + size > _GROUP_BYTES:
            grouped.append([])
            used = 0
        grouped[-1].append(name)
        used += size
    return grouped


def measure_latencies(
    variants: Mapping[str, Path],
    *,
    baseline: Path,
    kind: RuntimeKind,
    options: SessionOptions,
    feeds: Sequence[Tensors],
    budget_s: float,
    clock: Clock = time.perf_counter,
) -> dict[str, Latency]:
    """Time variants against the baseline, in rounds in which each has its turn.

    About `budget_s` in all. A variant leaves early once its ratio is known well, or is surely much
    worse than the best. Errors: `Refused` where one does not run.
    """
    found: dict[str, Latency] = {}
    names = groups(variants)
    for group in names:
        paths = {_BASELINE: baseline, **{name: variants[name] for name in group}}
        racers = {name: _Racer(path, kind, options, feeds, clock) for name, path in paths.items()}
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in group}
        running = list(group)
        ends = clock() + budget_s / len(names)
        rounds = 0
        while running and (rounds < _MIN_ROUNDS or (clock() < ends and rounds < _MAX_ROUNDS)):
            order = [_BASELINE, *running]
            turn = rounds % len(order)
            tensors = feeds[rounds % len(feeds)]
            spent = {name: racers[name].run(tensors) for name in (*order[turn:], *order[:turn])}
            for name in running:
                times[name].append((spent[_BASELINE], spent[name]))
            rounds += 1
            if rounds % _LOOK_EVERY == 0:
                found |= {name: ratio_of(times[name]) for name in running}
                known = _known(found, running)
                running = [name for name in running if name not in known]
        found |= {name: ratio_of(times[name]) for name in group}
        for racer in racers.values():
            racer.session.close()
    return found


class _Racer:
    """A session and how often it runs in a turn."""

    def __init__(
        self,
        path: Path,
        kind: RuntimeKind,
        options: SessionOptions,
        feeds: Sequence[Tensors],
        clock: Clock,
    ) -> None:
        self.session = open_session(kind, path, options)
        self._clock = clock
        self._repeats = 1
        last = 0.0
        for index in range(_WARM_UP_RUNS):
            last = self.run(feeds[index % len(feeds)])
        self._repeats = max(1, int(_ROUND_S / max(last, 1e-7)))

    def run(self, tensors: Tensors) -> float:
        """Seconds of one run, the mean of a turn."""
        began = self._clock()
        for _ in range(self._repeats):
            self.session.run(tensors)
        return (self._clock() - began) / self._repeats


def _known(found: Mapping[str, Latency], running: Sequence[str]) -> set[str]:
    """Those whose ratio is precise, or whose interval is far above the best's."""
    best = min(latency.high for latency in found.values())
    return {
        name
        for name in running
        if found[name].high - found[name].low < _PRECISE * found[name].ratio
        or found[name].low > _HOPELESS * best
    }


def ratio_of(times: Sequence[tuple[float, float]]) -> Latency:
    """Seconds of (baseline, variant) per round to a latency with the interval of their ratio.

    Source: Efron and Tibshirani, "An introduction to the bootstrap", 1993, section 13.3
    (percentile interval).
    """
    pairs = np.asarray(times, np.float64)
    ratios = pairs[:, 1] / np.maximum(pairs[:, 0], 1e-12)
    random = np.random.default_rng(0)
    resampled = np.median(
        ratios[random.integers(0, len(ratios), (_RESAMPLES, len(ratios)))], axis=1
    )
    low, high = np.quantile(resampled, [0.025, 0.975])
    return Latency(
        median_ms=float(np.median(pairs[:, 1]) * 1e3),
        ratio=float(np.median(ratios)),
        low=float(low),
        high=float(high),
        rounds=len(pairs),
    )
