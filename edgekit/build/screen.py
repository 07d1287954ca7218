"""The screen: quick figures of a variant, on a few samples of those that the choice may see.

Invariant: nothing held out from the choice is looked at; samples and the baseline's outputs are
kept within `_KEPT_BYTES`. Figures are good for leaving variants out, not for choosing one.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Final

from edgekit.build.accuracy import Accuracy, Contestant
from edgekit.build.kitchen import Variant
from edgekit.build.latency import race
from edgekit.build.metrics import Metric, Outputs
from edgekit.build.model_file import ModelFile, Options
from edgekit.build.report import Latency
from edgekit.build.samples import Sample
from edgekit.build.truths import Truths
from edgekit_contract import limits
from edgekit_converters import external
from edgekit_runtime.session import Session, SessionOptions, Tensors

__all__ = ["SCREENED", "Screen", "Trial"]

_KEPT_BYTES: Final = 64 * limits.MIB
SCREENED: Final = 32
"""Samples at most."""
_LEAST: Final = 8
_BASELINE_S: Final = 1.0
"""How long the baseline and the reading of the samples may take, once there are a few."""
_VARIANT_S: Final = 1.0
"""The same for a variant; one that is so slow is compared on fewer."""
_OPEN_BYTES: Final = 256 * limits.MIB
"""A baseline that is no larger stays open: each variant is timed beside it."""
_RACE_S: Final = 0.2
_RACE_PATIENCE_S: Final = 0.5
_RACE_FEEDS: Final = 4


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A variant and its quick figures."""

    variant: Variant
    accuracy: Accuracy
    latency: Latency | None = None
    is_timed: bool = True
    """Whether `latency` is its own, not that of the trial that it is like."""
    size_bytes: int = 0

    @property
    def title(self) -> str:
        return self.variant.title

    @property
    def failure(self) -> str | None:
        return self.variant.failure or self.accuracy.failure

    @property
    def ratio(self) -> float:
        """Time to the baseline's; 1 where nothing was measured."""
        return self.latency.ratio if self.latency is not None else 1.0

    @property
    def closeness_db(self) -> float:
        return self.accuracy.closeness_db if self.accuracy.closeness_db is not None else 0.0


class _Reading:
    """What is read, and how long that takes."""

    def __init__(self, samples: Iterable[Sample]) -> None:
        self._samples = iter(samples)
        self.last_s = self.spent_s = 0.0

    def __iter__(self) -> Iterator[Sample]:
        return self

    def __next__(self) -> Sample:
        began = time.perf_counter()
        sample = next(self._samples)
        self.last_s = time.perf_counter() - began
        self.spent_s += self.last_s
        return sample


class Screen:
    """Samples, and what the baseline makes of them."""

    def __init__(
        self,
        samples: Iterable[Sample],
        *,
        truths: Truths,
        baseline: ModelFile,
        metric: Metric,
        options: Options,
    ) -> None:
        """Takes samples until there are enough of them; `truths` are the given model's outputs, and
        `baseline` is what variants are timed against."""
        self._baseline, self._metric, self._options = baseline, metric, options
        self._kept: list[tuple[Sample, Outputs]] = []
        self._trials: dict[tuple[str, object], Trial] = {}
        self._open: Session | None = None
        spent: list[float] = []
        kept_bytes = 0
        reading = _Reading(samples)
        began = time.perf_counter()
        for sample, outputs in truths.along(islice(reading, SCREENED)):
            spent.append(time.perf_counter() - began - reading.last_s)
            kept_bytes += sum(array.nbytes for array in sample.feeds.values())
            self._kept.append((sample, outputs))
            enough = len(self._kept) >= _LEAST and sum(spent) + reading.spent_s > _BASELINE_S
            if enough or kept_bytes > _KEPT_BYTES:
                break
            began = time.perf_counter()
        self.sample_s = statistics.fmean(spent[1:] or spent) if spent else 0.0
        """Seconds for running the baseline on a sample, the mean without the first, which opens a
        session."""
        self.reading_s = reading.spent_s / max(1, len(self._kept))
        """The same for reading one, and those that lie between it and the one before."""

    @property
    def feeds(self) -> list[Tensors]:
        """A few samples to time with."""
        return [sample.feeds for sample, _ in self._kept[:_RACE_FEEDS]]

    def trial(self, variant: Variant, *, like: Trial | None = None) -> Trial:
        """The figures of a variant, measured once; its latency is that of `like`, if given."""
        key = (variant.recipe.id, variant.tuning)
        if key not in self._trials:
            self._trials[key] = self._measured(variant, like)
        return self._trials[key]

    def _measured(self, variant: Variant, like: Trial | None) -> Trial:
        if variant.failure is not None:
            return Trial(variant=variant, accuracy=Accuracy(failure=variant.failure))
        contestant = Contestant(
            variant.title,
            variant.model,
            options=self._options.get(variant.kind, SessionOptions()),
            metric=self._metric,
        )
        began = time.perf_counter()
        for number, (sample, outputs) in enumerate(self._kept):
            contestant.take(sample, outputs)
            if number >= _LEAST and time.perf_counter() - began > _VARIANT_S:
                break
        latency = like.latency if like is not None else None
        try:
            if like is None and contestant.session is not None and contestant.failure is None:
                latency = self._timed(variant, contestant.session)
        finally:
            accuracy = contestant.close()
        if accuracy.failure is not None:
            return Trial(variant=variant, accuracy=accuracy)
        return Trial(
            variant=variant,
            accuracy=accuracy,
            latency=latency,
            is_timed=like is None,
            size_bytes=external.size_bytes(variant.path),
        )

    def _timed(self, variant: Variant, session: Session) -> Latency:
        """Against the baseline, which stays open if it is small."""
        if self._open is None:
            self._open = self._baseline.open_by(self._options)
        racer = {variant.title: self._open if variant.model == self._baseline else session}
        try:
            found = race(
                racer,
                baseline=self._open,
                feeds=self.feeds,
                budget_s=_RACE_S,
                patience_s=_RACE_PATIENCE_S,
                settling_s=0.0,
            )
        finally:
            if self._baseline.size_bytes > _OPEN_BYTES:
                self.close()
        return found[variant.title]

    def close(self) -> None:
        """Close the baseline; whatever is timed later opens it again."""
        if self._open is not None:
            self._open.close()
            self._open = None
