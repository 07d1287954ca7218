"""The hub as its pages see it: `edgekit.web.source.FleetSource`, answered from memory."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence

from edgekit.hub import orders
from edgekit.hub import rollout as rules
from edgekit.hub.rollout import Action, Assignment, Rollout, Standing
from edgekit.hub.service import Service
from edgekit.hub.state import FleetState
from edgekit.web.source import LoggedEvent, ReleaseView, RolloutDevice, RolloutView, WaveView
from edgekit_contract.messages import Health, Phase

__all__ = ["HubSource"]


class HubSource:
    """A `FleetSource` over the running service."""

    def __init__(self, service: Service) -> None:
        self._service = service

    @property
    def fleet(self) -> str:
        return self._service.fleet.name

    @property
    def state(self) -> FleetState:
        return self._service.state

    @property
    def broker_connected(self) -> bool:
        return self._service.link.connected

    def now(self) -> float:
        return self._service.now()

    def rollouts(self) -> Sequence[RolloutView]:
        return [self._view(rollout) for rollout in self._service.conduct.rollouts]

    def rollout_devices(self, rollout_id: str) -> Sequence[RolloutDevice]:
        for rollout in self._service.conduct.rollouts:
            if rollout.id == rollout_id:
                parts = self._parts(rollout).items()
                found = [self._device(rollout, device, part) for device, part in parts]
                return sorted(found, key=lambda d: (d.wave, d.device_id))
        return []

    async def releases(self) -> Sequence[ReleaseView]:
        return await asyncio.to_thread(self._releases)

    def _releases(self) -> list[ReleaseView]:
        repository, found = self._service.repository, self._service.conduct.releases
        views = [
            ReleaseView(
                model=release.name,
                version=release.version,
                counter=release.counter,
                profiles={p: b.sizes.download_bytes for p, b in release.bundles.items()},
                added_at=repository.added_at(release).timestamp(),
            )
            for release in found
        ]
        return sorted(views, key=lambda view: -(view.added_at or 0.0))

    async def health(
        self, device_id: str, *, since: float, limit: int
    ) -> Sequence[tuple[float, Health]]:
        records = self._service.store.records
        return await asyncio.to_thread(records.health, device_id, since=since, limit=limit)

    async def events(
        self, device_id: str | None, *, limit: int, before: float | None = None
    ) -> Sequence[LoggedEvent]:
        records = self._service.store.records
        rows = await asyncio.to_thread(records.events, device_id, limit=limit, before=before)
        return [LoggedEvent(device_id=row[0], at=row[1], event=row[2]) for row in rows]

    async def start_rollout(self, model: str, version: str, *, selector: str) -> str:
        service = self._service
        started = await service.written(
            lambda: orders.start_rollout(
                service.store,
                service.repository,
                model=model,
                version=version,
                selector=selector,
                now=service.instant(),
            )
        )
        await service.look()
        return started.rollout.id

    async def order(self, rollout_id: str, action: Action) -> None:
        service = self._service
        await service.written(
            lambda: service.store.ledger.order(rollout_id, action, now=service.now())
        )
        await service.look()

    def _parts(self, rollout: Rollout) -> dict[str, Assignment]:
        return self._service.conduct.assignments.get(rollout.id, {})

    def _view(self, rollout: Rollout) -> RolloutView:
        parts = self._parts(rollout).values()
        return RolloutView(
            id=rollout.id,
            model=rollout.model,
            version=rollout.version,
            selector=rollout.selector,
            status=rollout.status,
            note=rollout.note,
            started_at=rollout.started_at,
            ended_at=rollout.ended_at,
            waves=tuple(
                WaveView(
                    title=wave.title,
                    standings=Counter(part.standing for part in parts if part.wave == index),
                )
                for index, wave in enumerate(rollout.waves)
            ),
            actions=rules.permitted(rollout.status),
        )

    def _device(self, rollout: Rollout, device: str, part: Assignment) -> RolloutDevice:
        return RolloutDevice(
            device_id=device,
            wave=part.wave,
            standing=part.standing,
            phase=self._phase(rollout, device) if part.standing is Standing.UPDATING else None,
            reason=part.reason,
        )

    def _phase(self, rollout: Rollout, device: str) -> Phase | None:
        view = self._service.conduct.view(device)
        return None if view is None else rules.standing_of(rollout, view)[1]
