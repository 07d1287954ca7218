"""The search: which variants are worth full figures.

In rounds, each variant made, run on a few samples and timed briefly (`screen`):
1. the simplest recipe of each family;
2. tuning of those that gain most: what makes them more accurate at no price; the nodes at the
   model's ends, where a switch of number format costs least, kept in the wider format; their
   variations; what may make them faster.
What is left is measured in full, the best by the objective first (`finals`); while that loses too
much accuracy, `Search.relieve` spares the nodes that quantization hurts most
(`edgekit_converters.quantization.sensitivity`).

Invariant: only samples that the choice may see are looked at.
"""

from __future__ import annotations

from typing import Final

import msgspec

from edgekit.build.progress import Progress
from edgekit.build.screen import Trial
from edgekit.build.trials import Trials
from edgekit.build.tuner import Tuner
from edgekit_contract.profile import RuntimeKind
from edgekit_converters.quantization.sensitivity import NodeNoise
from edgekit_converters.recipes.tuning import Knob

__all__ = ["Search"]

_PARENTS: Final = 2
"""Recipes whose variations are tried."""
_OUT_OF_REACH: Final = 1.15
"""Tuning makes hardly anything faster or smaller by more."""


class Search:
    """The search for one profile."""

    def __init__(self, trials: Trials, *, is_asked: bool, progress: Progress) -> None:
        """`is_asked`: the user named the recipes, so each is tried, whatever it takes."""
        self._trials, self._tuner = trials, Tuner(trials)
        self._kitchen, self.ranking = trials.kitchen, trials.ranking
        self._is_asked, self._progress = is_asked, progress

    @property
    def trials(self) -> tuple[Trial, ...]:
        """All that was tried, in that order; the baseline first."""
        return self._trials.all

    def explore(self) -> tuple[Trial, ...]:
        """Search, and give the trials that are worth full figures, the best first."""
        with self._progress.stage("searching", None) as self._trials.advance:
            self.ranking.baseline = self._trials.attempt(self._trials.recipes[0])
            if self._is_asked:
                self._trials.attempt_all(self._trials.recipes[1:], whatever=True)
            else:
                self._explore_families()
        self._trials.is_explored = True
        return self.ranking.finalists(self._trials.all)

    def close(self) -> None:
        """End the search."""
        self._trials.close()

    def is_over(self, takes_s: float = 0.0) -> bool:
        """Whether it is too late to begin anything, or what takes so long."""
        return self._trials.is_over(takes_s)

    def untried(self) -> dict[str, str]:
        """Recipes that were planned and not tried, and why."""
        tried = {trial.variant.recipe.id for trial in self._trials.all}
        able = {trial.variant.recipe.id for trial in self._trials.best}
        return {
            recipe.id: self._tuner.needless.get(recipe.id)
            or (
                f"{recipe.varies} gained too little for variations of it to be tried"
                if recipe.varies in tried and not (self._trials.is_cut and recipe.varies in able)
                else "the search time was over"
            )
            for recipe in self._trials.recipes
            if recipe.id not in tried
        }

    def _explore_families(self) -> None:
        """The best family is tuned before those of which nothing more can be made are tried, or
        where size counts, no variations of as few bits; time is kept for them until a tuned one
        keeps the accuracy."""
        simplest = [r for r in self._trials.recipes[1:] if r.varies is None]
        able = [recipe for recipe in simplest if recipe.knobs]
        kept = simplest
        if self.ranking.by_size:
            # another runtime's variants cost a conversion first: they get what time is over
            first = self._trials.recipes[0].needs.runtime
            kept = [recipe for recipe in simplest if recipe.needs.runtime is first]
            able = [recipe for recipe in able if recipe in kept] or able
            least = min(map(self._trials.least_bits, able), default=0.0)
            able = [recipe for recipe in able if self._trials.least_bits(recipe) <= least]
        others = [recipe for recipe in simplest if recipe not in able]
        # those first of which most can be made, if the time is short
        took_s = self._trials.attempt_all(sorted(able, key=lambda recipe: -len(recipe.knobs)))
        self._trials.held_s = took_s / max(1, len(able)) * len([r for r in others if r in kept])
        tuned = self._tune_families(set(), most=1)
        was_cut = self.is_over()
        self._trials.held_s = 0.0
        self._trials.attempt_all(others)
        for parent in self._trials.best[:_PARENTS]:
            if not parent.variant.recipe.knobs:  # others' are tried when they are tuned
                self._trials.attempt_all(self._trials.variations(parent.variant.recipe))
        # what is over goes on where it was: nothing is made twice
        self._tune_families(set() if was_cut else tuned)

    def _tune_families(self, tuned: set[str], *, most: int | None = None) -> set[str]:
        """Tune the best trial of each family that is not among the `tuned`, and give all that are
        then."""
        for trial in self._promising():
            if most is not None and len(tuned) >= most:
                break
            family = trial.variant.recipe.family
            if family in tuned or not trial.variant.recipe.knobs:
                continue
            if self.is_over() or (tuned and self._is_behind(trial)):
                break
            tuned.add(family)
            self._tuner.tune(trial)
        return tuned

    def relieve(self, trial: Trial, *, part: float) -> Trial | None:
        """A variation of `trial` with as many more of the noisiest nodes spared as leave at most
        `part` of the noise, where that of nodes adds up, or half of the nodes.

        None where there is nothing left to spare, or no time.
        """
        if self.is_over() or Knob.SPARED not in trial.variant.recipe.knobs:
            return None
        spared = trial.variant.tuning.spared
        noisy = [n for n in self._kitchen.noise(trial.variant.kind) if n.node not in spared]
        powers = [10 ** (noise.noise_db / 10) for noise in noisy]
        if len(powers) < 2:
            return None
        enough = (n for n in range(1, len(powers)) if sum(powers[n:]) <= part * sum(powers))
        count = next(enough, len(powers) // 2)
        more = {noise.node for noise in noisy[:count]}
        tuning = msgspec.structs.replace(
            trial.variant.tuning, spared=tuple(sorted({*spared, *more}))
        )
        return self._trials.attempt(trial.variant.recipe, tuning)

    def is_rankable(self, kind: RuntimeKind) -> bool:
        """Whether `sensitivity` has an answer, or there is time to find one: what it needs of DATA
        has then been read."""
        if not self._kitchen.is_ranked(kind):
            if self._trials.is_late_to_rank():
                return False
            self._kitchen.read_samples(kind)
        return True

    def sensitivity(self, kind: RuntimeKind) -> tuple[NodeNoise, ...]:
        """What quantizing each node does; may be called beside what the search's thread does."""
        return self._kitchen.noise(kind)

    def _is_behind(self, trial: Trial) -> bool:
        """Whether the best is so far ahead that tuning will not make this one it."""
        if self.ranking.by_accuracy or self.ranking.by_size:  # variations may be far smaller
            return False
        best, mine = self.ranking.key(self._trials.best[0]), self._family_key(trial)
        return mine[0] > best[0] or mine[1] > _OUT_OF_REACH * best[1]

    def _promising(self) -> list[Trial]:
        """The best, but where size counts the families that go on to the fewest bits first."""
        if not self.ranking.by_size:
            return sorted(self._trials.best, key=self._family_key)
        return sorted(self._trials.best, key=lambda t: self._trials.least_bits(t.variant.recipe))

    def _family_key(self, trial: Trial) -> tuple[float, ...]:
        """Of a trial for all that can be made of it: a bound of size may be kept by variations."""
        recipe = trial.variant.recipe
        part = self._trials.least_bits(recipe) / recipe.bits
        return self.ranking.key(trial, size_part=part)
