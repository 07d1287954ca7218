"""The search: which variants are worth full figures.

In rounds, each variant made, run on a few samples and timed briefly (`screen`):
1. the simplest recipe of each family;
2. tuning of those that gain most: what makes them more accurate at no price; the nodes at the
   model's ends, where a switch of number format costs least, kept in the wider format; their
   variations; what may make them faster.
What is left is measured in full, the best by the objective first (`contest`); while that loses too
much accuracy, `Search.relieve` spares the nodes that quantization hurts most
(`edgekit_converters.quantization.sensitivity`), twice as many each time.

Invariant: only samples that the choice may see are looked at; the time is kept, but for the trial
that is under way when it ends; every variant that was made is in the result with its figures.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from edgekit.build.kitchen import Kitchen
from edgekit.build.pantry import Base
from edgekit.build.progress import Advance, Progress
from edgekit.build.ranking import FASTER, Ranking
from edgekit.build.screen import Screen, Trial
from edgekit_contract.profile import RuntimeKind
from edgekit_converters.calibration.estimators import Estimator
from edgekit_converters.quantization.sensitivity import NodeNoise
from edgekit_converters.recipes.recipe import Recipe
from edgekit_converters.recipes.tuning import UNTUNED, Knob, Tuning

__all__ = ["Deadlines", "Search"]

_MADE_TOGETHER: Final = 2
_PARENTS: Final = 2
"""Recipes whose variations are tried."""
_ENDS: Final = (1, 2, 3, 4)
"""How many of the first nodes are tried in the wider format."""
_OUT_OF_REACH: Final = 1.15
"""Tuning makes hardly anything faster or smaller by more."""

_BASES: Final = (Knob.SMOOTHED, Knob.EQUALIZED, Knob.LEVELLED)
_PROMISE: Final = (
    Estimator.MSE,
    Estimator.PERCENTILE,
    Estimator.MEASURED,
    Estimator.MINMAX,
    Estimator.MOVING_AVERAGE,
    Estimator.ENTROPY,
)
"""Which to try first, if the time is short."""
_ROUNDINGS: Final[Sequence[Mapping[str, object]]] = (
    {"corrected": True},
    {"corrected": True, "reconstructed": True},
)
"""What costs no time on the device, but some here."""


@dataclass(frozen=True, kw_only=True)
class Deadlines:
    """Times by the clock after which nothing more is begun."""

    explore_s: float
    relieve_s: float
    rank_s: float


class Search:
    """The search for one profile."""

    def __init__(
        self,
        recipes: Sequence[Recipe],
        kitchen: Kitchen,
        screen: Screen,
        *,
        ranking: Ranking,
        is_asked: bool,
        deadlines: Deadlines,
        progress: Progress,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`is_asked`: the user named the recipes, so each is tried, whatever it takes."""
        self._recipes, self._kitchen, self._screen = recipes, kitchen, screen
        self._is_asked, self.ranking = is_asked, ranking
        self._deadlines, self._clock, self._progress = deadlines, clock, progress
        self._advance: Advance = lambda steps: None
        self._trials: dict[str, Trial] = {}
        self._is_explored = False
        self._is_cut = False
        """Whether the time was over before exploring was."""
        self._held_s = 0.0
        """Of the time for exploring, what tuning has to leave."""
        self._needless: dict[str, str] = {}
        """Recipes that were left out though there was time, and why."""

    @property
    def trials(self) -> tuple[Trial, ...]:
        """All that was tried, in that order; the baseline first."""
        return tuple(self._trials.values())

    def explore(self) -> tuple[Trial, ...]:
        """Search, and give the trials that are worth full figures, the best first."""
        with self._progress.stage("searching", None) as self._advance:
            self._explore()
        self._is_explored = True
        return self.ranking.finalists(self._trials.values())

    def close(self) -> None:
        """End the search: memory that trials shared is free again."""
        self._screen.close()

    def untried(self) -> dict[str, str]:
        """Recipes that were planned and not tried, and why."""
        tried = {trial.variant.recipe.id for trial in self._trials.values()}
        able = {trial.variant.recipe.id for trial in self.ranking.best(self._trials.values())}
        return {
            recipe.id: self._needless.get(recipe.id)
            or (
                f"{recipe.varies} gained too little for variations of it to be tried"
                if recipe.varies in tried and not (self._is_cut and recipe.varies in able)
                else "the search time was over"
            )
            for recipe in self._recipes
            if recipe.id not in tried
        }

    def _explore(self) -> None:
        self.ranking.baseline = self._try(self._recipes[0])
        if self._is_asked:
            self._try_all(self._recipes[1:])
        else:
            self._explore_families()

    def _explore_families(self) -> None:
        """The best family is tuned before those of which nothing more can be made are tried; time
        is kept for them until a tuned one keeps the accuracy."""
        simplest = [r for r in self._recipes[1:] if r.varies is None]
        able = [recipe for recipe in simplest if recipe.knobs]
        plain = [recipe for recipe in simplest if not recipe.knobs]
        began = self._clock()
        # those first of which most can be made, if the time is short
        self._try_all(sorted(able, key=lambda recipe: -len(recipe.knobs)))
        self._held_s = (self._clock() - began) / max(1, len(able)) * len(plain)
        tuned = self._tune_families(set(), most=1)
        was_cut = self.is_over()
        self._held_s = 0.0
        self._try_all(plain)
        for parent in self.ranking.best(self._trials.values())[:_PARENTS]:
            if not parent.variant.recipe.knobs:  # others' are tried when they are tuned
                self._try_all(self._variations(parent))
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
            self._tune(trial)
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
        return self._try(trial.variant.recipe, tuning)

    def is_rankable(self, kind: RuntimeKind) -> bool:
        """Whether `sensitivity` has an answer, or there is time to find one: what it needs of DATA
        has then been read."""
        if not self._kitchen.is_ranked(kind):
            if self._clock() >= self._deadlines.rank_s:
                return False
            self._kitchen.read_samples(kind)
        return True

    def sensitivity(self, kind: RuntimeKind) -> tuple[NodeNoise, ...]:
        """What quantizing each node does; may be called beside what the search's thread does."""
        return self._kitchen.noise(kind)

    def is_over(self, takes_s: float = 0.0) -> bool:
        """Whether it is too late to begin anything, or what takes so long."""
        ends = self._deadlines
        now = self._clock()
        if self._is_explored:
            return now + takes_s >= ends.relieve_s
        self._is_cut |= now >= ends.explore_s
        return now + takes_s >= ends.explore_s - self._held_s

    def _try_all(self, recipes: Iterable[Recipe]) -> None:
        """In twos, while there is as much time left as the last two took."""
        pending, took_s = list(recipes), 0.0
        while pending and (self._is_asked or not self.is_over(took_s)):
            batch, pending = pending[:_MADE_TOGETHER], pending[_MADE_TOGETHER:]
            began = self._clock()
            self._kitchen.make_all((recipe, UNTUNED) for recipe in batch)
            for recipe in batch:
                self._try(recipe)
            took_s = self._clock() - began

    def _try(self, recipe: Recipe, tuning: Tuning = UNTUNED, *, like: Trial | None = None) -> Trial:
        """Make and screen a variant; one that is as fast as another `like` it is not timed."""
        variant = self._kitchen.make(recipe, recipe.heeded(tuning))
        trial = self._screen.trial(variant, like=like)
        if trial.title not in self._trials:
            self._advance(1)
        self._trials[trial.title] = trial
        return trial

    def _is_behind(self, trial: Trial) -> bool:
        """Whether the best is so far ahead that tuning will not make this one it."""
        if self.ranking.by_accuracy or self.ranking.by_size:  # variations may be far smaller
            return False
        best, mine = (
            self.ranking.key(self.ranking.best(self._trials.values())[0]),
            self._family_key(trial),
        )
        return mine[0] > best[0] or mine[1] > _OUT_OF_REACH * best[1]

    def _promising(self) -> list[Trial]:
        """The best, but where size counts the families that go on to the fewest bits first."""
        best = self.ranking.best(self._trials.values())
        return sorted(best, key=self._least_bits if self.ranking.by_size else self._family_key)

    def _family_key(self, trial: Trial) -> tuple[float, ...]:
        """Of a trial for all that can be made of it: a bound of size may be kept by variations."""
        part = self._least_bits(trial) / trial.variant.recipe.bits
        return self.ranking.key(trial, size_part=part)

    def _least_bits(self, trial: Trial) -> float:
        """Of its weights, or of those of its variations."""
        return min(recipe.bits for recipe in (trial.variant.recipe, *self._variations(trial)))

    def _tune(self, trial: Trial) -> None:
        """Turn one knob after the other, and keep what gains: what makes it faster first, since
        the others are then turned once. How weights are rounded after variations, where the
        accuracy does already and is not that of ranges, too: it then is for those that are
        smaller.
        """
        knobs, best = trial.variant.recipe.knobs, trial
        # what needs ranges beforehand switches number formats at the ends, and pays for it there
        needs = trial.variant.recipe.needs
        has_ends = needs.estimator is not None or needs.samples
        if Knob.SPARED in knobs and has_ends and not self.ranking.by_size:
            best = self._spare_ends(best)
        best = self._turn(best, _BASES)
        if self.ranking.is_fine(best):
            self._held_s = 0.0  # what is kept for others would go to what cannot win
        is_fine = not has_ends and self.ranking.is_fine(best)
        if not is_fine:
            best = self._round(best)
        variations, tried = self._variations(trial), [best]
        if is_fine and self.ranking.by_size:
            variations = self._smaller(variations, best)
        while variations and not self.is_over():
            batch, variations = variations[:_MADE_TOGETHER], variations[_MADE_TOGETHER:]
            tuning = best.variant.tuning
            self._kitchen.make_all((recipe, recipe.heeded(tuning)) for recipe in batch)
            for recipe in batch:
                like = best if _differ_in_ranges(recipe, best.variant.recipe) else None
                better = self.ranking.better if like is None else self.ranking.closer
                tried.append(self._try(recipe, tuning, like=like))
                best = better(best, tried[-1])
                variations = self._not_worse(variations, tried[-1], start=trial)
        if is_fine:
            best = self._round_smallest(best, tried)
        if Knob.WIDE in knobs and not self.ranking.by_size:
            self.ranking.better(best, self._turned(best, wide=True))

    def _turn(self, best: Trial, knobs: Sequence[Knob]) -> Trial:
        for knob in knobs:
            if knob in best.variant.recipe.knobs:
                best = self.ranking.closer(
                    best, self._turned(best, like=best, **{knob.value: True})
                )
        return best

    def _round(self, start: Trial) -> Trial:
        """Change how weights are rounded, where that gains."""
        recipe = start.variant.recipe
        if not recipe.knobs & {Knob.CORRECTED, Knob.RECONSTRUCTED}:
            return start
        if self.is_over(self._kitchen.pantry.observing_s(Base.of(start.variant.tuning))):
            return start
        self._make_ahead(start, _ROUNDINGS)
        best = start
        for changed in _ROUNDINGS:  # what has been made is looked at, though the time be over
            tuning = msgspec.structs.replace(start.variant.tuning, **changed)
            best = self.ranking.closer(best, self._try(recipe, tuning, like=start))
        return best

    def _smaller(self, variations: list[Recipe], fine: Trial) -> list[Recipe]:
        """Those of fewer bits than one that keeps the accuracy."""
        recipe = fine.variant.recipe
        others = [other.id for other in variations if other.bits >= recipe.bits]
        self._needless |= dict.fromkeys(others, f"it is no smaller than {recipe.id}")
        return [other for other in variations if other.id not in others]

    def _not_worse(self, variations: list[Recipe], tried: Trial, *, start: Trial) -> list[Recipe]:
        """Those that may keep the accuracy though `tried` does not, which has fewer bits than the
        `start`: still fewer are of no use, unless smaller is better, or asked for, whatever has to
        be spared for it."""
        recipe = tried.variant.recipe
        is_small = not self.ranking.by_size and self.ranking.is_within(tried)
        if not is_small or recipe.bits >= start.variant.recipe.bits:
            return variations
        if tried.failure is not None or self.ranking.is_mendable(tried):
            return variations
        worse = [other.id for other in variations if other.bits < recipe.bits]
        self._needless |= dict.fromkeys(worse, f"{recipe.id} loses too much with more bits")
        return [other for other in variations if other.id not in worse]

    def _round_smallest(self, best: Trial, tried: Sequence[Trial]) -> Trial:
        """Round the smallest of those that rounding may bring to the accuracy and that are as fast
        as the best; what is larger than one that it does bring there needs none."""
        slowest = self.ranking.ratio(best) + 2 * FASTER
        for trial in sorted(tried, key=lambda one: one.size_bytes):
            is_as_good = trial is best or (
                not self.ranking.by_accuracy
                and (self.ranking.by_size or self.ranking.ratio(trial) <= slowest)
                and self.ranking.is_mendable(trial)
            )
            if is_as_good and self.ranking.is_fine(rounded := self._round(trial)):
                return rounded
        return best

    def _variations(self, trial: Trial) -> list[Recipe]:
        """Recipes that vary a trial's, or what it varies itself: those of more bits, which lose
        less, first; then those that differ least."""
        recipe = trial.variant.recipe
        parent = recipe.varies or recipe.id
        found = [r for r in self._recipes if r is not recipe and parent in (r.id, r.varies)]
        return sorted(
            found,
            key=lambda r: (
                -r.bits,
                not _differ_in_ranges(r, recipe),
                _PROMISE.index(r.needs.estimator) if r.needs.estimator else 0,
                r.id,
            ),
        )

    def _make_ahead(self, trial: Trial, changes: Sequence[Mapping[str, object]]) -> None:
        """Make what will probably be asked for next, in twos."""
        if self.is_over():
            return
        recipe = trial.variant.recipe
        tunings = [
            recipe.heeded(msgspec.structs.replace(trial.variant.tuning, **changed))
            for changed in changes
        ]
        self._kitchen.make_all(
            (recipe, tuning)
            for tuning in tunings
            if self._kitchen.pantry.base(Base.of(tuning)) is not None
        )

    def _turned(
        self, trial: Trial, *, like: Trial | None = None, **changed: object
    ) -> Trial | None:
        recipe, pantry = trial.variant.recipe, self._kitchen.pantry
        tuning = msgspec.structs.replace(trial.variant.tuning, **changed)
        base = Base.of(tuning)
        if self.is_over(pantry.calibrating_s(base) if recipe.needs.estimator else 0.0):
            return None
        if pantry.base(base) is None:
            return None  # there is nothing in this model to smooth, or to equalize
        return self._try(recipe, tuning, like=like)

    def _spare_ends(self, best: Trial) -> Trial:
        """Keep the first few nodes, and the last, in the wider format, where that gains."""
        names = self._kitchen.layers(best.variant.kind)
        start = best
        for at, count in enumerate(_ENDS):
            if count >= len(names) / 2:
                break
            if at % _MADE_TOGETHER == 0:
                counts = _ENDS[at : at + _MADE_TOGETHER]
                self._make_ahead(start, [{"spared": tuple(sorted(names[:n]))} for n in counts])
            other = self._turned(start, spared=tuple(sorted(names[:count])))
            if (
                other is None
                or other.failure
                or self.ranking.ratio(other) > self.ranking.ratio(best) + 3 * FASTER
            ):
                break
            best = self.ranking.better(best, other)
        if len(names) > 2:
            spared = {*best.variant.tuning.spared, names[-1]}
            best = self.ranking.better(best, self._turned(best, spared=tuple(sorted(spared))))
        return best


def _differ_in_ranges(one: Recipe, other: Recipe) -> bool:
    """Whether two recipes make the same graph with other numbers: neither is faster."""
    return (
        one.needs.estimator is not None
        and other.needs.estimator is not None
        and one.id.rpartition("/")[0] == other.id.rpartition("/")[0]
    )
