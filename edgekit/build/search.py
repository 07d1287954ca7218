"""The search: make every planned variant, measure it, and leave the rest to the choice.

Invariant: a variant is made in a child process and is used only after it has loaded and run there;
whatever goes wrong with one is its reason for losing, never the build's.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec

from edgekit.build.evaluate import Accuracy, measure_accuracy, measure_latencies
from edgekit.build.metrics import Metric
from edgekit.build.plan import ProfilePlan
from edgekit.build.progress import Progress
from edgekit.build.report import Candidate, Latency, Outcome
from edgekit.build.samples import Sample
from edgekit_contract.errors import Refused
from edgekit_contract.profile import RuntimeKind
from edgekit_converters import isolation
from edgekit_converters.calibration.estimators import Estimator, Range
from edgekit_converters.recipes import find_recipe
from edgekit_converters.recipes.recipe import Ingredients, Recipe
from edgekit_runtime.session import SessionOptions, Tensors, open_session

__all__ = ["Kitchen", "Variant", "make_variants", "measure_variants"]

_MAKE_TIMEOUT_S: Final = 120.0
_MAKERS: Final = 2
"""Children at a time: each holds a few copies of the model."""
_LATENCY_BUDGET_S: Final = 0.5
_LATENCY_FEEDS: Final = 4


@dataclass(frozen=True, kw_only=True)
class Kitchen:
    """What variants are made from."""

    given: Path
    normalized: Path
    feeds: Path
    """Tensor file of one sample: what a variant must run on before it is believed."""
    ranges: Mapping[Estimator, Mapping[str, Range]]
    scratch: Path


@dataclass(frozen=True, kw_only=True)
class Variant:
    recipe: Recipe
    path: Path
    failure: str | None = None
    """Why there is no usable file at `path`."""


def make_variants(
    recipes: Sequence[Recipe], kitchen: Kitchen, *, progress: Progress
) -> dict[str, Variant]:
    """Variants by recipe id. A recipe that fails yields a variant with its reason."""
    with (
        progress.stage("making variants", len(recipes)) as advance,
        ThreadPoolExecutor(_MAKERS) as pool,
    ):
        made = {}
        for variant in pool.map(lambda recipe: _make(recipe, kitchen), recipes):
            made[variant.recipe.id] = variant
            advance(1)
    return made


def _make(recipe: Recipe, kitchen: Kitchen) -> Variant:
    out = kitchen.scratch / f"{recipe.id.replace('/', '_')}.onnx"
    estimator = recipe.needs.estimator
    ranges = kitchen.ranges.get(estimator, {}) if estimator is not None else {}
    arguments = {
        "recipe": recipe.id,
        "given": str(kitchen.given),
        "normalized": str(kitchen.normalized),
        "ranges": {name: (r.low, r.high) for name, r in ranges.items()},
        "feeds": str(kitchen.feeds),
        "out": str(out),
    }
    bounds = isolation.limits_for(kitchen.given.stat().st_size, timeout_s=_MAKE_TIMEOUT_S)
    try:
        isolation.run(recipe.id, "edgekit.build.search:make", arguments, bounds)
    except Refused as error:
        return Variant(recipe=recipe, path=out, failure=_reason(error, out))
    return Variant(recipe=recipe, path=out)


def _reason(error: Refused, out: Path) -> str:
    """Without names of scratch files and the runtime's codes."""
    text = re.sub(r"\[ONNXRuntimeError\] : \d+ : \w+ : ", "", str(error))
    return text.replace(f"{out.name} does not load", "does not load").rstrip(".")


def make(
    *, recipe: str, given: str, normalized: str, ranges: Mapping[str, Any], feeds: str, out: str
) -> None:
    """In the child: make one variant, load it and run it once. Errors: whatever goes wrong."""
    from edgekit_converters.tensorfile import read_tensors

    find_recipe(recipe).make(
        Ingredients(
            given=Path(given),
            normalized=Path(normalized),
            ranges={name: Range(low, high) for name, (low, high) in ranges.items()},
            out=Path(out),
        )
    )
    open_session(RuntimeKind.ONNXRUNTIME, Path(out)).run(read_tensors(Path(feeds)))


