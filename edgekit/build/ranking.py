"""Ranking of trials: which is better, by quick figures and what is asked for.

Invariant: figures of screening tell what to look at next, never what is chosen.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final

from edgekit.build.choice import Bounds, is_tolerable
from edgekit.build.forecast import Forecast
from edgekit.build.request import Objective
from edgekit.build.screen import Trial

__all__ = ["FASTER", "Ranking"]

_CLOSER_DB: Final = 0.3
"""What is worth a knob: less may be chance."""
_CLOSER_AT_NO_COST_DB: Final = 0.1
"""What is worth one that costs nothing on the device."""
FASTER: Final = 0.01
"""As a part of the baseline's time: screening sees no less."""
_HOPELESS_DB: Final = 0.0
"""As much noise as signal: no tuning mends that."""
_TIMING: Final = 1.1
"""What a brief timing may be wrong by."""
_GROWTH: Final = 0.05
"""Less noise is not worth more bytes."""
_LEAST_DROP: Final = 0.01
"""Where none is allowed."""
_EQUAL_SIZE: Final = 0.01
_ROUNDING: Final = 1.75
"""What rounding that minds the inputs leaves of a loss, about, as a divisor."""


class Ranking:
    """Of one profile's trials, beside the baseline."""

    def __init__(
        self,
        *,
        objective: Objective,
        bounds: Bounds,
        on_target: bool,
        forecast: Forecast | None = None,
    ) -> None:
        """`forecast` is what is known of times on a device that is not this machine: they count
        where the objective is latency."""
        self._bounds, self._on_target = bounds, on_target
        self._forecast = forecast if objective is Objective.LATENCY else None
        self._ratios: dict[str, float | None] = {}
        self.by_accuracy = objective is Objective.ACCURACY
        knows_times = on_target or self._forecast is not None
        self.by_size = objective is Objective.SIZE or not (knows_times or self.by_accuracy)
        self._baseline: Trial | None = None

    @property
    def baseline(self) -> Trial:
        """What all are compared with."""
        if self._baseline is None:
            raise RuntimeError("the baseline is tried first")
        return self._baseline

    @baseline.setter
    def baseline(self, trial: Trial) -> None:
        self._baseline = trial

    @property
    def by_time(self) -> bool:
        """By what was timed here."""
        return not (self.by_accuracy or self.by_size or self.goes_by_forecast)

    @property
    def goes_by_forecast(self) -> bool:
        return self._forecast is not None

    def key(self, trial: Trial, *, size_part: float = 1.0) -> tuple[float, ...]:
        """Less is better: what keeps the bounds first, then by the objective, less what mending
        the accuracy may cost of it. Its variations may come down to `size_part` of its size."""
        over = float(not self.is_within(trial, size_part=size_part))
        if self.by_accuracy:
            return (over, -round(trial.closeness_db), self.ratio(trial), float(trial.size_bytes))
        baseline = self.baseline
        mending = self._mending(trial)
        ratio = self.ratio(trial)
        ratio += (1 - ratio) * mending
        size = trial.size_bytes + (baseline.size_bytes - trial.size_bytes) * mending
        if self.by_size:
            return (over, size, -trial.closeness_db, ratio)
        return (over, ratio, size, -trial.closeness_db)

    def doubt(self, trial: Trial) -> float:
        """How much less than its `key` says a trial may take, for all that a brief timing tells."""
        if not self.by_time or trial.latency is None:
            return 0.0
        return max(0.0, trial.ratio - trial.latency.low)

    def is_within(self, trial: Trial, *, size_part: float = 1.0) -> bool:
        """Whether it keeps the bounds of size and time, as far as screening can tell."""
        bounds = self._bounds
        most_bytes = min(
            bounds.max_mb * 1e6 if bounds.max_mb is not None else math.inf,
            bounds.budget_bytes if bounds.budget_bytes is not None else math.inf,
        )
        if trial.size_bytes * size_part > most_bytes:
            return False
        if not self._on_target or bounds.max_ms is None or trial.latency is None:
            return True
        return trial.latency.median_ms <= bounds.max_ms * _TIMING

    def ratio(self, trial: Trial) -> float:
        """Time to the baseline's on the device, as far as is known, or else as measured here."""
        known = self._known_ratio(trial)
        return trial.ratio if known is None else known

    def _known_ratio(self, trial: Trial) -> float | None:
        if self._forecast is None:
            return None
        if trial.title not in self._ratios:
            mine = self._forecast.time(trial.variant)
            its = self._forecast.time(self.baseline.variant)
            self._ratios[trial.title] = mine.ms / its.ms if mine and its else None
        return self._ratios[trial.title]

    def _mending(self, trial: Trial) -> float:
        """What part of a trial's gain its accuracy will cost: all, at ten times what is allowed,
        and as much for each halving of what it loses."""
        score, truth = trial.accuracy.score, self.baseline.accuracy.score
        if score is None or truth is None:
            return 0.0
        allowed = self._bounds.max_drop or _LEAST_DROP
        drop = max(truth.value - score.value, allowed)
        return min(1.0, math.log10(drop / allowed))

    def best(self, trials: Iterable[Trial]) -> list[Trial]:
        """Those that gain something over the baseline and are not beyond repair, best first."""
        return sorted(
            (
                trial
                for trial in trials
                if trial.failure is None
                and trial is not self.baseline
                and trial.closeness_db > _HOPELESS_DB
                and (
                    self.ratio(trial) < 1 - FASTER
                    or trial.size_bytes < self.baseline.size_bytes * (1 - _EQUAL_SIZE)
                )
            ),
            key=self.key,
        )

    def is_fine(self, trial: Trial) -> bool:
        """Whether it loses no more than is allowed, as far as screening can tell."""
        return is_tolerable(
            self.baseline.accuracy.score, trial.accuracy.score, self._bounds.max_drop
        )

    def is_sure(self, trial: Trial) -> bool:
        """Whether even the low end of its interval does."""
        score, truth = trial.accuracy.score, self.baseline.accuracy.score
        if score is None or truth is None:
            return self.is_fine(trial)
        return score.low is not None and truth.value - score.low <= self._bounds.max_drop

    def is_mendable(self, trial: Trial) -> bool:
        """Whether other rounding may bring it to lose no more than is allowed."""
        return trial.failure is None and is_tolerable(
            self.baseline.accuracy.score,
            trial.accuracy.score,
            self._bounds.max_drop * _ROUNDING,
            margin=False,
        )

    def better(self, best: Trial, other: Trial | None) -> Trial:
        """The other one if it gains in noise or in time and loses in neither."""
        if other is None or other.failure is not None:
            return best
        faster = self.ratio(best) - self.ratio(other)
        closer = other.closeness_db - best.closeness_db
        grown = other.size_bytes / max(best.size_bytes, 1) - 1
        gains = faster >= FASTER or (closer >= _CLOSER_DB and grown < _GROWTH)
        return other if gains and closer > -_CLOSER_DB and faster > -FASTER else best

    def closer(self, best: Trial, other: Trial | None) -> Trial:
        """The other one if it has less noise: it takes no more time."""
        if other is None or other.failure is not None:
            return best
        return other if other.closeness_db - best.closeness_db >= _CLOSER_AT_NO_COST_DB else best

    def finalists(self, trials: Iterable[Trial]) -> tuple[Trial, ...]:
        """Those that no other beats in time, size and closeness at once, the best first."""
        able = self.best(trials)
        return tuple(t for t in able if not any(self._beats(other, t) for other in able))

    def _beats(self, other: Trial, trial: Trial) -> bool:
        """At least as good in time, size and noise, and better in one, as far as can be told."""
        faster = self.ratio(trial) - self.ratio(other)
        smaller = 1 - other.size_bytes / max(trial.size_bytes, 1)
        closer = other.closeness_db - trial.closeness_db
        gains = (faster / FASTER, smaller / _EQUAL_SIZE, closer / _CLOSER_DB)
        return min(gains) >= -1 and max(gains) > 1
