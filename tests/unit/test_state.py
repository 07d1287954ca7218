"""The fold: what the hub believes follows from the messages and the clock alone."""

from __future__ import annotations

import copy
from collections import Counter
from datetime import datetime, timedelta, timezone

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.hub.device import ProblemKind
from edgekit.hub.problems import FADE_S, STALL_S
from edgekit.hub.state import (
    Change,
    DeviceState,
    FleetState,
    Presence,
    advance,
    expect,
    fold,
    forget,
)
from edgekit_contract.messages import (
    BundleRef,
    DeviceFacts,
    Event,
    EventKind,
    Execution,
    Health,
    HostMetrics,
    ModelHealth,
    Outcome,
    OutcomeKind,
    Phase,
    ProcessMetrics,
    Reported,
    ReportedModel,
    Status,
)

BEGAN = datetime(2026, 3, 1, tzinfo=timezone.utc)
T0 = BEGAN.timestamp()
FACTS = DeviceFacts(profile="raspberry-pi-5", arch="aarch64", cores=4, ram_bytes=8 << 30)


def when(s: float) -> datetime:
    return BEGAN + timedelta(seconds=s)


def online(instance: str = "a1", s: float = 0) -> Status:
    return Status(online=True, instance=instance, at=when(s))


def will(instance: str = "a1") -> Status:
    return Status(online=False, instance=instance)


def reported(
    version: str | None = "1.0",
    *,
    s: float = 0,
    phase: Phase = Phase.IDLE,
    target: str | None = None,
    last: Outcome | None = None,
    execution: Execution | None = None,
) -> Reported:
    active = None if version is None else BundleRef(version=version, digest="ab" * 32, counter=1)
    return Reported(
        at=when(s),
        generation=1,
        device=FACTS,
        models={
            "digits": ReportedModel(
                active=active, phase=phase, target=target, last=last, execution=execution
            )
        },
    )


def health(
    seq: int,
    *,
    stream: str = "q",
    every_s: float = 30,
    inferences: int = 0,
    errors: int = 0,
    restarts: int = 0,
    host: HostMetrics | None = None,
) -> Health:
    return Health(
        stream=stream,
        seq=seq,
        at=when(seq * every_s),
        host=host,
        daemon=ProcessMetrics(rss_bytes=25 << 20),
        models={
            "digits": ModelHealth(
                version="1.0",
                worker=ProcessMetrics(rss_bytes=60 << 20),
                inferences=inferences,
                errors=errors,
                restarts=restarts,
                p50_ms=1.0,
                p95_ms=2.0,
                p99_ms=3.0,
            )
        },
    )


def event(seq: int, kind: EventKind = EventKind.STARTED, *, stream: str = "q") -> Event:
    return Event(stream=stream, seq=seq, at=when(seq), kind=kind, text="it began", model="digits")


def folded(
    *steps: tuple[Status | Reported | Health | Event, float],
) -> tuple[FleetState, DeviceState]:
    state = FleetState()
    for message, s in steps:
        fold(state, "pi-1", message, T0 + s)
    return state, state.devices["pi-1"]


def kinds(device: DeviceState) -> set[ProblemKind]:
    return {problem.kind for problem in device.problems}


def test_a_device_that_says_online_is_online() -> None:
    state, device = folded((online(), 0))
    assert device.presence is Presence.ONLINE
    assert state.by_presence == {Presence.ONLINE: 1}
    assert device.heard_at == T0


def test_a_will_makes_a_device_unreachable_since_then() -> None:
    state, device = folded((online(), 0), (will(), 50))
    assert device.presence is Presence.UNREACHABLE
    assert (device.heard_at, device.unreachable_at) == (T0, T0 + 50)
    assert kinds(device) == {ProblemKind.UNREACHABLE}
    assert state.troubled == {"pi-1": device}


def test_a_device_that_returns_has_no_problem_left() -> None:
    state, device = folded((online(), 0), (will(), 50), (online("a2"), 60))
    assert device.presence is Presence.ONLINE
    assert not device.problems and not state.troubled


