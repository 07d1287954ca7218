"""Choose among measured candidates. Pure: figures and bounds in, one winner and reasons out.

Invariant: the baseline can always win; a candidate that breaks a bound, or is neither smaller nor
faster than the baseline, never does. A latency differs only where its interval says so; among
equals in the objective the smaller wins, then the more accurate. What is up to 3% slower than the
fastest, and faster than the baseline, wins if it is smaller by three times as much.

Off the target times are figures of a device of the profile, or else estimates; both are intervals,
and two that overlap are one. Where a winner is not apart from another that was only estimated, that
one is left open: a measurement would tell.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from edgekit.build.report import NOTICEABLE, Candidate, Estimate, Latency, Outcome, Score
from edgekit.build.request import Objective
from edgekit_contract import limits
from edgekit_contract.errors import Refused

__all__ = [
    "Bounds",
    "NothingFits",
    "choose",
    "is_tolerable",
    "might_be_faster",
    "settle",
    "time_on_device",
]

_EQUAL: Final = 1e-3
"""Metrics nearer than this are one: what a table of three digits shows."""
_ROUNDING: Final = 1e-12
_INTERVAL: Final = 1.96
"""Standard errors from a value to either end of its interval of 95%."""
_ABOUT_A_SIZE: Final = 1.25
_SAME_SIZE: Final = 0.01
"""Names and padding make one file larger than another by about so much."""
_UNSURE: Final = 1.05
"""Times the fastest's time that one may take that its interval does not tell from it."""
_HARDLY_SLOWER: Final = 1.03
"""A candidate that is slower than the fastest by no more may win by being smaller,"""
_TIME_TO_SIZE: Final = 3
"""where a percent of time counts as so many of size."""


