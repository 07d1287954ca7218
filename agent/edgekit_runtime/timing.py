"""How long a loaded model takes for an inference: median, how sure that is, and the slow ones.

Invariant: time is bounded, but for the run that is under way; nothing is timed before the runtime
has run a few times.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from edgekit_runtime.session import Session, Tensors

__all__ = ["Timing", "time_runs"]

_WARM_UP_RUNS: Final = 3
_MOST_RUNS: Final = 1000
_Z: Final = 1.96


class Timing(msgspec.Struct, frozen=True, kw_only=True):
    median_ms: float
    low_ms: float
    high_ms: float
    """95% confidence interval of the median."""
    p95_ms: float
    runs: int


def time_runs(
    session: Session,
    feeds: Sequence[Tensors],
    *,
    budget_s: float,
    clock: Callable[[], float] = time.perf_counter,
) -> Timing:
    """Run over and over for about `budget_s`, on `feeds` in turn.

    Source of the interval: order statistics, as in Conover, "Practical nonparametric statistics",
    1999, section 3.2; it asks nothing of how times are distributed.
    Errors: those of `Session.run`.
    """
    if not feeds:
        raise RuntimeError("there is nothing to run on")
    for index in range(_WARM_UP_RUNS):
        session.run(feeds[index % len(feeds)])
    spent: list[float] = []
    ends = clock() + budget_s
    while not spent or (len(spent) < _MOST_RUNS and clock() < ends):
        began = clock()
        session.run(feeds[len(spent) % len(feeds)])
        spent.append((clock() - began) * 1e3)
    ranked = sorted(spent)
    count = len(ranked)
    reach = _Z * math.sqrt(count) / 2
    return Timing(
        median_ms=(ranked[(count - 1) // 2] + ranked[count // 2]) / 2,
        low_ms=ranked[max(0, math.floor(count / 2 - reach))],
        high_ms=ranked[min(count - 1, math.ceil(count / 2 + reach) - 1)],
        p95_ms=ranked[-(-count * 95 // 100) - 1],
        runs=count,
    )