def test_the_will_of_an_agent_that_was_succeeded_is_not_believed() -> None:
    _, device = folded((online("a1"), 0), (online("a2"), 10), (will("a1"), 20))
    assert device.presence is Presence.ONLINE


def test_two_instances_by_turns_are_a_takeover_and_a_restart_is_none() -> None:
    state, device = folded((online("a1"), 0), (online("a2"), 10))
    assert device.takeovers == 0
    assert fold(state, "pi-1", online("a1"), T0 + 20) == Change.STATUS | Change.TAKEOVER
    assert device.takeovers == 1
    assert kinds(device) == {ProblemKind.CONTESTED}


def test_a_takeover_fades_when_it_does_not_recur() -> None:
    state, device = folded((online("a1"), 0), (online("a2"), 10), (online("a1"), 20))
    fold(state, "pi-1", health(20), T0 + 600)  # keeps it from being late
    assert advance(state, T0 + 20 + FADE_S) == ["pi-1"]
    assert not device.problems


def test_silence_for_three_health_periods_is_late() -> None:
    state, device = folded((online(), 0), (health(1), 30), (health(2), 60))
    assert advance(state, T0 + 149) == []
    assert state.by_presence == {Presence.ONLINE: 1}
    assert advance(state, T0 + 150) == ["pi-1"]
    assert state.by_presence == {Presence.LATE: 1}
    assert kinds(device) == {ProblemKind.LATE}
    fold(state, "pi-1", health(3), T0 + 151)
    assert state.by_presence == {Presence.ONLINE: 1}


def test_lateness_follows_the_period_of_the_device() -> None:
    state, device = folded((online(), 0), (health(1, every_s=1), 1), (health(2, every_s=1), 2))
    assert device.health_every_s == 1
    advance(state, T0 + 2 + 5)
    assert device.presence is Presence.LATE


def test_a_suspended_device_is_no_problem() -> None:
    _, device = folded((Status(online=False, suspended=True, instance="a1"), 0))
    assert device.presence is Presence.SUSPENDED
    assert not device.problems


def test_a_retained_message_does_not_tell_that_the_device_lives() -> None:
    state = FleetState()
    fold(state, "pi-1", will(), T0 + 1000, retained=True)
    fold(state, "pi-1", reported(s=10), T0 + 1000, retained=True)
    device = state.devices["pi-1"]
    assert device.presence is Presence.UNREACHABLE
    assert device.heard_at == T0 + 10


def test_a_clock_that_lives_in_1970_is_not_believed() -> None:
    state = FleetState()
    message = msgspec.structs.replace(health(1), at=datetime(1970, 1, 1, tzinfo=timezone.utc))
    fold(state, "pi-1", message, T0 + 5)
    assert [at for at, _ in state.devices["pi-1"].points.after(0)] == [T0 + 5]


def test_health_stored_while_offline_keeps_its_own_times() -> None:
    _, device = folded((reported(), 0), (health(1), 500), (health(2), 500))
    assert [at for at, _ in device.models["digits"].points.after(0)] == [T0 + 30, T0 + 60]
    assert device.models["digits"].points.newest("p95_ms") == 2.0


def test_an_enrolled_device_that_never_spoke_is_expected() -> None:
    state = FleetState()
    expect(state, "pi-1", profile="raspberry-pi-5")
    expect(state, "pi-1", profile="raspberry-pi-5")
    assert state.by_presence == {Presence.EXPECTED: 1}
    assert state.by_profile == {"raspberry-pi-5": 1}


def test_a_forgotten_device_leaves_no_count_behind() -> None:
    state, _ = folded((online(), 0), (reported(), 0), (will(), 9))
    forget(state, "pi-1")
    forget(state, "pi-1")
    assert not (state.devices or state.by_presence or state.by_bundle or state.by_profile)
    assert not state.troubled
    assert advance(state, T0 + 1e6) == []


def test_a_model_that_is_no_longer_reported_is_gone() -> None:
    state, device = folded((reported(), 0), (health(1), 30))
    fold(state, "pi-1", msgspec.structs.replace(reported(s=40), models={}), T0 + 40)
    fold(state, "pi-1", health(2), T0 + 60)
    assert not device.models and not state.by_bundle


