"""What the hub knows of its fleet: messages folded into one value. Pure and deterministic.

Two transitions and no others: `fold` (a message came) and `advance` (time passed); `expect` and
`forget` enter and strike out a device. Invariants:

- The same calls in the same order give the same state; folds of different devices commute.
- A health or event message whose sequence is not above the newest of its stream changes nothing.
- Every count and index equals what a walk over all devices would give (`tests/unit/test_state.py`
  walks), so that no reader ever has to.
- Nothing here grows with time: all that is kept per device is bounded.

Instants are Unix seconds of the hub's clock, handed in.
"""

from __future__ import annotations

import enum
import heapq
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, TypeVar

from edgekit.hub.device import (
    DeviceState,
    ModelState,
    Presence,
    Problem,
    believed,
    host_values,
    model_values,
    requests_since,
)
from edgekit.hub.problems import find_problems, next_change
from edgekit_contract.messages import Event, EventKind, Health, ModelHealth, Phase, Reported, Status

__all__ = [
    "Change",
    "DeviceState",
    "FleetState",
    "ModelState",
    "Presence",
    "Problem",
    "advance",
    "expect",
    "fold",
    "forget",
]

K = TypeVar("K")

FLEET_EVENTS_KEPT: Final = 100


class Change(enum.Flag):
    """What a message changed, for whoever keeps or shows it."""

    NONE = 0
    """Nothing but, at most, when the device was last heard: a repetition."""
    STATUS = enum.auto()
    REPORTED = enum.auto()
    HEALTH = enum.auto()
    EVENT = enum.auto()
    TAKEOVER = enum.auto()
    """A second agent uses this device's identity; found in `Status` alone."""


