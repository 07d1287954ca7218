"""How fast variants are: timed turn by turn with the baseline, in the runtime code of devices.

Invariant: every round gives the baseline and each variant a turn, so that a noisy machine is noisy
for all; what counts is the ratio within a round. A turn begins as it would where no other model
runs, and whose turn comes before it is chance. Other builds on this machine hold still meanwhile.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from functools import partial
from typing import Final

import numpy as np

from edgekit.build.accuracy import groups
from edgekit.build.model_file import ModelFile, Options
from edgekit.build.report import Latency
from edgekit.build.turns import alone
from edgekit_runtime.session import Session, Tensors

__all__ = ["Clock", "joined", "measure_latencies", "race", "ratio_of"]

_ROUND_S: Final = 0.004
"""A round repeats a run until it is at least this long: the clock's jitter is then nothing."""
_SETTLED_S: Final = 0.025
"""Where a run is shorter than this, the first of a turn do not count: they fetch weights that
others have driven out of the caches, and on a device no other model runs in between."""
_SETTLING_S: Final = 0.008
"""How long those runs last, at least one: a cache of what another one drops fills slowly."""
_MIN_ROUNDS: Final = 15
"""Whatever the budget, unless they take longer than there is patience for:"""
_LEAST_ROUNDS: Final = 5
"""then so many, from which the interval of the ratio is that of all rounds."""
_PATIENCE_S: Final = 4.0
_MAX_ROUNDS: Final = 200
_LOOK_EVERY: Final = 15
_PRECISE: Final = 0.01
"""Width of the ratio's interval, as a part of it, at which measuring ends early."""
_HOPELESS: Final = 1.2
"""So much slower than the best so far, and sure of it: no need to know it better."""
_NEAR: Final = 1.05
"""Not slower than the best by more: these are compared with each other, too."""
_RACES: Final = 2
"""Between sessions that are opened anew: where one's memory happens to lie stays for its life."""
_BASELINE: Final = ""
"""The baseline's name in a race; no recipe has it."""
_WARM_UP_RUNS: Final = 3
_WARM_UP_S: Final = 1.0
"""After this long no further run warms up."""
_RESAMPLES: Final = 1000

Clock = Callable[[], float]


def measure_latencies(
    variants: Mapping[str, ModelFile],
    *,
    baseline: ModelFile,
    options: Options,
    feeds: Sequence[Tensors],
    budget_s: float,
    clock: Clock = time.perf_counter,
) -> dict[str, Latency]:
    """Time variants against the baseline, as many at once as memory allows, in two races (see
    `race`), or one where they are slow.

    About `budget_s` in all, or what the fewest rounds of each race take. Errors: `Refused` where
    one does not run.
    """
    found: dict[str, Latency] = {}
    names = groups(variants)
    chance = random.Random(0)
    for group in names:
        race_anew = partial(
            _race_anew,
            {name: variants[name] for name in group},
            baseline=baseline,
            options=options,
            feeds=feeds,
            budget_s=budget_s / len(names) / _RACES,
            chance=chance,
            clock=clock,
        )
        found |= race_anew()
        if any(found[name].rounds < _MIN_ROUNDS for name in group):
            continue  # too slow for more, and for caches to matter
        found |= {name: joined(found[name], latency) for name, latency in race_anew().items()}
    return found


def _race_anew(
    variants: Mapping[str, ModelFile],
    *,
    baseline: ModelFile,
    options: Options,
    feeds: Sequence[Tensors],
    budget_s: float,
    chance: random.Random,
    clock: Clock,
) -> dict[str, Latency]:
    """A race between sessions of its own."""
    with ExitStack() as opened:
        reference = opened.enter_context(closing(baseline.open_by(options)))
        sessions = {
            name: reference  # it is not run twice
            if model == baseline
            else opened.enter_context(closing(model.open_by(options)))
            for name, model in variants.items()
        }
        return race(
            sessions,
            baseline=reference,
            feeds=feeds,
            budget_s=budget_s,
            chance=chance,
            clock=clock,
        )


