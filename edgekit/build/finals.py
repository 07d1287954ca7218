"""The finals: which of a search's trials get full accuracy, and which of them are relieved.

Invariant: in the order of the objective, until what is left cannot win; what loses too much takes
its place anew when it was relieved, and before that others are run that are as fast and may hold as
they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from edgekit.build.accuracy import Accuracy
from edgekit.build.bench import Bench
from edgekit.build.choice import Bounds, is_tolerable
from edgekit.build.screen import Trial
from edgekit.build.search import Search

__all__ = ["Finals"]

_MOST: Final = 16
_TOGETHER: Final = 2
_REACH: Final = 0.03
"""What screening may be wrong by: so much behind what holds, one may still be ahead of it."""
_REACH_OF_SMALLER: Final = 0.1
"""The same for one that is smaller by `_SMALLER`, so that it need only be as fast: how fast a
machine runs what fills its caches varies so much from one brief timing to the next."""
_SMALLER: Final = 0.05
_REACH_OF_FORECASTS: Final = 1.0
"""The same, as a part, where times are estimates."""
_CLOSE: Final = 2.0
"""Times the loss that is allowed: more samples may show that it is less."""
_MARGIN: Final = 0.7
"""Of what may be lost: what a relief aims at."""


class Finals:
    """Of one search."""

    def __init__(self, search: Search, bench: Bench, bounds: Bounds) -> None:
        self._search, self._bench, self._bounds = search, bench, bounds
        self._baseline, self._ranking = search.trials[0], search.ranking
        self._tried: list[Trial] = []
        self._pending: list[Trial] = []
        self._postponed: list[Trial] = []
        """Those to be relieved if the others do not hold."""
        self._held: Trial | None = None
        """The best that keeps the accuracy."""
        self._is_held = False
        """Whether one does, if with no margin."""
        self._has_looked = False
        """Whether that was looked at on more samples, which is done once."""

    def hold(self, pending: Sequence[Trial]) -> list[Trial]:
        """Run those that are pending, the best first, and give all that were run."""
        self._pending = list(pending)
        while self._pending and len(self._tried) < _MOST:
            if self._is_held and self._search.is_over():
                break
            if not self._is_held and self._search.is_over(self._bench.selection_s):
                # nothing can be relieved after it, so those first that may nearly hold as they are
                self._pending.sort(key=lambda trial: not self._ranking.is_mendable(trial))
            batch = self._next()
            self._tried += batch
            run = {trial.title for trial in batch}
            self._pending = [trial for trial in self._pending if trial.title not in run]
            if self._held is None and self._is_close(batch):
                self._look_closer(batch)
            self._relieve(self._losing(batch))
            if self._held is not None:
                self._pending = [] if self._search.is_over() else self._near(self._held)
        return self._tried

    def is_tolerable(self, trial: Trial, *, margin: bool = True, allowance: float = 1.0) -> bool:
        """Whether it loses no more than is allowed, by its full accuracy."""
        found = self._accuracies([trial])
        return found[trial.title].failure is None and is_tolerable(
            found[self._baseline.title].score,
            found[trial.title].score,
            self._bounds.max_drop * allowance,
            margin=margin,
        )

    def _accuracies(self, trials: Sequence[Trial]) -> dict[str, Accuracy]:
        return self._bench.accuracies([trial.variant for trial in (self._baseline, *trials)])

    def _next(self) -> list[Trial]:
        """The best, with full accuracy, and the next beside it, unless the best holds and the other
        could not win against it; where there is no time for more, one that will do if it does not.
        """
        best, *others = self._pending[:_TOGETHER]
        if self._search.is_over():
            batch = [best, *(self._substitute() or others)]
        else:
            batch = [best, *(other for other in others if self._is_rival(other, best))]
        self._accuracies(batch)
        if len(batch) < _TOGETHER and not self.is_tolerable(best):
            batch = [best, *others]
            self._accuracies(batch)
        return batch

    def _substitute(self) -> list[Trial]:
        """Of those after the best that seem to keep the accuracy the first, or a smaller one that
        is hardly worse than it in what is asked for."""
        fine = [trial for trial in self._pending[1:] if self._ranking.is_fine(trial)]
        near = [trial for trial in fine if self._is_ahead(trial, fine[0], _REACH)]
        return [min(near, key=lambda trial: trial.size_bytes)] if near else []

    def _is_close(self, batch: Sequence[Trial]) -> bool:
        """Whether more samples may tell that one of them keeps the accuracy, and none does yet."""
        if any(self.is_tolerable(trial) for trial in batch):
            return False
        return any(self.is_tolerable(trial, margin=False, allowance=_CLOSE) for trial in batch)

    def _look_closer(self, batch: Sequence[Trial]) -> None:
        """Once, and if there is time: else one is relieved."""
        if not self._has_looked and not self._search.is_over(self._bench.closer_s):
            self._has_looked = True
            self._bench.look_closer()
            self._accuracies(batch)

    def _losing(self, batch: Sequence[Trial]) -> list[Trial]:
        """Of these, and of those that were postponed, what may be relieved, the best first."""
        losing = []
        for trial in batch:
            self._is_held |= self.is_tolerable(trial, margin=False)
            if not self.is_tolerable(trial):
                losing.append(trial)
            elif self._ranking.is_within(trial):
                self._held = min(self._held or trial, trial, key=self._ranking.key)
        losing += self._postponed
        self._postponed = []
        return sorted(losing, key=self._ranking.key)

    def _relieve(self, losing: Sequence[Trial]) -> None:
        """Relieve the best, and one beside it that is as fast; later those that others to come, or
        one that holds, may make needless."""
        relieved: list[Trial] = []
        # what is relieved after another pass must still be in time
        has_time = not self._search.is_over(self._bench.selection_s)
        for trial in losing:
            if self._held is not None and self._is_rival(self._held, trial):
                continue  # one that is as fast holds without
            near = self._near(self._held or trial)
            if has_time and any(map(self._ranking.is_fine, near)):
                self._postponed.append(trial)
                continue
            if relieved and not self._is_rival(trial, losing[0]):
                continue  # it could not win against what the better one becomes
            if len(relieved) < _TOGETHER:
                one = self._search.relieve(trial, part=self._bearable(trial))
                relieved += [one] if one is not None else []
        known = {one.title for one in (*self._tried, *self._pending)}
        new = [one for one in relieved if one.failure is None and one.title not in known]
        self._pending = sorted([*new, *self._pending], key=self._ranking.key)

    def _bearable(self, trial: Trial) -> float:
        """What part of its noise may be left for a trial to lose no more than is allowed, with a
        margin, if the loss follows the noise."""
        found = self._accuracies([trial])
        truth, score = found[self._baseline.title].score, found[trial.title].score
        if truth is None or score is None or score.value >= truth.value:
            return _MARGIN
        return _MARGIN * min(1.0, self._bounds.max_drop / (truth.value - score.value))

    def _near(self, held: Trial) -> list[Trial]:
        """Those to come that may be ahead of one."""
        return [trial for trial in self._pending if self._is_rival(trial, held)]

    def _is_rival(self, trial: Trial, best: Trial) -> bool:
        """Whether it may be ahead of one that comes before it, for all that screening can tell."""
        ranking, reach = self._ranking, _REACH
        if ranking.goes_by_forecast:
            reach = _REACH_OF_FORECASTS
        elif ranking.by_time and trial.size_bytes < best.size_bytes * (1 - _SMALLER):
            reach = _REACH_OF_SMALLER if ranking.is_fine(trial) else _REACH
        return self._is_ahead(trial, best, reach)

    def _is_ahead(self, trial: Trial, best: Trial, reach: float) -> bool:
        """Whether it is ahead of another, or behind it by no more than a part of it."""
        over, key = self._ranking.key(trial)[:2]
        best_over, best_key = self._ranking.key(best)[:2]
        edge = best_key + abs(best_key) * reach
        return (over, key - self._ranking.doubt(trial)) <= (best_over, edge)