@pytest.mark.parametrize(
    ("kind", "problem"),
    [
        (OutcomeKind.REFUSED, ProblemKind.REFUSED),
        (OutcomeKind.ROLLED_BACK, ProblemKind.ROLLED_BACK),
    ],
)
def test_a_bad_outcome_is_a_problem_until_the_next_good_one(
    kind: OutcomeKind, problem: ProblemKind
) -> None:
    def outcome(kind: OutcomeKind) -> Outcome:
        return Outcome(kind=kind, version="1.1", phase=Phase.WARMUP, reason="golden", at=when(5))

    state, device = folded((online(), 0), (reported(last=outcome(kind)), 5))
    assert kinds(device) == {problem}
    assert "golden" in device.problems[0].text
    fold(state, "pi-1", reported(last=outcome(OutcomeKind.COMMITTED), s=9), T0 + 9)
    assert not device.problems


def test_a_model_that_does_without_what_it_was_to_use_is_a_problem() -> None:
    lame = Execution(asked=("A", "B"), used=("B",), reason="A: its library does not load.")
    state, device = folded((online(), 0), (reported(execution=lame), 5))
    assert kinds(device) == {ProblemKind.FALLBACK}
    assert device.problems[0].text == "digits does without A: its library does not load."
    whole = Execution(asked=("A", "B"), used=("A", "B"))
    fold(state, "pi-1", reported(execution=whole, s=9), T0 + 9)
    assert not device.problems


def test_an_update_that_stands_still_is_stalled() -> None:
    state, device = folded((reported(phase=Phase.FETCH, target="1.1"), 0))
    for minute in range(1, 15):
        fold(state, "pi-1", health(minute, every_s=60), T0 + 60 * minute)
    advance(state, T0 + STALL_S - 1)
    assert not device.problems
    advance(state, T0 + STALL_S)
    assert kinds(device) == {ProblemKind.STALLED}


def test_failing_requests_and_lost_workers_are_critical() -> None:
    _, device = folded(
        (reported(), 0),
        (health(1, inferences=100), 30),
        (health(2, inferences=150, errors=25), 60),
    )
    assert kinds(device) == {ProblemKind.FAILING}
    assert device.models["digits"].failing_share == 0.5
    _, device = folded((reported(), 0), (health(1), 30), (health(2, restarts=1), 60))
    assert kinds(device) == {ProblemKind.WORKER_LOST}


def test_a_worker_that_starts_anew_counts_from_zero_without_alarm() -> None:
    _, device = folded(
        (reported(), 0),
        (health(1, inferences=100, errors=9), 30),
        (health(2, inferences=3, errors=0), 60),
    )
    assert not device.problems


@pytest.mark.parametrize(
    ("host", "problem"),
    [
        (HostMetrics(throttled=True), ProblemKind.THROTTLED),
        (HostMetrics(temperature_c=91.0), ProblemKind.HOT),
        (HostMetrics(disk_free_bytes=1 << 20), ProblemKind.DISK_LOW),
    ],
)
def test_a_host_in_need_is_a_problem(host: HostMetrics, problem: ProblemKind) -> None:
    _, device = folded((health(1, host=host), 30))
    assert kinds(device) == {problem}


def test_the_gravest_problem_comes_first() -> None:
    _, device = folded((health(1, host=HostMetrics(throttled=True)), 30), (will(), 40))
    assert [p.kind for p in device.problems] == [ProblemKind.UNREACHABLE, ProblemKind.THROTTLED]


MESSAGES = st.one_of(
    st.builds(online, st.sampled_from(["a1", "a2", "a3"])),
    st.builds(will, st.sampled_from(["a1", "a2", "a3"])),
    st.builds(
        reported,
        st.sampled_from([None, "1.0", "1.1"]),
        phase=st.sampled_from(Phase),
        target=st.sampled_from([None, "1.1"]),
    ),
    st.builds(
        health,
        st.integers(0, 9),
        stream=st.sampled_from("qr"),
        inferences=st.integers(0, 99),
        errors=st.integers(0, 9),
        restarts=st.integers(0, 2),
    ),
    st.builds(event, st.integers(0, 9), st.sampled_from(EventKind), stream=st.sampled_from("qr")),
)
DEVICES = ("pi-1", "pi-2", "pi-3")
STEPS = st.lists(
    st.tuples(st.sampled_from(DEVICES), MESSAGES, st.booleans(), st.integers(0, 200)), max_size=40
)


