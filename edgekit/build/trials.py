"""Trials: what of a profile's recipes has been made and screened, and the time for more.

Invariant: nothing is made twice; the time is kept, but for the trial that is under way when it
ends; every variant that was made is among the trials with its figures.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

import msgspec

from edgekit.build.kitchen import Kitchen
from edgekit.build.pantry import Base
from edgekit.build.progress import Advance
from edgekit.build.ranking import Ranking
from edgekit.build.screen import Screen, Trial
from edgekit.build.timetable import Deadlines
from edgekit_converters.calibration.estimators import Estimator
from edgekit_converters.recipes.recipe import Recipe
from edgekit_converters.recipes.tuning import UNTUNED, Tuning

__all__ = ["MADE_TOGETHER", "Trials", "differ_in_ranges"]

MADE_TOGETHER: Final = 2
"""Variants that are made at a time."""
_PROMISE: Final = (
    Estimator.MSE,
    Estimator.PERCENTILE,
    Estimator.MEASURED,
    Estimator.MINMAX,
    Estimator.MOVING_AVERAGE,
    Estimator.ENTROPY,
)
"""Which to try first, if the time is short."""


class Trials:
    """Of one profile, the baseline's first."""

    def __init__(
        self,
        recipes: Sequence[Recipe],
        kitchen: Kitchen,
        screen: Screen,
        *,
        ranking: Ranking,
        deadlines: Deadlines,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`recipes` begin with the baseline."""
        self.recipes, self.kitchen, self.ranking = recipes, kitchen, ranking
        self._screen, self._deadlines, self._clock = screen, deadlines, clock
        self.advance: Advance = lambda steps: None
        """Hears of each new one."""
        self.is_explored = False
        """Whether what is tried from now on are reliefs."""
        self.is_cut = False
        """Whether the time was over before exploring was."""
        self.held_s = 0.0
        """Of the time for exploring, what others than the next are to have."""
        self._batch_s = 0.0
        """How long the last recipes took that were tried together."""
        self._trials: dict[str, Trial] = {}

    @property
    def all(self) -> tuple[Trial, ...]:
        """In the order in which they were tried; the baseline first."""
        return tuple(self._trials.values())

    @property
    def best(self) -> list[Trial]:
        """Those that gain something, the best first."""
        return self.ranking.best(self._trials.values())

    def close(self) -> None:
        """End them: memory that they shared is free again."""
        self._screen.close()

    def is_over(self, takes_s: float = 0.0) -> bool:
        """Whether it is too late to begin anything, or what takes so long."""
        ends = self._deadlines
        now = self._clock()
        if self.is_explored:
            return now + takes_s >= ends.relieve_s
        explore_s = ends.refine_s if self._has_sure() else ends.explore_s
        self.is_cut |= now >= explore_s
        return now + takes_s >= explore_s - self.held_s

    def _has_sure(self) -> bool:
        """Whether the best surely keeps the accuracy."""
        return any(map(self.ranking.is_sure, self.best[:1]))

    def now(self) -> float:
        """By the clock of the deadlines."""
        return self._clock()

    def is_late_to_rank(self) -> bool:
        """Whether there is no time to rank the nodes for the report alone."""
        return self._clock() >= self._deadlines.rank_s

    def attempt(
        self, recipe: Recipe, tuning: Tuning = UNTUNED, *, like: Trial | None = None
    ) -> Trial:
        """Make and screen a variant; one that is as fast as another `like` it is not timed."""
        variant = self.kitchen.make(recipe, recipe.heeded(tuning))
        trial = self._screen.trial(variant, like=like)
        if trial.title not in self._trials:
            self.advance(1)
        self._trials[trial.title] = trial
        return trial

    def attempt_all(self, recipes: Iterable[Recipe], *, whatever: bool = False) -> float:
        """In twos, while there is as much time left as the last two took, or `whatever` it takes;
        how many seconds that was. The first two are for any time that is left, unless the best
        surely keeps the accuracy, so that it does without them."""
        pending, began = list(recipes), self._clock()
        took_s = self._batch_s if self._has_sure() else 0.0
        while pending and (whatever or not self.is_over(took_s)):
            batch, pending = pending[:MADE_TOGETHER], pending[MADE_TOGETHER:]
            batch_began = self._clock()
            self.kitchen.make_all((recipe, UNTUNED) for recipe in batch)
            for recipe in batch:
                self.attempt(recipe)
            self._batch_s = took_s = self._clock() - batch_began
        return self._clock() - began

    def turned(self, trial: Trial, *, like: Trial | None = None, **changed: object) -> Trial | None:
        """The same with other choices; None where there is no time for it, or it is no other."""
        recipe, pantry = trial.variant.recipe, self.kitchen.pantry
        tuning = msgspec.structs.replace(trial.variant.tuning, **changed)
        base = Base.of(tuning)
        if self.is_over(pantry.calibrating_s(base) if recipe.needs.estimator else 0.0):
            return None
        if pantry.base(base) is None:
            return None  # there is nothing in this model to smooth, or to equalize
        return self.attempt(recipe, tuning, like=like)

    def make_ahead(self, trial: Trial, changes: Sequence[Mapping[str, object]]) -> None:
        """Make what will probably be asked for next, in twos."""
        if self.is_over():
            return
        recipe = trial.variant.recipe
        tunings = [
            recipe.heeded(msgspec.structs.replace(trial.variant.tuning, **changed))
            for changed in changes
        ]
        self.kitchen.make_all(
            (recipe, tuning)
            for tuning in tunings
            if self.kitchen.pantry.base(Base.of(tuning)) is not None
        )

    def variations(self, recipe: Recipe) -> list[Recipe]:
        """Recipes that vary this one, or what it varies itself: those of more bits, which lose
        less, first; then those that differ least."""
        parent = recipe.varies or recipe.id
        found = [r for r in self.recipes if r is not recipe and parent in (r.id, r.varies)]
        return sorted(
            found,
            key=lambda r: (
                -r.bits,
                not differ_in_ranges(r, recipe),
                _PROMISE.index(r.needs.estimator) if r.needs.estimator else 0,
                r.id,
            ),
        )

    def least_bits(self, recipe: Recipe) -> float:
        """Of its weights, or of those of its variations."""
        return min(one.bits for one in (recipe, *self.variations(recipe)))


def differ_in_ranges(one: Recipe, other: Recipe) -> bool:
    """Whether two recipes make the same graph with other numbers: neither is faster."""
    return (
        one.needs.estimator is not None
        and other.needs.estimator is not None
        and one.id.rpartition("/")[0] == other.id.rpartition("/")[0]
    )
