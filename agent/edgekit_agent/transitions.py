"""The update machine, pure: what follows a step, and what follows a restart.

`TRANSITIONS` is the whole machine: a pair that is not in it cannot happen. Every phase may be
entered twice with the same result.
"""

from __future__ import annotations

import enum
import random
from typing import Final

import msgspec

from edgekit_agent.journal import Journal
from edgekit_agent.slots import Active
from edgekit_contract.messages import Phase

__all__ = [
    "MAX_STARTS",
    "TRANSITIONS",
    "UPDATING",
    "Step",
    "recovered",
    "retry_delay_s",
]


class Step(enum.Enum):
    """How a phase ended."""

    STARTED = "started"
    PASSED = "passed"
    UNCHANGED = "unchanged"
    """What is wanted is active already."""
    REFUSED = "refused"
    """For a reason that will not pass."""
    INTERRUPTED = "interrupted"
    """For a reason that may pass, a crash among them."""
    UNHEALTHY = "unhealthy"
    """The new bundle's worker does not do its work."""


TRANSITIONS: Final[dict[tuple[Phase, Step], Phase]] = {
    (Phase.IDLE, Step.STARTED): Phase.CHECK,
    (Phase.CHECK, Step.PASSED): Phase.PREFLIGHT,
    (Phase.CHECK, Step.UNCHANGED): Phase.IDLE,
    (Phase.CHECK, Step.REFUSED): Phase.IDLE,
    (Phase.CHECK, Step.INTERRUPTED): Phase.IDLE,
    (Phase.PREFLIGHT, Step.PASSED): Phase.FETCH,
    (Phase.PREFLIGHT, Step.REFUSED): Phase.IDLE,
    (Phase.PREFLIGHT, Step.INTERRUPTED): Phase.IDLE,
    (Phase.FETCH, Step.PASSED): Phase.VERIFY,
    (Phase.FETCH, Step.REFUSED): Phase.IDLE,
    (Phase.FETCH, Step.INTERRUPTED): Phase.IDLE,
    (Phase.VERIFY, Step.PASSED): Phase.STAGE,
    (Phase.VERIFY, Step.REFUSED): Phase.IDLE,
    (Phase.VERIFY, Step.INTERRUPTED): Phase.IDLE,
    (Phase.STAGE, Step.PASSED): Phase.WARMUP,
    (Phase.STAGE, Step.REFUSED): Phase.IDLE,
    (Phase.STAGE, Step.INTERRUPTED): Phase.IDLE,
    (Phase.WARMUP, Step.PASSED): Phase.SWITCH,
    (Phase.WARMUP, Step.REFUSED): Phase.IDLE,
    (Phase.WARMUP, Step.INTERRUPTED): Phase.IDLE,
    (Phase.SWITCH, Step.PASSED): Phase.PROBATION,
    (Phase.SWITCH, Step.UNHEALTHY): Phase.ROLLBACK,
    (Phase.PROBATION, Step.PASSED): Phase.COMMIT,
    (Phase.PROBATION, Step.UNHEALTHY): Phase.ROLLBACK,
    (Phase.COMMIT, Step.PASSED): Phase.IDLE,
    (Phase.ROLLBACK, Step.PASSED): Phase.IDLE,
}

UPDATING: Final = (
    Phase.CHECK, Phase.PREFLIGHT, Phase.FETCH, Phase.VERIFY, Phase.STAGE, Phase.WARMUP
)  # fmt: skip
"""The updater's phases: whatever stops them, what serves goes on serving."""

_RISKY: Final = (Phase.WARMUP, Phase.SWITCH, Phase.PROBATION)
"""Phases that run the new model, which may take the whole machine down."""

MAX_STARTS: Final = 3
"""Deaths of the daemon that a release may be near before it is held to be their cause."""


def recovered(journal: Journal, active: Active | None) -> Journal:
    """The journal to go on from after a start with this active bundle: IDLE, SWITCH, PROBATION,
    COMMIT or ROLLBACK."""
    starts = journal.starts + (journal.phase in _RISKY)
    if journal.phase in UPDATING:
        return msgspec.structs.replace(
            journal, phase=TRANSITIONS[journal.phase, Step.INTERRUPTED], starts=starts
        )
    reason = ""
    if journal.phase in (Phase.SWITCH, Phase.PROBATION) and starts > MAX_STARTS:
        reason = f"the agent died {starts} times while it was on probation"
    elif journal.phase is Phase.PROBATION and active != journal.staged:
        reason = "another bundle is active after a restart"
    if reason:
        return msgspec.structs.replace(
            journal,
            phase=TRANSITIONS[journal.phase, Step.UNHEALTHY],
            failed_in=journal.phase,
            starts=starts,
            reason=reason,
        )
    return msgspec.structs.replace(journal, starts=starts)


def retry_delay_s(
    failures: int, *, least_s: float, most_s: float, randomness: random.Random
) -> float:
    """Exponential backoff with full jitter above half.

    Source: Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015 ("equal jitter").
    """
    ceiling = min(most_s, least_s * 2 ** min(failures, 32))
    return float(ceiling / 2 + randomness.uniform(0, ceiling / 2))
