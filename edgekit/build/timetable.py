"""The timetable of a build: how its search time is divided, by shares.

Invariant: arithmetic only; what is set aside for later is not given to what comes first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from edgekit.build.request import Objective

__all__ = ["CALIBRATION_SHARE", "Deadlines", "deadlines", "most_timing_s"]

CALIBRATION_SHARE: Final = 0.15
"""Of the search time, at most."""
_TRIALS_SHARE: Final = 0.82
"""Of the search time that is left when calibration is done, full figures of the first aside: until
when trials begin."""
_REFINING_SHARE: Final = 0.88
"""The same where the best surely keeps the accuracy."""
_RELIEF_SHARE: Final = 0.95
"""The same for reliefs, full figures included; latencies come after."""
_TIMING_SHARE: Final = {Objective.LATENCY: 0.08, Objective.ACCURACY: 0.08, Objective.SIZE: 0.05}
"""Of the search time: what latencies in full take as a rule, sessions and memory included."""
_MOST_TIMING_SHARE: Final = {
    Objective.LATENCY: 0.1,
    Objective.ACCURACY: 0.1,
    Objective.SIZE: 0.03,
}
"""The same at most, for the runs alone; by size they only break ties."""
_PACKING_SHARE: Final = 0.07
"""Of the search time: for golden vectors and the bundle."""
_RANKING_S: Final = 3.0
"""What ranking the nodes for the report takes, as a rule, beside what is held out."""


@dataclass(frozen=True, kw_only=True)
class Deadlines:
    """Times by the clock after which nothing more is begun."""

    explore_s: float
    refine_s: float
    """The same where the best surely keeps the accuracy, so that nothing has to be relieved."""
    relieve_s: float
    rank_s: float


def deadlines(
    *,
    now: float,
    ends: float,
    search_time_s: float,
    objective: Objective,
    selection_s: float,
    held_out_s: float,
    profiles: int,
    pending: int,
) -> Deadlines:
    """Of the next profile's search, which begins `now`; the build `ends` at a time by the clock.

    `selection_s` and `held_out_s` are what full accuracy will take, in seconds; `pending` of the
    `profiles` are still to be searched, this one included.
    """
    left_s = ends - now - held_out_s - search_time_s * _PACKING_SHARE
    timing_s = search_time_s * _TIMING_SHARE[objective] / profiles
    slice_s = max(0.0, left_s / pending - timing_s)
    trials_s = slice_s - min(selection_s, slice_s / 2)
    return Deadlines(
        explore_s=now + trials_s * _TRIALS_SHARE,
        refine_s=now + trials_s * _REFINING_SHARE,
        relieve_s=now + slice_s * _RELIEF_SHARE,
        rank_s=now + slice_s - max(0.0, _RANKING_S - held_out_s),
    )


def most_timing_s(objective: Objective, search_time_s: float) -> float:
    """Seconds that full latencies of a profile's variants may take, of its search time."""
    return search_time_s * _MOST_TIMING_SHARE[objective]