@dataclass(kw_only=True)
class Bench:
    """What variants are measured on; results are kept, since profiles share them."""

    kind: RuntimeKind
    baseline: Path
    metric: Metric
    samples: Callable[[], Iterable[Sample]]
    count: int | None
    """How many samples there are, for the progress, where that is known."""
    progress: Progress
    search_time_s: float
    samples_seen: int = 0
    _accuracies: dict[str, Accuracy] = field(default_factory=dict)
    _latencies: dict[tuple[str, int], Latency] = field(default_factory=dict)
    _feeds: list[Tensors] = field(default_factory=list)

    def accuracies(self, variants: Mapping[str, Variant], threads: int) -> dict[str, Accuracy]:
        """Accuracy of each variant that was made."""
        wanted = {
            name: variant.path
            for name, variant in variants.items()
            if variant.failure is None and name not in self._accuracies
        }
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
        return {name: self._accuracies[name] for name in variants if name in self._accuracies}

    def latencies(self, variants: Mapping[str, Variant], threads: int) -> dict[str, Latency]:
        """Latency of each variant against the baseline."""
        if not self._feeds:
            chosen = zip(range(_LATENCY_FEEDS), self.samples(), strict=False)
            self._feeds = [sample.feeds for _, sample in chosen]
        wanted = [name for name in variants if (name, threads) not in self._latencies]
        title = f"measuring latency, {threads} thread{'s' if threads > 1 else ''}"
        budget_s = min(_LATENCY_BUDGET_S * len(wanted), self.search_time_s / 2)
        with self.progress.stage(title, None):
            found = measure_latencies(
                {name: variants[name].path for name in wanted},
                baseline=self.baseline,
                kind=self.kind,
                options=SessionOptions(threads=threads),
                feeds=self._feeds,
                budget_s=budget_s,
                clock=time.perf_counter,
            )
        for name, latency in found.items():
            itself = variants[name].path == self.baseline
            self._latencies[name, threads] = (
                msgspec.structs.replace(latency, ratio=1.0, low=1.0, high=1.0)
                if itself
                else latency
            )
        return {name: self._latencies[name, threads] for name in variants}


def measure_variants(
    plan: ProfilePlan,
    made: Mapping[str, Variant],
    bench: Bench,
    *,
    threads: int,
    max_drop: float,
) -> tuple[Candidate, ...]:
    """A profile's candidates with their figures, the baseline first, the skipped last.

    The latency of a variant that cannot be chosen for its accuracy is not measured.
    """
    variants = {recipe.id: made[recipe.id] for recipe in plan.recipes}
    accuracies = bench.accuracies(variants, threads)
    baseline = accuracies[plan.recipes[0].id]
    worth = {
        name: variants[name]
        for name, accuracy in accuracies.items()
        if accuracy.failure is None
        and (
            accuracy.score is None
            or baseline.score is None
            or accuracy.score.value >= baseline.score.value - max_drop - 1e-12
        )
    }
    latencies = bench.latencies(worth, threads)
    skipped = tuple(
        Candidate(recipe=s.recipe, outcome=Outcome.SKIPPED, reason=s.reason) for s in plan.skipped
    )
    return (
        *(_candidate(v, accuracies.get(name), latencies.get(name)) for name, v in variants.items()),
        *skipped,
    )


def _candidate(variant: Variant, accuracy: Accuracy | None, latency: Latency | None) -> Candidate:
    failure = variant.failure or (accuracy.failure if accuracy else None)
    if failure is not None:
        return Candidate(recipe=variant.recipe.id, outcome=Outcome.FAILED, reason=failure)
    assert accuracy is not None
    return Candidate(
        recipe=variant.recipe.id,
        outcome=Outcome.LOST,
        size_bytes=variant.path.stat().st_size,
        score=accuracy.score,
        held_out=accuracy.held_out,
        latency=latency,
    )
