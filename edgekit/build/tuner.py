"""The tuner: turns the knobs of one recipe after the other, and keeps what gains.

Invariant: what makes a variant faster is turned first, since the others are then turned once; what
costs nothing on a device is kept for less than what costs time or bytes there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from edgekit.build.pantry import Base
from edgekit.build.ranking import FASTER
from edgekit.build.screen import Trial
from edgekit.build.trials import MADE_TOGETHER, Trials, differ_in_ranges
from edgekit_converters.recipes.recipe import Recipe
from edgekit_converters.recipes.tuning import Knob

__all__ = ["Tuner"]

_ENDS: Final = (1, 2, 3, 4)
"""How many of the first nodes are tried in the wider format."""
_BASES: Final = (Knob.SMOOTHED, Knob.EQUALIZED, Knob.LEVELLED)
_ROUNDINGS: Final[Sequence[Mapping[str, object]]] = (
    {"corrected": True},
    {"corrected": True, "reconstructed": True},
)
"""What costs no time on the device, but some here."""


class Tuner:
    """Of one profile's trials."""

    def __init__(self, trials: Trials) -> None:
        self._trials, self._kitchen, self._ranking = trials, trials.kitchen, trials.ranking
        self.needless: dict[str, str] = {}
        """Recipes that were left out though there was time, and why."""

    def tune(self, trial: Trial) -> None:
        """Turn one knob after the other, and keep what gains: what makes it faster first, since
        the others are then turned once. How weights are rounded after variations, where the
        accuracy does already and is not that of ranges, too: it then is for those that are
        smaller.
        """
        knobs, best = trial.variant.recipe.knobs, trial
        # what needs ranges beforehand switches number formats at the ends, and pays for it there
        needs = trial.variant.recipe.needs
        has_ends = needs.estimator is not None or needs.samples
        if Knob.SPARED in knobs and has_ends and not self._ranking.by_size:
            best = self._spare_ends(best)
        best = self._turn(best, _BASES)
        if self._ranking.is_fine(best):
            self._trials.held_s = 0.0  # what is kept for others would go to what cannot win
        is_fine = not has_ends and self._ranking.is_fine(best)
        if not is_fine:
            best = self._round(best)
        variations, tried = self._trials.variations(trial.variant.recipe), [best]
        if is_fine and self._ranking.by_size:
            variations = self._smaller(variations, best)
        # with other ranges the same weights are rounded in no time
        is_slow = best.variant.tuning.is_rounded and not has_ends
        took_s = self._rounding_s(best) if is_slow else 0.0
        while variations and not self._trials.is_over(took_s):
            began = self._trials.now()
            batch, variations = variations[:MADE_TOGETHER], variations[MADE_TOGETHER:]
            tuning = best.variant.tuning
            self._kitchen.make_all((recipe, recipe.heeded(tuning)) for recipe in batch)
            for recipe in batch:
                like = best if differ_in_ranges(recipe, best.variant.recipe) else None
                better = self._ranking.better if like is None else self._ranking.closer
                tried.append(self._trials.attempt(recipe, tuning, like=like))
                best = better(best, tried[-1])
                variations = self._not_worse(variations, tried[-1], start=trial)
            took_s = self._trials.now() - began
        if is_fine:
            best = self._round_smallest(best, tried)
        if Knob.WIDE in knobs and not self._ranking.by_size:
            self._ranking.better(best, self._trials.turned(best, wide=True))

    def _turn(self, best: Trial, knobs: Sequence[Knob]) -> Trial:
        for knob in knobs:
            if knob in best.variant.recipe.knobs:
                best = self._ranking.closer(
                    best, self._trials.turned(best, like=best, **{knob.value: True})
                )
        return best

    def _round(self, start: Trial) -> Trial:
        """Change how weights are rounded, where that gains."""
        recipe = start.variant.recipe
        if not recipe.knobs & {Knob.CORRECTED, Knob.RECONSTRUCTED}:
            return start
        if self._trials.is_over(self._rounding_s(start)):
            return start
        self._trials.make_ahead(start, _ROUNDINGS)
        best = start
        for changed in _ROUNDINGS:  # what has been made is looked at, though the time be over
            tuning = msgspec.structs.replace(start.variant.tuning, **changed)
            best = self._ranking.closer(best, self._trials.attempt(recipe, tuning, like=start))
        return best

    def _rounding_s(self, trial: Trial) -> float:
        return self._kitchen.pantry.rounding_s(Base.of(trial.variant.tuning))

    def _smaller(self, variations: list[Recipe], fine: Trial) -> list[Recipe]:
        """Those of fewer bits than one that keeps the accuracy."""
        recipe = fine.variant.recipe
        others = [other.id for other in variations if other.bits >= recipe.bits]
        self.needless |= dict.fromkeys(others, f"it is no smaller than {recipe.id}")
        return [other for other in variations if other.id not in others]

    def _not_worse(self, variations: list[Recipe], tried: Trial, *, start: Trial) -> list[Recipe]:
        """Those that may keep the accuracy though `tried` does not, which has fewer bits than the
        `start`: still fewer are of no use, unless smaller is better, or asked for, whatever has to
        be spared for it."""
        recipe = tried.variant.recipe
        is_small = not self._ranking.by_size and self._ranking.is_within(tried)
        if not is_small or recipe.bits >= start.variant.recipe.bits:
            return variations
        if tried.failure is not None or self._ranking.is_mendable(tried):
            return variations
        worse = [other.id for other in variations if other.bits < recipe.bits]
        self.needless |= dict.fromkeys(worse, f"{recipe.id} loses too much with more bits")
        return [other for other in variations if other.id not in worse]

    def _round_smallest(self, best: Trial, tried: Sequence[Trial]) -> Trial:
        """Round the smallest of those that rounding may bring to the accuracy and that may be as
        fast as the best; what is larger than one that it does bring there needs none."""
        slowest = self._ranking.ratio(best) + 2 * FASTER
        for trial in sorted(tried, key=lambda one: one.size_bytes):
            fastest = self._ranking.ratio(trial) - self._ranking.doubt(trial)
            is_as_good = trial is best or (
                not self._ranking.by_accuracy
                and (self._ranking.by_size or fastest <= slowest)
                and self._ranking.is_mendable(trial)
            )
            if is_as_good and self._ranking.is_fine(rounded := self._round(trial)):
                return rounded
        return best

    def _spare_ends(self, best: Trial) -> Trial:
        """Keep the first few nodes, and the last, in the wider format, where that gains."""
        names = self._kitchen.layers(best.variant.kind)
        start = best
        for at, count in enumerate(_ENDS):
            if count >= len(names) / 2:
                break
            if at % MADE_TOGETHER == 0:
                counts = _ENDS[at : at + MADE_TOGETHER]
                self._trials.make_ahead(
                    start, [{"spared": tuple(sorted(names[:n]))} for n in counts]
                )
            other = self._trials.turned(start, spared=tuple(sorted(names[:count])))
            if (
                other is None
                or other.failure
                or self._ranking.ratio(other) > self._ranking.ratio(best) + 3 * FASTER
            ):
                break
            best = self._ranking.better(best, other)
        if len(names) > 2:
            spared = {*best.variant.tuning.spared, names[-1]}
            best = self._ranking.better(
                best, self._trials.turned(best, spared=tuple(sorted(spared)))
            )
        return best
