"""Rollouts: from what devices report to what they are to do. Pure.

Invariants: a device is moved by at most one rollout of a model, the newest that was not aborted;
planning twice without news changes nothing; a device that committed is never moved back by an
abort. Nothing here knows of time zones, topics or tables: the caller writes a `Step` down, then
acts on it.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterable, Mapping
from typing import Final, Protocol

import msgspec

from edgekit_contract import limits, names
from edgekit_contract.errors import Misused, Refused
from edgekit_contract.messages import OutcomeKind, Phase, Reported

__all__ = [
    "ALL",
    "Action",
    "Assignment",
    "DeviceView",
    "Rollout",
    "RolloutStatus",
    "Standing",
    "Step",
    "Wave",
    "act",
    "check_selector",
    "chosen_devices",
    "chosen_profile",
    "in_force",
    "permitted",
    "plan",
    "selects",
    "standing_of",
    "superseded",
]

ALL: Final = "all"


class RolloutStatus(enum.Enum):
    RUNNING = "running"
    PAUSED = "paused"
    """No further device is told; those that were go on."""
    DONE = "done"
    """Every device ended. Devices that enrol later are still told."""
    ABORTED = "aborted"


class Action(enum.Enum):
    """What may be ordered of a rollout that exists."""

    PAUSE = "pause"
    RESUME = "resume"
    ABORT = "abort"


class Standing(enum.Enum):
    """Where one device stands in a rollout."""

    WAITING = "waiting"
    """Its wave has not begun, or the rollout is paused."""
    UPDATING = "updating"
    """The hub wants it there and the device has not ended; its phase tells how far it is."""
    COMMITTED = "committed"
    FAILED = "failed"
    """Refused or rolled back."""
    SKIPPED = "skipped"
    """The release has no bundle for its profile, or the rollout ended before the device did."""


class Wave(msgspec.Struct, frozen=True, kw_only=True):
    """A part of the selected devices that is told at once."""

    title: str = ALL


class Rollout(msgspec.Struct, frozen=True, kw_only=True):
    """Moving selected devices to one release. Instants are Unix seconds."""

    id: str
    model: str
    version: str
    selector: str = ALL
    """`all`, `profile:NAME`, or device ids with commas between."""
    waves: tuple[Wave, ...] = (Wave(),)
    status: RolloutStatus = RolloutStatus.RUNNING
    note: str = ""
    """Why it is in this status, where there is more to say."""
    started_at: float
    ended_at: float | None = None

    @property
    def title(self) -> str:
        return f"{self.model}@{self.version}"


class Assignment(msgspec.Struct, frozen=True, kw_only=True):
    """One device's part in one rollout."""

    wave: int = 0
    standing: Standing
    reason: str = ""
    previous: str | None = None
    """The version to return to when the rollout is aborted; None: the model is removed."""


class DeviceView(Protocol):
    """What planning asks of a device."""

    @property
    def profile(self) -> str: ...
    @property
    def reported(self) -> Reported | None: ...
    @property
    def generation(self) -> int:
        """Of the desired state."""
        ...

    @property
    def desired(self) -> Mapping[str, str]:
        """Model to version."""
        ...


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """What follows for one rollout: differences only, empty where there is no news."""

    desired: Mapping[str, str | None] = {}
    """Device to the version it is to be told, in a new generation; None: to remove the model."""
    assignments: Mapping[str, Assignment] = {}
    status: RolloutStatus
    """The rollout's status from now on."""


_ACTIONS: Final = {
    (RolloutStatus.RUNNING, Action.PAUSE): RolloutStatus.PAUSED,
    (RolloutStatus.PAUSED, Action.RESUME): RolloutStatus.RUNNING,
    (RolloutStatus.RUNNING, Action.ABORT): RolloutStatus.ABORTED,
    (RolloutStatus.PAUSED, Action.ABORT): RolloutStatus.ABORTED,
    (RolloutStatus.DONE, Action.ABORT): RolloutStatus.ABORTED,
}


