"""The contest of one profile: search, full figures, choice.

Invariant: exactly one candidate is chosen, and every other says why not; those that the search left
out carry the figures of the screen, which are of fewer samples and rounds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Final

import msgspec

from edgekit.build.accuracy import Accuracy
from edgekit.build.bench import Bench
from edgekit.build.choice import Bounds, NothingFits, might_be_faster, settle, time_on_device
from edgekit.build.finals import Finals
from edgekit.build.forecast import Forecast
from edgekit.build.kitchen import Variant
from edgekit.build.model_file import Options
from edgekit.build.plan import ProfilePlan
from edgekit.build.ranking import Ranking
from edgekit.build.report import Candidate, Latency, NodeSensitivity, Outcome
from edgekit.build.request import Objective
from edgekit.build.screen import Trial
from edgekit.build.search import Search
from edgekit.build.timetable import most_timing_s
from edgekit.build.turns import Turns
from edgekit_contract.errors import Refused
from edgekit_converters import external
from edgekit_converters.quantization.sensitivity import NodeNoise

__all__ = ["Contest", "Verdict"]

_CONTENDERS: Final = 4


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """How the contest of a profile ended."""

    winner: Variant
    candidates: tuple[Candidate, ...]
    """The baseline first, what was not planned last."""
    accuracy: Accuracy
    """Of the winner."""
    sensitivity: tuple[NodeSensitivity, ...]
    peak_ram_bytes: int
    """That the winner needs."""
    contenders: tuple[Variant, ...] = ()
    """Those that a measurement on a device might choose; some of them, the likeliest first."""


@dataclass(frozen=True, kw_only=True)
class Contest:
    plan: ProfilePlan
    bench: Bench
    options: Options
    """How this machine runs the profile's runtimes."""
    objective: Objective
    bounds: Bounds
    on_target: bool
    turns: Turns
    search_time_s: float
    peak_ram_bytes: Callable[[Variant], int]
    """Measures what a variant needs."""
    forecast: Forecast | None = None
    """Of the profile's device; None where it is this machine."""

    def hold(self, search: Search) -> Verdict:
        """Errors: `NothingFits`."""
        with closing(search):
            pending = search.explore()
            baseline = search.trials[0]
            if baseline.failure is not None:
                raise Refused(
                    f"the model itself cannot be measured ({baseline.failure}): check model and "
                    "data."
                )
            finals = Finals(search, self.bench, self.bounds)
            ranked = [baseline, *finals.hold(pending)]
        accuracies = self.bench.accuracies([trial.variant for trial in ranked])
        # what cannot be chosen for its accuracy is not timed
        worth = [
            trial.variant
            for trial in ranked
            if trial is baseline or finals.is_tolerable(trial, margin=False)
        ]
        latencies = self.bench.latencies(
            worth,
            baseline.variant,
            self.options,
            budget_s=most_timing_s(self.objective, self.search_time_s),
        )
        judged, peak = self._settled(ranked, accuracies, latencies)
        chosen = next(c for c in judged if c.outcome is Outcome.CHOSEN)
        winner = next(t for t in ranked if t.title == chosen.title)
        held_out, noise = self._held_out(search, winner.variant, baseline.variant)
        judged = tuple(
            msgspec.structs.replace(c, held_out=held_out[c.title].score)
            if c.title in held_out
            else c
            for c in judged
        )
        left_out = [t for t in search.trials if t.title not in accuracies]
        screened = [self._screened(t, winner, chosen, search.ranking) for t in left_out]
        return Verdict(
            winner=winner.variant,
            candidates=(
                *judged,
                *screened,
                *self._skipped(search.untried()),
            ),
            accuracy=accuracies[winner.title],
            sensitivity=_sensitivity(noise, winner.variant),
            peak_ram_bytes=peak,
            contenders=_contenders([*judged, *screened], [*ranked, *left_out]),
        )

    def _held_out(
        self, search: Search, winner: Variant, baseline: Variant
    ) -> tuple[dict[str, Accuracy], tuple[NodeNoise, ...]]:
        """What was held out, run while a child ranks the nodes."""
        if not search.is_rankable(winner.kind):
            return self.bench.held_out([baseline, winner]), ()
        pool = ThreadPoolExecutor(1)
        try:
            noise = self.turns.beside(pool, partial(search.sensitivity, winner.kind))
            return self.bench.held_out([baseline, winner]), noise.result()
        finally:
            pool.shutdown(wait=False)  # after an error the build's end ends the child, too

    def _forecast(self, candidate: Candidate, trial: Trial) -> Candidate:
        """With what is known of its latency on the profile's device."""
        if self.forecast is None or candidate.outcome is Outcome.FAILED:
            return candidate
        return msgspec.structs.replace(
            candidate,
            estimate=self.forecast.estimate(trial.variant),
            figure=self.forecast.figure(trial.variant),
        )

    def _screened(
        self, trial: Trial, winner: Trial, chosen: Candidate, ranking: Ranking
    ) -> Candidate:
        """A trial that did not get as far as full figures."""
        found = self._forecast(_left_out(trial, winner, ranking.ratio, self.on_target), trial)
        by_forecast = self.objective is Objective.LATENCY and not self.on_target
        able = found.outcome is Outcome.LOST and ranking.is_fine(trial)
        is_open = by_forecast and able and might_be_faster(found, chosen)
        return msgspec.structs.replace(found, is_open=is_open)

    def _settled(
        self,
        ranked: Sequence[Trial],
        accuracies: Mapping[str, Accuracy],
        latencies: Mapping[str, Latency],
    ) -> tuple[tuple[Candidate, ...], int]:
        variants = {t.title: t.variant for t in ranked}
        full = [(_full(t, accuracies[t.title], latencies.get(t.title)), t) for t in ranked]
        try:
            return settle(
                [self._forecast(candidate, trial) for candidate, trial in full],
                objective=self.objective,
                bounds=self.bounds,
                on_target=self.on_target,
                peak_of=lambda title: self.peak_ram_bytes(variants[title]),
            )
        except NothingFits as error:
            raise NothingFits(f"{self.plan.profile.name}: {error}") from error

    def _skipped(self, untried: Mapping[str, str]) -> tuple[Candidate, ...]:
        reasons = {**untried, **{s.recipe: s.reason for s in self.plan.skipped}}
        return tuple(
            Candidate(recipe=recipe, outcome=Outcome.SKIPPED, reason=reason)
            for recipe, reason in reasons.items()
        )


