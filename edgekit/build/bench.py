"""The bench: full figures of variants, on all samples and with time to be sure.

Invariant: all variants see the same samples; results are kept, since profiles share them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Final

import msgspec

from edgekit.build.accuracy import Accuracy, measure_accuracy
from edgekit.build.kitchen import Variant
from edgekit.build.latency import measure_latencies
from edgekit.build.metrics import Metric
from edgekit.build.progress import Progress
from edgekit.build.report import Latency
from edgekit.build.samples import Sample
from edgekit_contract.profile import RuntimeKind
from edgekit_runtime.session import SessionOptions, Tensors

__all__ = ["Bench"]

_LATENCY_S: Final = 0.5
"""For each variant."""
_LATENCY_FEEDS: Final = 4


@dataclass(kw_only=True)
class Bench:
    kind: RuntimeKind
    baseline: Path
    metric: Metric
    samples: Callable[[], Iterable[Sample]]
    count: int | None
    """How many samples there are, for the progress, where that is known."""
    progress: Progress
    samples_seen: int = 0
    _accuracies: dict[str, Accuracy] = field(default_factory=dict)
    _latencies: dict[tuple[str, int], Latency] = field(default_factory=dict)
    _feeds: list[Tensors] = field(default_factory=list)

    def accuracies(self, variants: Sequence[Variant], threads: int) -> dict[str, Accuracy]:
        """Accuracy of each variant, by title."""
        wanted = {v.title: v.path for v in variants if v.title not in self._accuracies}
        if wanted:
            with self.progress.stage("running the validation data", self.count) as advance:
                self._accuracies |= measure_accuracy(
                    wanted,
                    baseline=self.baseline,
                    kind=self.kind,
                    options=SessionOptions(threads=threads),
                    metric=self.metric,
                    samples=self.samples,
                    advance=advance,
                )
            self.samples_seen = max(a.samples for a in self._accuracies.values())
        return {v.title: self._accuracies[v.title] for v in variants}

    def latencies(
        self, variants: Sequence[Variant], threads: int, *, budget_s: float
    ) -> dict[str, Latency]:
        """Latency of each variant against the baseline, by title; about `budget_s` at most."""
        if not self._feeds:
            self._feeds = [s.feeds for s in islice(self.samples(), _LATENCY_FEEDS)]
        wanted = {v.title: v.path for v in variants if (v.title, threads) not in self._latencies}
        title = f"measuring latency, {threads} thread{'s' if threads > 1 else ''}"
        with self.progress.stage(title, None):
            found = measure_latencies(
                wanted,
                baseline=self.baseline,
                kind=self.kind,
                options=SessionOptions(threads=threads),
                feeds=self._feeds,
                budget_s=min(_LATENCY_S * len(wanted), budget_s),
                clock=time.perf_counter,
            )
        for name, latency in found.items():
            itself = wanted[name] == self.baseline
            self._latencies[name, threads] = (
                msgspec.structs.replace(latency, ratio=1.0, low=1.0, high=1.0)
                if itself
                else latency
            )
        return {v.title: self._latencies[v.title, threads] for v in variants}