def act(rollout: Rollout, action: Action, *, now: float) -> Rollout:
    """The rollout after an order. Errors: `Refused` where its status does not permit that."""
    after = _ACTIONS.get((rollout.status, action))
    if after is None:
        raise Refused(
            f"the rollout of {rollout.title} is {rollout.status.value}: there is nothing to "
            f"{action.value} (edgekit rollout status)."
        )
    ended_at = now if after is RolloutStatus.ABORTED else rollout.ended_at
    return msgspec.structs.replace(rollout, status=after, ended_at=ended_at)


def superseded(rollouts: Iterable[Rollout], by: Rollout) -> list[Rollout]:
    """The unfinished rollouts of the same model, aborted in favour of `by`."""
    return [
        msgspec.structs.replace(
            rollout,
            status=RolloutStatus.ABORTED,
            note=f"superseded by {by.title}",
            ended_at=by.started_at,
        )
        for rollout in rollouts
        if rollout.model == by.model
        and rollout.id != by.id
        and rollout.status in (RolloutStatus.RUNNING, RolloutStatus.PAUSED)
    ]


def permitted(status: RolloutStatus) -> tuple[Action, ...]:
    """The orders that a rollout of this status takes."""
    return tuple(action for action in Action if (status, action) in _ACTIONS)


def check_selector(selector: str) -> str:
    """Return `selector` if it can select, else raise `Misused`."""
    if selector == ALL:
        return selector
    kind, colon, value = selector.partition(":")
    if colon:
        if kind != "profile":
            raise Misused(f"{selector!r} selects nothing: use all, profile:NAME or device ids.")
        names.profile_name(value)
    else:
        for device in selector.split(","):
            names.device_id(device)
    return selector


def chosen_profile(selector: str) -> str | None:
    """The profile whose devices a selector chooses, where it does."""
    return selector.partition(":")[2] if selector.startswith("profile:") else None


def chosen_devices(selector: str) -> tuple[str, ...]:
    """The ids that a selector names; empty where it goes by something else."""
    return () if selector == ALL or ":" in selector else tuple(selector.split(","))


def selects(selector: str, device: str, view: DeviceView) -> bool:
    """Whether a device belongs to a rollout."""
    if selector == ALL:
        return True
    if (profile := chosen_profile(selector)) is not None:
        return view.profile == profile
    return device in chosen_devices(selector)


def in_force(rollouts: Iterable[Rollout]) -> dict[str, Rollout]:
    """Model to the rollout that moves its devices: the newest that was not aborted."""
    found: dict[str, Rollout] = {}
    for rollout in sorted(rollouts, key=lambda r: (r.started_at, r.id)):
        if rollout.status is not RolloutStatus.ABORTED:
            found[rollout.model] = rollout
    return found


def plan(
    rollout: Rollout,
    assignments: Mapping[str, Assignment],
    devices: Mapping[str, DeviceView],
    profiles: Collection[str],
    *,
    moved: Collection[str] = (),
) -> Step:
    """What a rollout in force, or one that was aborted, asks for next.

    `profiles`: those that the release has bundles for. Plan a model's rollouts newest first, each
    on the desired states that the one before left; `moved`: the devices of newer ones in force.
    """
    if rollout.status is RolloutStatus.ABORTED:
        return _wind_up(rollout, assignments, devices, moved)
    desired: dict[str, str | None] = {}
    news: dict[str, Assignment] = {}
    settled, members = True, 0
    for device, view in devices.items():
        if not selects(rollout.selector, device, view):
            continue
        old = assignments.get(device)
        new = _progress(rollout, old, view, profiles)
        if new is None:
            continue
        members += 1
        if new.standing is Standing.UPDATING:
            settled = False
            # a device that failed before tries again when it is told anew, in a new generation
            told = view.desired.get(rollout.model) == rollout.version
            if not told or standing_of(rollout, view)[0] is Standing.FAILED:
                desired[device] = rollout.version
        elif new.standing is Standing.WAITING:
            settled = False
        if new != old:
            news[device] = new
    done = rollout.status is RolloutStatus.RUNNING and settled and members > 0
    status = RolloutStatus.DONE if done else rollout.status
    return Step(desired=desired, assignments=news, status=status)


