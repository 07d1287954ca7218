"""The bench: full figures of variants, on all samples and with time to be sure.

Invariant: search and choice see what the `Split` selects; what it holds out is run only when the
choice has been made. Results are kept, since profiles share them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Final

import msgspec

from edgekit.build.accuracy import Accuracy, measure_accuracy
from edgekit.build.kitchen import Variant
from edgekit.build.latency import measure_latencies
from edgekit.build.metrics import Metric
from edgekit.build.model_file import ModelFile, Options
from edgekit.build.progress import Progress
from edgekit.build.report import Latency
from edgekit.build.samples import Sample
from edgekit.build.screen import SCREENED, Screen
from edgekit.build.split import Split
from edgekit.build.truths import Truths
from edgekit_runtime.session import Tensors

__all__ = ["Bench"]

_LATENCY_S: Final = 1.0
"""For each variant."""
_LATENCY_FEEDS: Final = 4

_SELECTION_SHARE: Final = 1 / 15
"""Of the search time, what the selection may take with two variants, or `_LEAST_SELECTION_S`:
beyond `_LEAST_SELECTED` samples no more are looked at, or the search would see few variants. What
is held out is run whole."""
_MOST_SELECTION_SHARE: Final = 1 / 10
"""The same for `_WANTED` samples: that many tell a loss of none or one from more than a point."""
_WANTED: Final = 200
_LEAST_SELECTION_S: Final = 1.0
_BESIDE: Final = 1.9
"""Times its own time that float32 takes with variants beside it."""
_LEAST_SELECTED: Final = 128
_CLOSER: Final = 3
"""So many times the samples, where those cannot tell."""


class Bench:
    def __init__(
        self,
        *,
        truth: ModelFile,
        metric: Metric,
        samples: Callable[[], Iterable[Sample]],
        count: int,
        search_time_s: float,
        progress: Progress,
    ) -> None:
        """`truth` is the model as it was given, `count` how many samples there are."""
        self.truth, self.metric = truth, metric
        self._split = Split(samples=count)
        self._series, self._progress = samples, progress
        self._search_time_s = search_time_s
        self._most: int | None = None
        self._sample_s = self._pass_s = 0.0
        self._truths = {part: Truths(truth) for part in (0, 1)}
        self._accuracies: dict[tuple[str, int], Accuracy] = {}
        self._latencies: dict[tuple[object, ...], Latency] = {}
        self._feeds: list[Tensors] = []

    @property
    def holds_out(self) -> bool:
        """Whether there are enough samples to keep half of them from the choice."""
        return self._split.holds_out

    @property
    def samples(self) -> int:
        """All there are, looked at or not."""
        return self._split.samples

    @property
    def looked_at(self) -> int:
        """How many samples search and choice look at; after the screen only `look_closer` changes
        it."""
        selected = self._split.selected
        return selected if self._most is None else min(selected, self._most)

    def selection(self) -> Iterator[Sample]:
        """The samples that search and choice look at, of those that they may see."""
        return self._spread(self._most)

    def accuracies(self, variants: Sequence[Variant]) -> dict[str, Accuracy]:
        """Accuracy of each variant on the selection, by title."""
        return self._measured(
            variants, 0, self.selection, self.looked_at, "running the validation data"
        )

    def look_closer(self) -> None:
        """Look at more of the selection from now on: what was found so far is forgotten."""
        if self.looked_at < self._split.selected and self._most is not None:
            self._most *= _CLOSER
            self._truths[0] = Truths(self.truth)
            self._accuracies = {key: a for key, a in self._accuracies.items() if key[1] != 0}

    def held_out(self, variants: Sequence[Variant]) -> dict[str, Accuracy]:
        """Accuracy on what was held out from the choice, by title; empty where nothing was."""
        if not self.holds_out:
            return {}
        return self._measured(
            variants,
            1,
            lambda: self._split.held_out(self._series()),
            self.samples - self._split.selected,
            "running what was held out",
        )

    @property
    def seen_held_out(self) -> frozenset[bytes]:
        """What tells the feeds of what was held out from others, once it was run."""
        return self._truths[1].seen

    def screen(self, baseline: Variant, options: Options) -> Screen:
        """Quick figures, on a few samples from all over the selection."""
        screen = Screen(
            self._spread(SCREENED),
            truths=Truths(self.truth),
            baseline=baseline.model,
            metric=self.metric,
            options=options,
        )
        self._sample_s = screen.sample_s
        self._pass_s = screen.reading_s * min(SCREENED, self._split.selected)
        if self._most is None:
            most = self._samples_in(self._search_time_s * _MOST_SELECTION_SHARE)
            usual = self._samples_in(self._search_time_s * _SELECTION_SHARE)
            self._most = max(_LEAST_SELECTED, usual, min(_WANTED, most))
        return screen

    def _samples_in(self, seconds: float) -> int:
        """How many samples float32 and two variants run in so long, or in `_LEAST_SELECTION_S`."""
        left_s = max(seconds, _LEAST_SELECTION_S) - self._pass_s
        return int(max(0.0, left_s) / max(self._sample_s * _BESIDE, 1e-9))

    @property
    def selection_s(self) -> float:
        """About how long `accuracies` of the first variants will take, when there has been a
        screen."""
        return self._takes_s(self.looked_at)

    @property
    def closer_s(self) -> float:
        """The same after `look_closer`."""
        return self._takes_s(min(self._split.selected, self.looked_at * _CLOSER))

    @property
    def held_out_s(self) -> float:
        """About how long `held_out` will take, when there has been a screen."""
        return self._takes_s(self.samples - self._split.selected) if self.holds_out else 0.0

    def _takes_s(self, count: int) -> float:
        return self._pass_s + self._sample_s * count * _BESIDE

    def _spread(self, most: int | None) -> Iterator[Sample]:
        """At most so many of those that the choice may see, evenly spread: data may be sorted."""
        count = self._split.selected
        taken = min(count, most) if most is not None else count
        wanted = {index * count // taken for index in range(taken)} if taken else set()
        samples = self._split.selection(self._series())
        return (sample for index, sample in enumerate(samples) if index in wanted)

    def _measured(
        self,
        variants: Sequence[Variant],
        part: int,
        samples: Callable[[], Iterable[Sample]],
        count: int,
        title: str,
    ) -> dict[str, Accuracy]:
        wanted = {v.title: v.model for v in variants if (v.title, part) not in self._accuracies}
        if wanted:
            with self._progress.stage(title, count) as advance:
                found = measure_accuracy(
                    wanted,
                    metric=self.metric,
                    samples=samples,
                    truths=self._truths[part],
                    advance=advance,
                )
            self._accuracies |= {(name, part): accuracy for name, accuracy in found.items()}
        return {v.title: self._accuracies[v.title, part] for v in variants}

    def latencies(
        self, variants: Sequence[Variant], baseline: Variant, options: Options, *, budget_s: float
    ) -> dict[str, Latency]:
        """Latency of each variant against the baseline, by title; about `budget_s` at most."""
        if not self._feeds:
            self._feeds = [s.feeds for s in islice(self.selection(), _LATENCY_FEEDS)]
        keys = {
            v.title: (v.title, baseline.title, options.get(v.kind), options.get(baseline.kind))
            for v in variants
        }
        wanted = {v.title: v.model for v in variants if keys[v.title] not in self._latencies}
        with self._progress.stage(f"measuring latency, {_told(variants, options)}", None):
            found = measure_latencies(
                wanted,
                baseline=baseline.model,
                options=options,
                feeds=self._feeds,
                budget_s=min(_LATENCY_S * len(wanted), budget_s),
            )
        for name, latency in found.items():
            self._latencies[keys[name]] = (
                msgspec.structs.replace(latency, ratio=1.0, low=1.0, high=1.0)
                if name == baseline.title
                else latency
            )
        return {title: self._latencies[key] for title, key in keys.items()}


def _told(variants: Sequence[Variant], options: Options) -> str:
    """Such as "2 threads"."""
    counts = sorted({options[v.kind].threads for v in variants if v.kind in options})
    return f"{' or '.join(map(str, counts))} thread{'s' if counts != [1] else ''}"
