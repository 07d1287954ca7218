"""Conducting rollouts: every rollout's next step, applied to what each device is to have. Pure.

Invariant: `plan` changes nothing; what it found is applied by `settle`, after it was written.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final

import msgspec

from edgekit.hub import rollout as rules
from edgekit.hub.ledger import Wanted
from edgekit.hub.rollout import Assignment, DeviceView, Rollout, RolloutStatus, Standing
from edgekit.hub.state import DeviceState, FleetState
from edgekit.release.releases import Release
from edgekit_contract import limits
from edgekit_contract.messages import Reported

__all__ = ["Conduct", "News"]


class News(msgspec.Struct, kw_only=True):
    """What planning changes."""

    wanted: dict[str, Wanted] = {}
    assignments: dict[tuple[str, str], Assignment] = {}
    """By (rollout, device)."""
    done: dict[str, float] = {}
    """Rollout to the instant at which its last device ended."""
    quiet: set[str] = set()
    """Aborted rollouts that have nothing left to say, ever."""

    def __bool__(self) -> bool:
        return bool(self.wanted or self.assignments or self.done)


_NOTHING: Final = Wanted()
_NO_COUNT: Final = limits.MAX_JSON_INTEGER // 2
"""A generation that nobody has counted up to."""


class _View:
    """A device as `rollout.plan` looks at it."""

    __slots__ = ("_device", "wanted")

    def __init__(self, device: DeviceState, wanted: Wanted) -> None:
        self._device, self.wanted = device, wanted

    @property
    def profile(self) -> str:
        return self._device.profile

    @property
    def reported(self) -> Reported | None:
        return self._device.reported

    @property
    def generation(self) -> int:
        return self.wanted.generation

    @property
    def desired(self) -> Mapping[str, str]:
        return self.wanted.models


class Conduct:
    """Rollouts, releases and desired states, as the hub holds them in memory."""

    def __init__(self, state: FleetState) -> None:
        self._state = state
        self.wanted: dict[str, Wanted] = {}
        """Device to its desired state."""
        self.rollouts: list[Rollout] = []
        """Newest first."""
        self.assignments: dict[str, dict[str, Assignment]] = {}
        """Rollout to device to its part."""
        self.releases: Sequence[Release] = ()
        self._quiet: set[str] = set()

    def take_rollouts(self, rollouts: Iterable[Rollout]) -> None:
        """Hold these rollouts and no others."""
        self.rollouts = list(rollouts)
        held = {rollout.id for rollout in self.rollouts}
        self.assignments = {id_: parts for id_, parts in self.assignments.items() if id_ in held}

    def view(self, device: str) -> DeviceView | None:
        """A device as planning sees it; None where it is unknown."""
        found = self._state.devices.get(device)
        return None if found is None else _View(found, self.wanted.get(device, _NOTHING))

    def plan(self, now: float) -> News:
        """What all rollouts, newest first, ask for next."""
        views = {
            id_: _View(device, self.wanted.get(id_, _NOTHING))
            for id_, device in self._state.devices.items()
        }
        news = News()
        self._overtake(views, news)
        driving = rules.in_force(self.rollouts)
        moved: dict[str, set[str]] = {}
        for rollout in self.rollouts:
            drives = driving.get(rollout.model) is rollout
            if drives or (
                rollout.status is RolloutStatus.ABORTED and rollout.id not in self._quiet
            ):
                parts = self._plan_one(rollout, views, news, moved.get(rollout.model, set()), now)
                if drives:
                    moved[rollout.model] = {
                        device
                        for device, part in parts.items()
                        if part.standing is not Standing.SKIPPED
                    }
        return news

    def settle(self, news: News) -> None:
        """Apply what was written."""
        self._quiet |= news.quiet
        self.wanted |= news.wanted
        for (rollout, device), part in news.assignments.items():
            self.assignments.setdefault(rollout, {})[device] = part
        self.rollouts = [
            msgspec.structs.replace(r, status=RolloutStatus.DONE, ended_at=news.done[r.id])
            if r.id in news.done
            else r
            for r in self.rollouts
        ]

    def _overtake(self, views: Mapping[str, _View], news: News) -> None:
        """Go above the generations that devices have seen: this store may be a restored one. A
        device whose generation no hub reaches takes the retained one when it connects.

        Of a device that it knows nothing about, it wants what the device serves.
        """
        for device, view in views.items():
            reported = view.reported
            if reported is None or reported.generation <= view.generation:
                continue
            counted = reported.generation < _NO_COUNT
            if view.generation and not counted:
                continue
            models = dict(view.desired)
            if not view.generation:
                models = {
                    name: model.active.version
                    for name, model in reported.models.items()
                    if model.active is not None
                }
            view.wanted = Wanted(
                generation=reported.generation + 1 if counted else 1, models=models
            )
            news.wanted[device] = view.wanted

    def _plan_one(
        self,
        rollout: Rollout,
        views: Mapping[str, _View],
        news: News,
        moved: Collection[str],
        now: float,
    ) -> Mapping[str, Assignment]:
        """Add one rollout's step to `news`; returns its parts after that."""
        parts = self.assignments.get(rollout.id, {})
        step = rules.plan(rollout, parts, views, self._profiles(rollout), moved=moved)
        for device, version in step.desired.items():
            view = views[device]
            models = dict(view.desired)
            if version is None:
                models.pop(rollout.model, None)
            else:
                models[rollout.model] = version
            view.wanted = Wanted(generation=view.generation + 1, models=models)
            news.wanted[device] = view.wanted
        for device, part in step.assignments.items():
            news.assignments[rollout.id, device] = part
        if step.status is not rollout.status:
            news.done[rollout.id] = now
        if rollout.status is RolloutStatus.ABORTED and not step.desired and not step.assignments:
            news.quiet.add(rollout.id)
        return {**parts, **step.assignments}

    def _profiles(self, rollout: Rollout) -> frozenset[str]:
        for release in self.releases:
            if (release.name, release.version) == (rollout.model, rollout.version):
                return frozenset(release.bundles)
        return frozenset()