class NothingFits(Refused):
    """Every candidate, float32 too, breaks a bound."""


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What a chosen variant must keep."""

    max_drop: float
    max_ms: float | None = None
    max_mb: float | None = None
    budget_bytes: int | None = None
    """What the profile leaves for the model file."""
    ram_bytes: int | None = None
    """What the profile leaves for loading and running it."""


def choose(
    candidates: Sequence[Candidate], *, objective: Objective, bounds: Bounds, on_target: bool
) -> tuple[Candidate, ...]:
    """The candidates with outcome and reason filled in; exactly one is chosen.

    The first is the baseline; those that failed are left as they are. Errors: `NothingFits`.
    """
    baseline = candidates[0]
    judged = [_judge(c, baseline, bounds, on_target, margin=True) for c in candidates]
    able = [c for c in judged if c.outcome is Outcome.CHOSEN]
    if not any(_gains(c, baseline, objective, on_target) for c in able):
        # rather one at the edge than none
        judged = [_judge(c, baseline, bounds, on_target, margin=False) for c in candidates]
        able = [c for c in judged if c.outcome is Outcome.CHOSEN]
    if not able:
        told = "; ".join(f"{c.title}: {c.reason}" for c in judged if c.reason)
        raise NothingFits(f"no variant keeps the bounds ({told}): loosen one.")
    winner = _best(able, objective, on_target, bounds.max_drop)
    reason = _why(winner, baseline, objective, on_target)
    by_forecast = objective is Objective.LATENCY and not on_target
    return tuple(
        msgspec.structs.replace(candidate, outcome=Outcome.CHOSEN, reason=reason)
        if candidate.title == winner.title
        else msgspec.structs.replace(
            candidate,
            outcome=Outcome.LOST,
            reason=_why_not(candidate, winner, on_target),
            is_open=by_forecast and might_be_faster(candidate, winner),
        )
        if candidate.outcome is Outcome.CHOSEN
        else candidate
        for candidate in judged
    )


def settle(
    candidates: Sequence[Candidate],
    *,
    objective: Objective,
    bounds: Bounds,
    on_target: bool,
    peak_of: Callable[[str], int],
) -> tuple[tuple[Candidate, ...], int]:
    """As `choose`, but whoever needs more memory than is allowed is out, and the next is chosen.

    `peak_of` measures the bytes that the candidate of a title needs: of those that win alone. Also
    gives those of the chosen. Errors: `NothingFits`.
    """
    left = tuple(candidates)
    while True:
        judged = choose(left, objective=objective, bounds=bounds, on_target=on_target)
        winner = next(c for c in judged if c.outcome is Outcome.CHOSEN)
        peak = peak_of(winner.title)
        if bounds.ram_bytes is None or peak <= bounds.ram_bytes:
            return judged, peak
        reason = (
            f"it needs {peak / limits.MIB:.1f} MiB of memory, "
            f"{bounds.ram_bytes / limits.MIB:g} are allowed"
        )
        left = tuple(
            msgspec.structs.replace(c, outcome=Outcome.FAILED, reason=reason)
            if c.title == winner.title
            else c
            for c in left
        )


def _gains(
    candidate: Candidate, baseline: Candidate, objective: Objective, on_target: bool
) -> bool:
    """Whether it is better than the baseline in what is asked for."""
    if objective is Objective.LATENCY and on_target:
        return candidate.latency is not None and candidate.latency.is_faster
    if objective is Objective.LATENCY and _is_surely_faster(candidate, baseline):
        return True
    return _size(candidate) < _size(baseline) * (1 - _SAME_SIZE)


def is_tolerable(
    baseline: Score | None, score: Score | None, max_drop: float, *, margin: bool = True
) -> bool:
    """Whether a variant loses no more than is allowed.

    With `margin` it must keep a standard error's distance from the bound, but not more than half of
    what is allowed: what was chosen for its figure on some samples does a little worse on others.
    """
    if baseline is None or score is None:
        return True
    drop = baseline.value - score.value
    if not margin:
        return drop <= max_drop + _ROUNDING
    error = math.sqrt(drop * (1 - drop) / score.rows) if 0 < drop < 1 else 0.0
    if score.low is not None:  # what is no share of samples is often known far better
        error = min(error, (score.value - score.low) / _INTERVAL)
    return drop + min(max_drop / 2, error) <= max_drop + _ROUNDING


def _judge(
    candidate: Candidate, baseline: Candidate, bounds: Bounds, on_target: bool, *, margin: bool
) -> Candidate:
    """Lost with the bound that it breaks, or, for now, chosen."""
    if candidate.outcome is Outcome.FAILED:
        return candidate
    reason = _broken(candidate, baseline, bounds, on_target, margin=margin)
    outcome = Outcome.CHOSEN if reason is None else Outcome.LOST
    return msgspec.structs.replace(candidate, outcome=outcome, reason=reason or "")


def _broken(
    candidate: Candidate, baseline: Candidate, bounds: Bounds, on_target: bool, *, margin: bool
) -> str | None:
    size = candidate.size_bytes or 0
    if not is_tolerable(baseline.score, candidate.score, bounds.max_drop, margin=margin):
        drop = baseline.score.value - candidate.score.value  # type: ignore[union-attr]
        told = f"its metric is {drop:.4f} below float32's, {bounds.max_drop:.4f} is allowed"
        if is_tolerable(baseline.score, candidate.score, bounds.max_drop, margin=False):
            return f"{told}: too near to hold on other data"
        return told
    if bounds.max_mb is not None and size > bounds.max_mb * 1e6:
        return f"{size / 1e6:.3f} MB, {bounds.max_mb:g} are allowed"
    if bounds.budget_bytes is not None and size > bounds.budget_bytes:
        return f"{size / 1e6:.3f} MB are over the profile's budget"
    latency = candidate.latency
    if on_target and bounds.max_ms is not None and latency and latency.median_ms > bounds.max_ms:
        return f"{latency.median_ms:.3f} ms, {bounds.max_ms:g} are allowed"
    figure = candidate.figure
    if not on_target and bounds.max_ms is not None and figure and figure.median_ms > bounds.max_ms:
        return f"{figure.median_ms:.3f} ms on {figure.device}, {bounds.max_ms:g} are allowed"
    if candidate.title != baseline.title and size >= (baseline.size_bytes or 0):
        if not on_target and _is_surely_faster(candidate, baseline):
            return None
        if latency is not None and latency.is_slower:
            return "larger and slower than float32"
        if latency is None or not latency.is_faster:
            return "not smaller than float32 and not measurably faster"
    return None


def _best(
    able: Sequence[Candidate], objective: Objective, on_target: bool, max_drop: float
) -> Candidate:
    if objective is Objective.SIZE:
        return min(_smallest(able), key=lambda c: (_speed(c), *_finest(c), c.title))
    if objective is Objective.ACCURACY or not on_target:
        if objective is not Objective.ACCURACY:
            able = _fastest_off_target(able)
        best = max(map(_quality, able))
        # where time cannot tell, what may be lost is spent on size, but for half of it
        apart = _EQUAL if objective is Objective.ACCURACY else max(_EQUAL, max_drop / 2)
        equal = [c for c in able if _quality(c) >= best - apart]
        if objective is not Objective.ACCURACY:
            # of about a size, what is slower even here is the last that a device should get, unless
            # one has measured it
            near = [c for c in equal if _size(c) <= min(map(_size, equal)) * _ABOUT_A_SIZE]
            slow = [c for c in near if c.figure is None and c.latency and c.latency.is_slower]
            equal = [c for c in near if c not in slow] or near
        if objective is Objective.ACCURACY and on_target:
            return min(equal, key=lambda c: (_speed(c), _size(c), c.title))
    else:
        equal = _fastest(able)
    return min(_smallest(equal), key=lambda c: (*_finest(c), c.title))


def _fastest(able: Sequence[Candidate]) -> list[Candidate]:
    """Those that nothing tells from the fastest, unless one that is hardly slower, and still faster
    than the baseline, is smaller by enough to be worth that."""
    fastest = min(able, key=_speed)
    edge = most = 1.0
    if fastest.latency and _speed(fastest) < 1:
        hardly = fastest.latency.ratio * (1 + NOTICEABLE)
        edge = max(fastest.latency.high, hardly)
        most = max(hardly, min(1 - NOTICEABLE, fastest.latency.ratio * _UNSURE))
    equal = [c for c in able if c is fastest or (_low(c) <= edge and _speed(c) <= most)]
    limit = _speed(fastest) * _HARDLY_SLOWER
    cost = {
        c.title: _size(c) * (_speed(c) / _speed(fastest)) ** _TIME_TO_SIZE
        for c in able
        if c not in equal and _speed(c) <= limit and _speed(c) < 1
    }
    least = min(cost.values(), default=math.inf)
    if least >= min(map(_size, equal)):
        return equal
    return [c for c in able if cost.get(c.title, math.inf) <= least * (1 + _SAME_SIZE)]


def _fastest_off_target(able: Sequence[Candidate]) -> Sequence[Candidate]:
    """Those that may be the fastest on the device: of which no other is surely faster."""
    known = [time for c in able if (time := time_on_device(c)) is not None]
    if not known:
        return able
    edge = min(known, key=lambda time: time.ms).high
    return [c for c in able if (time := time_on_device(c)) is None or time.low <= edge]


def time_on_device(candidate: Candidate) -> Estimate | None:
    """What a device of the profile takes: its figure, or else the estimate; None for neither."""
    figure = candidate.figure
    if figure is not None:
        return Estimate(ms=figure.median_ms, low=figure.low, high=figure.high)
    return candidate.estimate


def _is_surely_faster(candidate: Candidate, other: Candidate) -> bool:
    mine, its = time_on_device(candidate), time_on_device(other)
    return mine is not None and its is not None and mine.high < its.low


def might_be_faster(candidate: Candidate, winner: Candidate) -> bool:
    """Whether it may be the faster one on a device, as far as is known, and a device could tell."""
    mine, best = time_on_device(candidate), time_on_device(winner)
    if mine is None or best is None:
        return True
    if candidate.figure is not None and winner.figure is not None:
        return False
    # what does the same arithmetic is estimated alike: nothing to tell
    differs = abs(mine.ms / best.ms - 1) >= NOTICEABLE
    return differs and mine.low <= best.high and best.low <= mine.high


def _smallest(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The smallest, and those as small."""
    least = min(map(_size, candidates))
    return [c for c in candidates if _size(c) <= least * (1 + _SAME_SIZE)]