def run(steps: list[tuple[str, Status | Reported | Health | Event, bool, int]]) -> FleetState:
    state, now = FleetState(), T0
    for device_id, message, retained, wait_s in steps:
        now += wait_s
        advance(state, now)
        fold(state, device_id, message, now, retained=retained)
    return state


def facts(device: DeviceState) -> dict[str, object]:
    """Everything of a device but the fleet's version and the heap's entry."""
    seen = {name: getattr(device, name) for name in DeviceState.__slots__}
    del seen["version"], seen["due_at"], seen["points"]
    seen["models"] = [
        (m.name, m.reported, m.moved_at, m.health, m.worker_lost_at, list(m.points.after(0)))
        for m in device.models.values()
    ]
    seen["rows"] = list(device.points.after(0))
    return seen


@given(STEPS)
def test_counts_and_indexes_equal_a_walk_over_all_devices(steps: list) -> None:  # type: ignore[type-arg]
    state = run(steps)
    devices = state.devices.values()
    assert state.by_presence == Counter(d.presence for d in devices)
    assert state.by_profile == Counter(d.profile for d in devices)
    assert state.by_bundle == Counter(
        (m.name, m.active_version) for d in devices for m in d.models.values()
    )
    assert state.by_phase == Counter(m.reported.phase for d in devices for m in d.models.values())
    assert state.troubled == {d.id: d for d in devices if d.problems}
    assert all(0 < d.version <= state.version for d in devices)


@given(STEPS)
def test_folds_of_different_devices_commute(steps: list) -> None:  # type: ignore[type-arg]
    now, timed = T0, []
    for device_id, message, retained, wait_s in steps:
        now += wait_s
        timed.append((device_id, message, retained, now))
    mixed, sorted_ = FleetState(), FleetState()
    for state, order in ((mixed, timed), (sorted_, sorted(timed, key=lambda step: step[0]))):
        for device_id, message, retained, at in order:
            fold(state, device_id, message, at, retained=retained)
        advance(state, now)
    assert {i: facts(d) for i, d in mixed.devices.items()} == {
        i: facts(d) for i, d in sorted_.devices.items()
    }
    assert mixed.by_bundle == sorted_.by_bundle


@given(STEPS, st.one_of(st.builds(health, st.integers(0, 9)), st.builds(event, st.integers(0, 9))))
def test_a_sequence_seen_before_changes_nothing_but_when_it_was_heard(
    steps: list,  # type: ignore[type-arg]
    message: Health | Event,
) -> None:
    state = run([*steps, ("pi-1", message, False, 0)])
    before = facts(state.devices["pi-1"])
    at = state.devices["pi-1"].heard_at
    assert at is not None
    assert fold(state, "pi-1", message, at) is Change.NONE
    assert facts(state.devices["pi-1"]) == before


@given(STEPS, st.integers(0, 4000))
def test_time_in_small_steps_or_one_leap_ends_alike(steps: list, wait_s: int) -> None:  # type: ignore[type-arg]
    leap = run(steps)
    end = T0 + sum(step[3] for step in steps) + wait_s
    small = copy.deepcopy(leap)
    for s in range(wait_s // 7):
        advance(small, end - wait_s + 7 * s)
    advance(leap, end)
    advance(small, end)
    assert {i: facts(d) for i, d in leap.devices.items()} == {
        i: facts(d) for i, d in small.devices.items()
    }


def test_what_is_kept_of_a_device_does_not_grow_with_its_messages() -> None:
    state, device = folded((reported(), 0))
    for seq in range(2000):
        fold(state, "pi-1", health(seq), T0 + seq)
        fold(state, "pi-1", event(seq), T0 + seq)
    advance(state, T0 + 1999)
    assert len(device.points) <= 120 and len(device.models["digits"].points) <= 120
    assert len(device.events) == 16 and len(state.events) == 100
    assert len(state._due) <= 3