@alone()
def race(
    sessions: Mapping[str, Session],
    *,
    baseline: Session,
    feeds: Sequence[Tensors],
    budget_s: float,
    patience_s: float = _PATIENCE_S,
    settling_s: float = _SETTLING_S,
    chance: random.Random | None = None,
    clock: Clock = time.perf_counter,
) -> dict[str, Latency]:
    """Time variants, the baseline itself may be one, in rounds in which each has its turn.

    About `budget_s` in all, but at least a few rounds: more of them within `patience_s` than
    beyond. What does not count of a short turn lasts `settling_s`. A variant leaves early once its
    ratio is known well (the best ones together), or is surely much worse than the best.

    Errors: `Refused` where one does not run.
    """
    found: dict[str, Latency] = {}
    echoes = {name for name, session in sessions.items() if session is baseline}
    racers = {
        name: _Racer(session, feeds, clock, settling_s)
        for name, session in {_BASELINE: baseline, **sessions}.items()
        if name not in echoes
    }
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in sessions}
    running = list(sessions)
    chance = chance or random.Random(0)
    began, rounds = clock(), 0
    while running and _goes_on(rounds, clock() - began, budget_s, patience_s):
        order = [name for name in (_BASELINE, *running) if name not in echoes]
        chance.shuffle(order)
        tensors = feeds[rounds % len(feeds)]
        spent = {name: racers[name].run(tensors) for name in order}
        for name in running:
            own = spent[_BASELINE] if name in echoes else spent[name]
            times[name].append((spent[_BASELINE], own))
        rounds += 1
        if rounds % _LOOK_EVERY == 0:
            found |= {name: ratio_of(times[name]) for name in running}
            known = _known(found, running)
            running = [name for name in running if name not in known]
    return found | {name: ratio_of(rounds_of) for name, rounds_of in times.items()}


def _goes_on(rounds: int, spent_s: float, budget_s: float, patience_s: float) -> bool:
    """Whether there is another round."""
    if rounds < _LEAST_ROUNDS:
        return True
    if rounds < _MIN_ROUNDS:
        return spent_s < max(patience_s, budget_s)
    return rounds < _MAX_ROUNDS and spent_s < budget_s


class _Racer:
    """A session and how often it runs in a turn."""

    def __init__(
        self, session: Session, feeds: Sequence[Tensors], clock: Clock, settling_s: float
    ) -> None:
        self._session, self._clock = session, clock
        self._repeats, self._uncounted = 1, 0
        last, began = 0.0, clock()
        for index in range(_WARM_UP_RUNS):
            last = self.run(feeds[index % len(feeds)])
            if clock() - began > _WARM_UP_S:
                break
        self._repeats = max(1, int(_ROUND_S / max(last, 1e-7)))
        if last < _SETTLED_S:
            self._uncounted = max(1, math.ceil(settling_s / max(last, 1e-7)))

    def run(self, tensors: Tensors) -> float:
        """Seconds of one run, the mean of a turn."""
        for _ in range(self._uncounted):
            self._session.run(tensors)
        began = self._clock()
        for _ in range(self._repeats):
            self._session.run(tensors)
        return (self._clock() - began) / self._repeats


def _known(found: Mapping[str, Latency], running: Sequence[str]) -> set[str]:
    """Those whose ratio is precise, or whose interval is far above the best's. Those that are near
    the best are known together: a machine may be another one some rounds later."""
    best = min(latency.high for latency in found.values())
    near = {name for name in running if found[name].low <= _NEAR * best}
    precise = {
        name
        for name in running
        if found[name].high - found[name].low < _PRECISE * found[name].ratio
    }
    hopeless = {name for name in running if found[name].low > _HOPELESS * best}
    return hopeless | (precise if near <= precise else precise - near)


def ratio_of(times: Sequence[tuple[float, float]]) -> Latency:
    """Seconds of (baseline, variant) per round to a latency with the interval of their ratio.

    Source: Efron and Tibshirani, "An introduction to the bootstrap", 1993, section 13.3
    (percentile interval).
    """
    pairs = np.asarray(times, np.float64)
    ratios = pairs[:, 1] / np.maximum(pairs[:, 0], 1e-12)
    generator = np.random.default_rng(0)
    resampled = np.median(
        ratios[generator.integers(0, len(ratios), (_RESAMPLES, len(ratios)))], axis=1
    )
    low, high = np.quantile(resampled, [0.025, 0.975])
    return Latency(
        median_ms=float(np.median(pairs[:, 1]) * 1e3),
        ratio=float(np.median(ratios)),
        low=float(low),
        high=float(high),
        rounds=len(pairs),
    )


def joined(first: Latency, second: Latency) -> Latency:
    """What two races say together: the means, and intervals that hold both."""
    return Latency(
        median_ms=(first.median_ms + second.median_ms) / 2,
        ratio=(first.ratio + second.ratio) / 2,
        low=min(first.low, second.low),
        high=max(first.high, second.high),
        rounds=first.rounds + second.rounds,
    )