@dataclass(slots=True)
class FleetState:
    """All devices, with the counts and indexes that pages ask for."""

    devices: dict[str, DeviceState] = field(default_factory=dict)
    version: int = 0
    """Grows with every change."""
    index_version: int = 0
    """Grows when a device comes or goes, or its presence, bundles, phases or problems change."""
    by_presence: Counter[Presence] = field(default_factory=Counter)
    by_bundle: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Devices by (model, active version)."""
    by_profile: Counter[str] = field(default_factory=Counter)
    by_phase: Counter[Phase] = field(default_factory=Counter)
    """Models on devices by the phase of their update machine."""
    troubled: dict[str, DeviceState] = field(default_factory=dict)
    """Devices that have a problem, in no order."""
    events: deque[tuple[str, float, Event]] = field(
        default_factory=lambda: deque(maxlen=FLEET_EVENTS_KEPT)
    )
    """The newest events of the fleet: device, arrival, event."""
    _entries: dict[str, _Entry] = field(default_factory=dict)
    _due: list[tuple[float, str]] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    """What a device adds to the counts; kept so that it can be taken out again."""

    presence: Presence
    profile: str
    bundles: tuple[tuple[str, str], ...]
    phases: tuple[Phase, ...]
    targets: tuple[str | None, ...]
    problems: tuple[Problem, ...]


def fold(
    state: FleetState,
    device_id: str,
    message: Status | Reported | Health | Event,
    at: float,
    *,
    retained: bool = False,
) -> Change:
    """Take in a message of `device_id` (a valid id) that arrived at `at`; amortized O(1).

    A `retained` message tells what was last said, not that the device lives now.
    """
    device = state.devices.get(device_id) or _enter(state, device_id)
    change = _FOLDS[type(message)](device, message, at, retained)
    if not (isinstance(message, Status) and not message.online):
        if not retained:
            device.heard_at = at
        elif device.heard_at is None and message.at is not None:
            device.heard_at = believed(message.at.timestamp(), at)
        device.alive_at = at
    if isinstance(message, Event) and Change.EVENT in change:
        state.events.append((device_id, at, message))
    _refresh(state, device, at)
    _touch(state, device)
    return change


def advance(state: FleetState, now: float) -> list[str]:
    """Let time pass: devices become late, old troubles fade. Returns the ids that changed.

    Call about once a second; the cost is that of the devices whose time has come.
    """
    changed = []
    while state._due and state._due[0][0] <= now:
        due_at, device_id = heapq.heappop(state._due)
        device = state.devices.get(device_id)
        if device is None or device.due_at != due_at:
            continue
        device.due_at = None
        if _refresh(state, device, now):
            _touch(state, device)
            changed.append(device_id)
    return changed


def expect(state: FleetState, device_id: str, *, profile: str) -> None:
    """Enter an enrolled device that may not have spoken yet. Idempotent."""
    device = state.devices.get(device_id) or _enter(state, device_id)
    device.profile = device.profile or profile
    if _refresh(state, device, device.alive_at or 0.0):
        _touch(state, device)


def forget(state: FleetState, device_id: str) -> None:
    """Strike a device out, as after its revocation. Idempotent."""
    if device_id in state.devices:
        _count(state, state._entries.pop(device_id), -1)
        del state.devices[device_id]
        state.troubled.pop(device_id, None)
        state.version += 1
        state.index_version += 1


def _enter(state: FleetState, device_id: str) -> DeviceState:
    device = state.devices[device_id] = DeviceState(device_id)
    return device


def _fold_status(device: DeviceState, message: Status, at: float, retained: bool) -> Change:
    before, now = device.instances
    takeover = False
    if message.online and message.instance and message.instance != now:
        takeover = message.instance == before
        device.instances = (now, message.instance)
    elif not message.online and message.instance not in ("", now) and now:
        return Change.NONE  # the Will of an agent that has been succeeded
    if takeover:
        device.takeovers += 1
        device.takeover_at = at
    changed = message != device.status
    device.status = message
    if message.online:
        device.unreachable_at = None
    elif changed or device.unreachable_at is None:
        device.unreachable_at = at if not retained or device.heard_at is None else device.heard_at
    return (Change.STATUS if changed else Change.NONE) | (
        Change.TAKEOVER if takeover else Change.NONE
    )


def _fold_reported(device: DeviceState, message: Reported, at: float, retained: bool) -> Change:
    if message == device.reported:
        return Change.NONE
    device.reported = message
    device.profile = message.device.profile
    for name, reported in message.models.items():
        model = device.models.get(name)
        if model is None:
            model = device.models[name] = ModelState(name)
        old, model.reported = model.reported, reported
        if (old.phase, old.target, old.progress) != (
            reported.phase,
            reported.target,
            reported.progress,
        ):
            model.moved_at = at
    for name in device.models.keys() - message.models.keys():
        del device.models[name]
    return Change.REPORTED


def _fold_health(device: DeviceState, message: Health, at: float, retained: bool) -> Change:
    stream, seq = device.health_seen
    if message.stream == stream and message.seq <= seq:
        return Change.NONE
    taken_at = believed(message.at.timestamp(), at)
    before = device.health
    elapsed_s = 0.0
    if before is not None and before.stream == message.stream:
        elapsed_s = (message.at - before.at).total_seconds()
        if elapsed_s > 0:
            device.health_every_s = elapsed_s / (message.seq - seq)
    device.health, device.health_seen = message, (message.stream, message.seq)
    device.points.append(taken_at, host_values(message))
    for name, health in message.models.items():
        model = device.models.get(name)
        if model is None:
            if device.reported is not None:
                continue  # removed since; its last words are nobody's
            model = device.models[name] = ModelState(name)
        _fold_model_health(model, health, taken_at, at, elapsed_s)
    return Change.HEALTH


def _fold_model_health(
    model: ModelState, health: ModelHealth, taken_at: float, at: float, elapsed_s: float
) -> None:
    before, model.health = model.health, health
    if (
        before is not None
        and before.version == health.version
        and before.restarts < health.restarts
    ):
        model.worker_lost_at = at
    requests, errors = requests_since(health, before)
    model.failing_share = errors / max(requests, errors) if errors else 0.0
    model.points.append(taken_at, model_values(health, before, elapsed_s))


def _fold_event(device: DeviceState, message: Event, at: float, retained: bool) -> Change:
    stream, seq = device.event_seen
    if message.stream == stream and message.seq <= seq:
        return Change.NONE
    device.event_seen = (message.stream, message.seq)
    device.events.append(message)
    happened_at = believed(message.at.timestamp(), at)
    if message.kind is EventKind.TAKEOVER:
        device.takeovers += 1
        device.takeover_at = happened_at
    elif message.kind is EventKind.WORKER_LOST and message.model in device.models:
        device.models[message.model].worker_lost_at = happened_at
    return Change.EVENT


_FOLDS: Final[dict[type, Callable[..., Change]]] = {
    Status: _fold_status,
    Reported: _fold_reported,
    Health: _fold_health,
    Event: _fold_event,
}


def _presence(device: DeviceState, now: float) -> Presence:
    if device.status is None and device.alive_at is None:
        return Presence.EXPECTED
    if device.status is not None and device.status.suspended:
        return Presence.SUSPENDED
    if device.status is not None and not device.status.online:
        return Presence.UNREACHABLE
    late_at = (device.alive_at or 0.0) + device.late_after_s
    return Presence.LATE if now >= late_at else Presence.ONLINE


def _refresh(state: FleetState, device: DeviceState, now: float) -> bool:
    """Derive what follows from the device's messages and the time, and index it."""
    device.presence = _presence(device, now)
    device.problems = find_problems(device, now)
    models = device.models.values()
    entry = _Entry(
        presence=device.presence,
        profile=device.profile,
        bundles=tuple((model.name, model.active_version) for model in models),
        phases=tuple(model.reported.phase for model in models),
        targets=tuple(model.reported.target for model in models),
        problems=device.problems,
    )
    old = state._entries.get(device.id)
    changed = entry != old
    if changed:
        if old is not None:
            _count(state, old, -1)
        _count(state, entry, 1)
        state._entries[device.id] = entry
        if entry.problems:
            state.troubled[device.id] = device
        else:
            state.troubled.pop(device.id, None)
        state.index_version += 1
    _schedule(state, device, now)
    return changed


def _touch(state: FleetState, device: DeviceState) -> None:
    state.version += 1
    device.version = state.version


def _count(state: FleetState, entry: _Entry, by: int) -> None:
    _add(state.by_presence, entry.presence, by)
    _add(state.by_profile, entry.profile, by)
    for bundle in entry.bundles:
        _add(state.by_bundle, bundle, by)
    for phase in entry.phases:
        _add(state.by_phase, phase, by)


def _add(counter: Counter[K], key: K, by: int) -> None:
    counter[key] += by
    if not counter[key]:
        del counter[key]


def _schedule(state: FleetState, device: DeviceState, now: float) -> None:
    """Keep the heap's entry of a device no later than time can change it.

    A due time that moves later is left where it is and moved when it is reached, so that a device
    which reports often costs one push per lateness period, not one per message.
    """
    due_at = next_change(device, now)
    if due_at is not None and (device.due_at is None or due_at < device.due_at):
        device.due_at = due_at
        heapq.heappush(state._due, (due_at, device.id))