def standing_of(rollout: Rollout, view: DeviceView) -> tuple[Standing, Phase | None, str]:
    """Where a device that takes part stands: standing, phase while updating, reason."""
    reported = view.reported
    told = view.desired.get(rollout.model) == rollout.version
    if not told or reported is None or reported.generation < view.generation:
        return Standing.UPDATING, None, ""
    model = reported.models.get(rollout.model)
    if model is None:
        return Standing.UPDATING, None, ""
    if model.phase is not Phase.IDLE:
        return Standing.UPDATING, model.phase, ""
    if model.active is not None and model.active.version == rollout.version:
        return Standing.COMMITTED, None, ""
    last = model.last
    if last is None or last.version != rollout.version or last.kind is OutcomeKind.COMMITTED:
        return Standing.UPDATING, Phase.IDLE, ""
    return Standing.FAILED, None, f"{_ENDED[last.kind]} in {last.phase.value}: {last.reason}"


_ENDED: Final = {OutcomeKind.REFUSED: "refused", OutcomeKind.ROLLED_BACK: "rolled back"}


def _progress(
    rollout: Rollout, old: Assignment | None, view: DeviceView, profiles: Collection[str]
) -> Assignment | None:
    """The assignment of a selected device from now on; None where it has no part."""
    told = view.desired.get(rollout.model) == rollout.version
    if rollout.status is RolloutStatus.DONE and rollout.model in view.desired:
        if old is None:
            return None  # it came by another way, after this rollout
        if not told:
            return _left(old)
    if old is None or old.standing in (Standing.WAITING, Standing.SKIPPED):
        if reason := _unfit(rollout, view, profiles):
            return Assignment(standing=Standing.SKIPPED, reason=reason)
        if rollout.status is RolloutStatus.PAUSED:
            return Assignment(standing=Standing.WAITING)
        old = Assignment(standing=Standing.UPDATING, previous=_serving(rollout.model, view))
        if standing_of(rollout, view)[0] is Standing.FAILED:
            return old  # that was its answer to another rollout
    if old.standing is Standing.COMMITTED or (old.standing is Standing.FAILED and not told):
        return old
    standing, _, reason = standing_of(rollout, view)
    return msgspec.structs.replace(old, standing=standing, reason=reason)


def _left(old: Assignment) -> Assignment:
    """The part of a device that another rollout has moved on."""
    if old.standing is not Standing.UPDATING:
        return old
    reason = "another rollout took it over"
    return msgspec.structs.replace(old, standing=Standing.SKIPPED, reason=reason)


def _wind_up(
    rollout: Rollout,
    assignments: Mapping[str, Assignment],
    devices: Mapping[str, DeviceView],
    moved: Collection[str],
) -> Step:
    """Return to its previous version whoever was told, has not committed and is not moved on."""
    desired: dict[str, str | None] = {}
    news: dict[str, Assignment] = {}
    for device, old in assignments.items():
        if old.standing in (Standing.COMMITTED, Standing.SKIPPED):
            continue
        view = devices.get(device)
        told = view is not None and view.desired.get(rollout.model) == rollout.version
        if view is not None and told:
            standing, _, _ = standing_of(rollout, view)
            if standing is Standing.COMMITTED:
                news[device] = msgspec.structs.replace(old, standing=standing, reason="")
                continue
            if old.previous != rollout.version and device not in moved:
                desired[device] = old.previous
        if old.standing is not Standing.FAILED:
            news[device] = msgspec.structs.replace(
                old, standing=Standing.SKIPPED, reason=rollout.note or "the rollout was aborted"
            )
    return Step(desired=desired, assignments=news, status=rollout.status)


def _unfit(rollout: Rollout, view: DeviceView, profiles: Collection[str]) -> str:
    """Why a device cannot be told to move; empty if it can."""
    if not view.profile:
        return "its profile is not known yet"
    if view.profile not in profiles:
        return f"{rollout.title} has no bundle for profile {view.profile}"
    if rollout.model not in view.desired and len(view.desired) >= limits.MAX_DESIRED_MODELS:
        return f"it is to have {len(view.desired)} models already, which is the most"
    return ""


def _serving(model: str, view: DeviceView) -> str | None:
    """The version that a device is known to serve well, else the one it was to have."""
    reported = view.reported.models.get(model) if view.reported is not None else None
    if reported is not None and reported.active is not None and reported.phase is Phase.IDLE:
        return reported.active.version
    return view.desired.get(model)
