"""Rollouts: the pure rules, and what they come to with devices that answer anyhow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import msgspec
import pytest
from fleets import utc_now
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.hub.conduct import Conduct
from edgekit.hub.ledger import Wanted
from edgekit.hub.rollout import (
    Action,
    Assignment,
    Rollout,
    RolloutStatus,
    Standing,
    act,
    check_selector,
    permitted,
    plan,
    superseded,
)
from edgekit.hub.state import FleetState, expect, fold
from edgekit.release.releases import BundleTarget, Release, Sizes
from edgekit_contract import limits
from edgekit_contract.errors import EdgekitError, Refused
from edgekit_contract.messages import (
    BundleRef,
    DeviceFacts,
    Outcome,
    OutcomeKind,
    Phase,
    Reported,
    ReportedModel,
)

PROFILES = ("small",)


@dataclass(frozen=True)
class View:
    """A device, as planning asks for it."""

    profile: str = "small"
    generation: int = 0
    desired: Mapping[str, str] = field(default_factory=dict)
    reported: Reported | None = None


def rollout(version: str = "2", **fields: object) -> Rollout:
    made = Rollout(id=f"r{version}", model="m", version=version, started_at=float(version))
    return msgspec.structs.replace(made, **fields)


def told(version: str = "2", generation: int = 1, **fields: object) -> View:
    return replace(View(generation=generation, desired={"m": version}), **fields)  # type: ignore[arg-type]


def report(generation: int = 1, **model: object) -> Reported:
    facts = DeviceFacts(profile="small", arch="x86_64", cores=1, ram_bytes=1)
    models = {"m": ReportedModel(**model)}  # type: ignore[arg-type]
    return Reported(at=utc_now(), generation=generation, device=facts, models=models)


def ref(version: str) -> BundleRef:
    return BundleRef(version=version, digest="0" * 64, counter=1)


def ended(kind: OutcomeKind, version: str = "2") -> Outcome:
    return Outcome(kind=kind, version=version, phase=Phase.WARMUP, reason="why", at=utc_now())


UPDATING = Assignment(standing=Standing.UPDATING)


def test_selected_devices_are_told_and_the_rollout_runs() -> None:
    step = plan(rollout(), {}, {"a": View(), "b": View()}, PROFILES)
    assert step.desired == {"a": "2", "b": "2"}
    assert {part.standing for part in step.assignments.values()} == {Standing.UPDATING}
    assert step.status is RolloutStatus.RUNNING


def test_a_rollout_to_nobody_waits_for_somebody() -> None:
    assert plan(rollout(), {}, {}, PROFILES).status is RolloutStatus.RUNNING
    step = plan(rollout(selector="c"), {}, {"a": View()}, PROFILES)
    assert (step.desired, step.status) == ({}, RolloutStatus.RUNNING)


@pytest.mark.parametrize(
    ("selector", "expected"),
    [("all", {"a", "b", "c"}), ("profile:large", {"c"}), ("a,c", {"a", "c"}), ("b", {"b"})],
)
def test_selectors(selector: str, expected: set[str]) -> None:
    devices = {"a": View(), "b": View(), "c": View(profile="large")}
    step = plan(rollout(selector=selector), {}, devices, ("small", "large"))
    assert set(step.desired) == expected


@pytest.mark.parametrize("selector", ["", "label:x", "A", "a,", "profile:", "profile:UP", "hub"])
def test_selectors_that_select_nothing_are_misused(selector: str) -> None:
    with pytest.raises(EdgekitError):
        check_selector(selector)


def test_a_device_without_a_bundle_is_skipped_until_there_is_one() -> None:
    devices = {"a": View(profile="large")}
    step = plan(rollout(), {}, devices, PROFILES)
    assert step.assignments["a"].standing is Standing.SKIPPED
    assert step.assignments["a"].reason == "m@2 has no bundle for profile large"
    assert step.status is RolloutStatus.DONE
    later = plan(rollout(status=RolloutStatus.DONE), step.assignments, devices, ("small", "large"))
    assert later.desired == {"a": "2"}


def test_a_device_of_unknown_profile_is_skipped_and_says_so() -> None:
    step = plan(rollout(), {}, {"a": View(profile="")}, PROFILES)
    assert step.assignments["a"].reason == "its profile is not known yet"


def test_a_device_never_gets_more_models_than_the_wire_allows() -> None:
    full = View(desired={f"m{i}": "1" for i in range(limits.MAX_DESIRED_MODELS)})
    step = plan(rollout(), {}, {"a": full}, PROFILES)
    assert step.assignments["a"].standing is Standing.SKIPPED


@pytest.mark.parametrize(
    ("view", "standing"),
    [
        (told(), Standing.UPDATING),
        (told(reported=report(0, active=ref("2"))), Standing.UPDATING),
        (told(reported=report(1, active=ref("1"))), Standing.UPDATING),
        (told(reported=report(1, active=ref("2"), phase=Phase.PROBATION)), Standing.UPDATING),
        (told(reported=report(1, active=ref("2"))), Standing.COMMITTED),
        (told(reported=report(7, active=ref("2"))), Standing.COMMITTED),
        (told(reported=report(1, last=ended(OutcomeKind.REFUSED))), Standing.FAILED),
        (told(reported=report(1, last=ended(OutcomeKind.ROLLED_BACK))), Standing.FAILED),
        (told(reported=report(1, last=ended(OutcomeKind.REFUSED, "1"))), Standing.UPDATING),
    ],
)
def test_where_a_device_stands_follows_from_what_it_reports(view: View, standing: Standing) -> None:
    step = plan(rollout(), {"a": UPDATING}, {"a": view}, PROFILES)
    after = step.assignments.get("a", UPDATING)
    assert after.standing is standing
    settled = standing is not Standing.UPDATING
    assert step.status is (RolloutStatus.DONE if settled else RolloutStatus.RUNNING)


def test_a_failure_says_where_and_why() -> None:
    view = told(reported=report(1, last=ended(OutcomeKind.REFUSED)))
    step = plan(rollout(), {"a": UPDATING}, {"a": view}, PROFILES)
    assert step.assignments["a"].reason == "refused in warmup: why"


def test_a_release_that_failed_is_tried_again_by_a_new_rollout() -> None:
    failed = told(generation=3, reported=report(3, last=ended(OutcomeKind.REFUSED)))
    step = plan(rollout(), {}, {"a": failed}, PROFILES)
    assert step.desired == {"a": "2"}
    assert step.assignments["a"].standing is Standing.UPDATING
    assert step.status is RolloutStatus.RUNNING
    told_again = replace(failed, generation=4)
    after = plan(rollout(), step.assignments, {"a": told_again}, PROFILES)
    assert (after.desired, after.assignments) == ({}, {})
    answered = replace(told_again, reported=report(4, last=ended(OutcomeKind.REFUSED)))
    end = plan(rollout(), step.assignments, {"a": answered}, PROFILES)
    assert (end.desired, end.status) == ({}, RolloutStatus.DONE)
    assert end.assignments["a"].standing is Standing.FAILED


def test_a_failure_that_commits_after_all_is_committed() -> None:
    failed = Assignment(standing=Standing.FAILED, reason="refused in preflight: disk")
    view = told(reported=report(1, active=ref("2")))
    step = plan(rollout(status=RolloutStatus.DONE), {"a": failed}, {"a": view}, PROFILES)
    assert step.assignments["a"] == Assignment(standing=Standing.COMMITTED)


def test_paused_tells_nobody_new_and_lets_the_told_go_on() -> None:
    paused = rollout(status=RolloutStatus.PAUSED)
    devices = {"new": View(), "told": told(reported=report(1, active=ref("2")))}
    step = plan(paused, {"told": UPDATING}, devices, PROFILES)
    assert step.desired == {}
    assert step.assignments["new"].standing is Standing.WAITING
    assert step.assignments["told"].standing is Standing.COMMITTED
    assert step.status is RolloutStatus.PAUSED
    resumed = plan(rollout(), step.assignments, devices, PROFILES)
    assert resumed.desired == {"new": "2"}


def test_a_device_that_enrols_after_the_end_is_told_unless_it_has_the_model() -> None:
    done = rollout(status=RolloutStatus.DONE)
    step = plan(done, {}, {"new": View(), "other": told("3")}, PROFILES)
    assert step.desired == {"new": "2"}
    assert step.status is RolloutStatus.DONE
    assert "other" not in step.assignments


def test_an_abort_returns_the_told_to_what_they_served() -> None:
    serving = View(desired={"m": "1"}, generation=4, reported=report(4, active=ref("1")))
    begun = plan(rollout(), {}, {"a": serving, "b": View()}, PROFILES)
    parts = dict(begun.assignments)
    assert (parts["a"].previous, parts["b"].previous) == ("1", None)
    devices = {
        "a": told(generation=5, reported=report(4, active=ref("1"))),
        "b": told(),
        "done": told(reported=report(1, active=ref("2"))),
    }
    parts["done"] = UPDATING
    step = plan(rollout(status=RolloutStatus.ABORTED), parts, devices, PROFILES)
    assert step.desired == {"a": "1", "b": None}
    assert step.assignments["a"].standing is Standing.SKIPPED
    assert step.assignments["done"].standing is Standing.COMMITTED
    again = plan(
        rollout(status=RolloutStatus.ABORTED), {**parts, **step.assignments}, devices, PROFILES
    )
    assert (again.desired, again.assignments) == ({}, {})


@pytest.mark.parametrize("status", RolloutStatus)
@pytest.mark.parametrize("action", Action)
def test_orders_are_taken_exactly_where_they_are_permitted(
    status: RolloutStatus, action: Action
) -> None:
    before = rollout(status=status)
    if action in permitted(status):
        after = act(before, action, now=9.0)
        assert after.status is not status
        assert (after.ended_at == 9.0) == (action is Action.ABORT)
    else:
        with pytest.raises(Refused, match="nothing to"):
            act(before, action, now=9.0)


def test_a_new_rollout_supersedes_the_unfinished_ones_of_its_model() -> None:
    old = [
        rollout("1"),
        rollout("2", status=RolloutStatus.PAUSED),
        rollout("3", status=RolloutStatus.DONE),
        rollout("4", model="other"),
    ]
    ended_now = superseded(old, rollout("9"))
    assert [(r.id, r.status, r.note) for r in ended_now] == [
        ("r1", RolloutStatus.ABORTED, "superseded by m@9"),
        ("r2", RolloutStatus.ABORTED, "superseded by m@9"),
    ]


# The whole of it: rollouts begin, are paused, resumed and aborted at any time, while devices obey,
# fail, sleep or answer late.


def released(version: str) -> Release:
    sizes = Sizes(envelope_bytes=1, unpacked_bytes=1, download_bytes=1)
    target = BundleTarget(profile="small", runtime="null", digest="0" * 64, sizes=sizes)
    return Release(name="m", version=version, counter=1, floor=0, bundles={"small": target})


VERSIONS = ("1", "2", "3")
STEPS = st.one_of(
    st.tuples(st.just("start"), st.sampled_from(VERSIONS)),
    st.tuples(st.just("order"), st.sampled_from(Action)),
    st.tuples(st.sampled_from(("commit", "refuse", "probation")), st.sampled_from("abc")),
    st.tuples(st.just("join"), st.sampled_from("abc")),
)


class World:
    """Conduct with its writes applied at once, and devices that answer when told to."""

    def __init__(self) -> None:
        self.state = FleetState()
        self.conduct = Conduct(self.state)
        self.conduct.releases = [released(version) for version in VERSIONS]
        self.served: dict[str, str] = {}
        self.clock = 0.0

    def apply(self, verb: str, value: object) -> None:
        self.clock += 1
        if verb == "start":
            new = Rollout(id=str(self.clock), model="m", version=str(value), started_at=self.clock)
            gone = {r.id: r for r in superseded(self.conduct.rollouts, new)}
            kept = [gone.get(r.id, r) for r in self.conduct.rollouts]
            self.conduct.take_rollouts([new, *kept])
        elif verb == "order":
            assert isinstance(value, Action)
            first, rest = self.conduct.rollouts[:1], self.conduct.rollouts[1:]
            if first and value in permitted(first[0].status):
                self.conduct.take_rollouts([act(first[0], value, now=self.clock), *rest])
        elif verb == "join":
            expect(self.state, str(value), profile="small")
        elif value in self.state.devices:
            self.answer(verb, str(value))

    def answer(self, verb: str, device: str) -> None:
        wanted = self.conduct.wanted.get(device, Wanted())
        version = wanted.models.get("m")
        model: dict[str, object] = {}
        if version is None:
            self.served.pop(device, None)
        elif verb == "commit":
            self.served[device] = version
        elif verb == "probation":
            model = {"phase": Phase.PROBATION, "active": ref(version)}
        else:
            model = {"last": ended(OutcomeKind.REFUSED, version)}
        if device in self.served:
            model.setdefault("active", ref(self.served[device]))
        fold(self.state, device, report(wanted.generation, **model), self.clock)

    def plan(self) -> None:
        before = dict(self.conduct.wanted)
        for _ in range(4):
            news = self.conduct.plan(self.clock)
            for device, wanted in news.wanted.items():
                assert wanted.generation > before.get(device, Wanted()).generation
            self.conduct.settle(news)
            if not news:
                return
        raise AssertionError("planning without news does not come to rest")


@settings(max_examples=500, deadline=None)
@given(st.lists(STEPS, max_size=30))
def test_whatever_happens_planning_comes_to_rest_and_generations_grow(
    steps: list[tuple[str, object]],
) -> None:
    world = World()
    for verb, value in steps:
        committed = {
            (r.id, device)
            for r in world.conduct.rollouts
            for device, part in world.conduct.assignments.get(r.id, {}).items()
            if part.standing is Standing.COMMITTED
        }
        wanted = dict(world.conduct.wanted)
        world.apply(verb, value)
        world.plan()
        for id_, device in committed:
            part = world.conduct.assignments[id_][device]
            assert part.standing is Standing.COMMITTED
        if (verb, value) == ("order", Action.ABORT) and world.conduct.rollouts:
            first = world.conduct.rollouts[0]
            for id_, device in committed:
                if id_ == first.id:  # who committed is not moved back
                    assert world.conduct.wanted[device] == wanted[device]
        running = [
            r
            for r in world.conduct.rollouts
            if r.status in (RolloutStatus.RUNNING, RolloutStatus.PAUSED)
        ]
        assert len(running) <= 1