def _finest(candidate: Candidate) -> tuple[float, float]:
    """Less is better: the metric as far as it tells two apart, then the noise of the outputs."""
    return -round(_quality(candidate) / _EQUAL), -(candidate.closeness_db or 0.0)


def _size(candidate: Candidate) -> int:
    return candidate.size_bytes or 0


def _quality(candidate: Candidate) -> float:
    return candidate.score.value if candidate.score is not None else 0.0


def _speed(candidate: Candidate) -> float:
    """Ratio to the baseline; 1 unless its interval excludes that."""
    latency = candidate.latency
    return (
        latency.ratio if latency is not None and (latency.is_faster or latency.is_slower) else 1.0
    )


def _low(candidate: Candidate) -> float:
    return candidate.latency.low if candidate.latency is not None else 1.0


def _why(winner: Candidate, baseline: Candidate, objective: Objective, on_target: bool) -> str:
    if winner.title == baseline.title:
        return "nothing beats float32 within the bounds"
    gains = []
    if winner.size_bytes and baseline.size_bytes and winner.size_bytes < baseline.size_bytes:
        gains.append(f"{winner.size_bytes / baseline.size_bytes:.0%} of float32's size")
    mine, its = time_on_device(winner), time_on_device(baseline)
    if not on_target and mine is not None and its is not None:
        if _is_surely_faster(winner, baseline):
            measured = winner.figure is not None and baseline.figure is not None
            gains.append(f"{mine.ms / its.ms:.2f} of its time, {_MEASURED[measured]}")
    elif winner.latency is not None and winner.latency.is_faster:
        gains.append(f"{winner.latency.ratio:.2f} of its time" + ("" if on_target else " on HOST"))
    return f"best by {objective.value}: " + (" and ".join(gains) or "as good as float32")


_MEASURED: Final = {True: "measured on a device", False: "by estimate"}


def _why_not(candidate: Candidate, winner: Candidate, on_target: bool) -> str:
    facts = []
    if _quality(candidate) < _quality(winner) - _EQUAL:
        facts.append("less accurate")
    mine, best = candidate.latency, winner.latency
    if not on_target and time_on_device(candidate) and time_on_device(winner):
        if _is_surely_faster(winner, candidate):
            measured = winner.figure is not None and candidate.figure is not None
            facts.append("slower" if measured else "slower by estimate")
    elif mine is not None and best is not None and _is_slower(mine, best):
        facts.append("slower")
    if _size(candidate) > _size(winner) * (1 + _SAME_SIZE):
        facts.append("larger")
    return f"{' and '.join(facts) or 'no better'} than the chosen"


def _is_slower(mine: Latency, best: Latency) -> bool:
    return mine.low > best.high