def _contenders(judged: Sequence[Candidate], ranked: Sequence[Trial]) -> tuple[Variant, ...]:
    variants = {trial.title: trial.variant for trial in ranked}
    open_ = [c for c in judged if c.is_open]
    # the most accurate first: of what does the same arithmetic, and so takes the same time, it will
    # do; what nothing is known of comes last
    open_.sort(key=lambda c: (-(c.score.value if c.score else 0.0), c.title))
    alike: dict[float, list[str]] = {}
    for candidate in open_:
        known = time_on_device(candidate)
        alike.setdefault(known.ms if known else math.inf, []).append(candidate.title)
    unknown = alike.pop(math.inf, [])
    titles = [*(alike[ms][0] for ms in sorted(alike)), *unknown]
    return tuple(variants[title] for title in titles[:_CONTENDERS])


def _full(trial: Trial, accuracy: Accuracy, latency: Latency | None) -> Candidate:
    variant, failure = trial.variant, trial.variant.failure or accuracy.failure
    if failure is not None:
        return Candidate(
            recipe=variant.recipe.id,
            tuning=variant.tuning,
            outcome=Outcome.FAILED,
            reason=failure,
        )
    return Candidate(
        recipe=variant.recipe.id,
        tuning=variant.tuning,
        outcome=Outcome.LOST,
        size_bytes=external.size_bytes(variant.path),
        score=accuracy.score,
        closeness_db=accuracy.closeness_db,
        latency=latency,
    )


def _left_out(
    trial: Trial, winner: Trial, ratio: Callable[[Trial], float], on_target: bool
) -> Candidate:
    found = _full(trial, trial.accuracy, trial.latency if trial.is_timed else None)
    if found.outcome is Outcome.FAILED:
        return found
    facts = []
    if trial.closeness_db < winner.closeness_db:
        facts.append(f"{winner.closeness_db - trial.closeness_db:.1f} dB noisier")
    if ratio(trial) > ratio(winner):
        facts.append("slower" if on_target else "slower by estimate")
    if trial.size_bytes > winner.size_bytes:
        facts.append("larger")
    told = " and ".join(facts) or "no better"
    return Candidate(
        recipe=found.recipe,
        tuning=found.tuning,
        outcome=Outcome.LOST,
        reason=f"left out after screening: {told} than the chosen",
        size_bytes=found.size_bytes,
        score=found.score,
        closeness_db=found.closeness_db,
        latency=found.latency,
    )


def _sensitivity(found: Iterable[NodeNoise], winner: Variant) -> tuple[NodeSensitivity, ...]:
    return tuple(
        NodeSensitivity(
            node=noise.node,
            operator=noise.operator,
            noise_db=noise.noise_db,
            spared=noise.node in winner.tuning.spared,
            parameters=noise.parameters,
        )
        for noise in found
    )
