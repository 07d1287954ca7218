"""What the pages need of the hub: the one thing that `edgekit.web` knows of the rest.

Pages read `state` on the event loop that folds into it and write nowhere; what a person orders goes
through the four verbs of a rollout. Calls that are not `async` answer from memory at once.
Instants are Unix seconds of the hub's clock.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec

from edgekit.hub.rollout import Action, RolloutStatus, Standing
from edgekit.hub.state import FleetState
from edgekit_contract.messages import Event, Health, Phase

__all__ = [
    "Action",
    "FleetSource",
    "LoggedEvent",
    "ReleaseView",
    "RolloutDevice",
    "RolloutStatus",
    "RolloutView",
    "Standing",
    "WaveView",
]


class _View(msgspec.Struct, frozen=True, kw_only=True):
    pass


class WaveView(_View, frozen=True, kw_only=True):
    title: str
    standings: Mapping[Standing, int]
    """Devices by standing; what is absent counts 0."""


class RolloutView(_View, frozen=True, kw_only=True):
    id: str
    model: str
    version: str
    selector: str
    """Which devices, as the operator wrote it."""
    status: RolloutStatus
    note: str = ""
    """Why it is in this status, where there is more to say."""
    started_at: float
    ended_at: float | None = None
    waves: tuple[WaveView, ...]
    actions: tuple[Action, ...] = ()
    """Those that its status permits now."""


class RolloutDevice(_View, frozen=True, kw_only=True):
    device_id: str
    wave: int
    """Index into the rollout's `waves`."""
    standing: Standing
    phase: Phase | None = None
    """Of the update machine, while UPDATING."""
    reason: str = ""
    """Why it failed or was skipped."""


class ReleaseView(_View, frozen=True, kw_only=True):
    model: str
    version: str
    counter: int
    profiles: Mapping[str, int]
    """Profile to the bundle's size in bytes."""
    added_at: float | None = None


class LoggedEvent(_View, frozen=True, kw_only=True):
    device_id: str
    at: float
    """Arrival at the hub."""
    event: Event


class FleetSource(Protocol):
    """The hub, as the dashboard sees it. `edgekit.hub.service` is it."""

    @property
    def fleet(self) -> str:
        """The fleet's name."""

    @property
    def state(self) -> FleetState:
        """The one state of the fleet; the same object for the life of the source."""

    @property
    def broker_connected(self) -> bool:
        """Whether messages can arrive at all."""

    def now(self) -> float:
        """The clock that `state` was folded with."""

    def rollouts(self) -> Sequence[RolloutView]:
        """All rollouts, newest first."""

    def rollout_devices(self, rollout_id: str) -> Sequence[RolloutDevice]:
        """The devices of a rollout, by wave and id; empty for an unknown rollout."""

    async def releases(self) -> Sequence[ReleaseView]:
        """All releases of the repository, newest first."""

    async def health(
        self, device_id: str, *, since: float, limit: int
    ) -> Sequence[tuple[float, Health]]:
        """Stored health of a device from `since` on, thinned to about `limit`, oldest first."""

    async def events(
        self, device_id: str | None, *, limit: int, before: float | None = None
    ) -> Sequence[LoggedEvent]:
        """Stored events, newest first: of a device, or of the fleet where that is None."""

    async def start_rollout(self, model: str, version: str, *, selector: str) -> str:
        """Begin a rollout and return its id. Errors: `EdgekitError`, for the person to read."""

    async def order(self, rollout_id: str, action: Action) -> None:
        """Pause, resume or abort a rollout. Errors: `EdgekitError`, for the person to read."""
