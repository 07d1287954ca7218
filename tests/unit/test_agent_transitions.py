"""The update machine's table, what follows a restart, and the judgement on probation."""

from __future__ import annotations

import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit_agent.control import Release, Stats
from edgekit_agent.journal import Journal
from edgekit_agent.probation import Judgement, Observation, Probation, ProbationLimits, judge
from edgekit_agent.slots import Slot
from edgekit_agent.transitions import (
    MAX_STARTS,
    TRANSITIONS,
    UPDATING,
    Step,
    recovered,
    retry_delay_s,
)
from edgekit_contract.messages import Phase

RELEASE = Release(version="1.1", digest="ab" * 32, counter=2, floor=1)
LIMITS = ProbationLimits(duration_s=600, least_inferences=20, max_error_share=0.05)


def test_every_phase_is_reached_and_left() -> None:
    assert {phase for phase, _ in TRANSITIONS} == set(Phase)
    assert set(TRANSITIONS.values()) == set(Phase)


def test_what_serves_can_change_only_through_switch() -> None:
    into = {phase for (phase, _), after in TRANSITIONS.items() if after is Phase.SWITCH}
    assert into == {Phase.WARMUP}
    assert {p for (p, _), after in TRANSITIONS.items() if after is Phase.COMMIT} == {
        Phase.PROBATION
    }


@pytest.mark.parametrize("phase", UPDATING)
def test_before_switch_every_phase_can_be_refused_and_interrupted(phase: Phase) -> None:
    assert TRANSITIONS[phase, Step.REFUSED] is Phase.IDLE
    assert TRANSITIONS[phase, Step.INTERRUPTED] is Phase.IDLE
    assert (phase, Step.UNHEALTHY) not in TRANSITIONS


@pytest.mark.parametrize("phase", list(Phase))
def test_a_restart_begins_the_update_again_or_ends_what_was_begun(phase: Phase) -> None:
    journal = Journal(phase=phase, release=RELEASE, slot=Slot.B)
    after = recovered(journal, journal.staged)
    assert after.phase is (Phase.IDLE if phase in UPDATING else phase)


@pytest.mark.parametrize("phase", [Phase.SWITCH, Phase.PROBATION])
def test_a_release_that_the_agent_dies_with_is_rolled_back(phase: Phase) -> None:
    journal = Journal(phase=phase, release=RELEASE, slot=Slot.B)
    for _ in range(MAX_STARTS):
        journal = recovered(journal, journal.staged)
        assert journal.phase is phase
    journal = recovered(journal, journal.staged)
    assert (journal.phase, journal.failed_in) == (Phase.ROLLBACK, phase)
    assert "died" in journal.reason


def test_a_release_on_probation_that_is_not_active_is_rolled_back() -> None:
    journal = Journal(phase=Phase.PROBATION, release=RELEASE, slot=Slot.B)
    after = recovered(journal, None)
    assert (after.phase, after.failed_in) == (Phase.ROLLBACK, Phase.PROBATION)


def test_deaths_in_warmup_are_counted_and_those_before_are_not() -> None:
    assert recovered(Journal(phase=Phase.WARMUP), None).starts == 1
    assert recovered(Journal(phase=Phase.FETCH), None).starts == 0


@pytest.mark.parametrize(
    ("seen", "want"),
    [
        (Observation(elapsed_s=1), Judgement.WAIT),
        (Observation(elapsed_s=600), Judgement.HEALTHY),  # no traffic
        (Observation(elapsed_s=600, heard=False), Judgement.WAIT),
        (Observation(elapsed_s=600, inferences=19), Judgement.WAIT),
        (Observation(elapsed_s=600, inferences=20), Judgement.HEALTHY),
        (Observation(elapsed_s=3600, inferences=1), Judgement.HEALTHY),
        (Observation(elapsed_s=1, lost="gone"), Judgement.UNHEALTHY),
        (Observation(elapsed_s=1, errors=4), Judgement.WAIT),
        (Observation(elapsed_s=1, errors=5), Judgement.UNHEALTHY),
        (Observation(elapsed_s=1, inferences=95, errors=5), Judgement.WAIT),
        (Observation(elapsed_s=600, inferences=95, errors=5), Judgement.HEALTHY),
        (Observation(elapsed_s=600, inferences=10, errors=1), Judgement.UNHEALTHY),
        (Observation(elapsed_s=600, errors=1), Judgement.UNHEALTHY),
    ],
)
def test_probation_judges(seen: Observation, want: Judgement) -> None:
    assert judge(seen, LIMITS)[0] is want


def test_probation_looks_at_memory() -> None:
    limits = ProbationLimits(max_rss_bytes=100 << 20)
    judgement, reason = judge(Observation(elapsed_s=0, rss_bytes=101 << 20), limits)
    assert judgement is Judgement.UNHEALTHY
    assert "101 MiB" in reason


def test_a_probation_begins_again_after_a_restart() -> None:
    probation = Probation(LIMITS)
    stats = Stats(inferences=50, errors=0, rejected=0, rss_bytes=1)
    probation.begin()
    assert probation.look(1000.0, stats, None)[0] is Judgement.WAIT
    assert probation.look(1600.0, stats, None)[0] is Judgement.HEALTHY
    probation.begin()
    assert probation.look(1600.0, stats, None)[0] is Judgement.WAIT


@given(elapsed=st.floats(0, 1e5), inferences=st.integers(0, 10**6), errors=st.integers(0, 10**6))
def test_more_errors_never_make_a_worker_healthier(
    elapsed: float, inferences: int, errors: int
) -> None:
    seen = Observation(elapsed_s=elapsed, inferences=inferences, errors=errors)
    worse = Observation(elapsed_s=elapsed, inferences=inferences, errors=errors + 1)
    if judge(seen, LIMITS)[0] is Judgement.UNHEALTHY:
        assert judge(worse, LIMITS)[0] is Judgement.UNHEALTHY


@given(failures=st.integers(0, 10**6), seed=st.integers())
def test_backoff_grows_and_is_bounded(failures: int, seed: int) -> None:
    delay_s = retry_delay_s(failures, least_s=1, most_s=900, randomness=random.Random(seed))
    assert min(0.5 * 2**failures if failures < 20 else 450, 450) <= delay_s <= 900


def test_a_journal_survives_its_file() -> None:
    journal = Journal(phase=Phase.PROBATION, version="1.1", release=RELEASE, slot=Slot.B, starts=2)
    assert msgspec.json.decode(msgspec.json.encode(journal), type=Journal) == journal
