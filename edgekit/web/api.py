"""The JSON API under /api/v1: what the pages show, for programs. Described by its OpenAPI.

Instants are Unix seconds; what was not measured is null.
"""

from __future__ import annotations

from typing import Annotated, Final

from fastapi import APIRouter, FastAPI, HTTPException, Path, Query, Request
from fastapi.responses import JSONResponse

from edgekit.hub.device import DEVICE_COLUMNS, MODEL_COLUMNS, believed, host_values, model_values
from edgekit.hub.rollout import Action
from edgekit.hub.state import DeviceState
from edgekit.web import table
from edgekit.web.api_values import (
    DeviceOut,
    DevicesOut,
    EventOut,
    FleetOut,
    ReleaseOut,
    RolloutDeviceOut,
    RolloutIn,
    RolloutOut,
    SeriesOut,
    device_out,
    event_out,
    rollout_out,
)
from edgekit.web.source import FleetSource, RolloutView
from edgekit.web.views.page import Desk
from edgekit_contract.errors import EdgekitError, Misused

__all__ = ["add_api"]

MAX_POINTS: Final = 2000
MAX_EVENTS: Final = 500

DeviceId = Annotated[str, Path(pattern=r"^[a-z0-9-]{1,64}$")]
RolloutId = Annotated[str, Path(min_length=1, max_length=128)]


def add_api(app: FastAPI, desk: Desk) -> None:
    """Add the routes, and the JSON of errors that are the asker's to read."""
    app.include_router(_reading(desk), prefix="/api/v1", tags=["state"])
    app.include_router(_rollouts(desk), prefix="/api/v1", tags=["rollouts"])

    @app.exception_handler(EdgekitError)
    async def _answer(request: Request, error: EdgekitError) -> JSONResponse:
        status = 422 if isinstance(error, Misused) else 409
        return JSONResponse({"detail": str(error)}, status_code=status)


def _reading(desk: Desk) -> APIRouter:
    router, source, state = APIRouter(), desk.source, desk.source.state

    def known(device_id: str) -> DeviceState:
        device = state.devices.get(device_id)
        if device is None:
            raise HTTPException(404, f"The fleet has no device {device_id!r}.")
        return device

    @router.get("/fleet")
    async def fleet() -> FleetOut:
        bundles: dict[str, dict[str, int]] = {}
        for (model, version), devices in sorted(state.by_bundle.items()):
            bundles.setdefault(model, {})[version] = devices
        return FleetOut(
            fleet=source.fleet,
            at=source.now(),
            broker_connected=source.broker_connected,
            devices=len(state.devices),
            problems=len(state.troubled),
            by_presence=dict(state.by_presence),
            by_phase=dict(state.by_phase),
            by_bundle=bundles,
        )

    @router.get("/devices")
    async def devices(request: Request) -> DevicesOut:
        """A page of devices. Takes the query of the page /devices: q, presence, profile, bundle,
        only, sort, order, page."""
        query = table.parse(dict(request.query_params))
        ids = desk.orders.ids(query, source.now())
        start = (query.page - 1) * table.PAGE_ROWS
        shown = [
            state.devices[i] for i in ids[start : start + table.PAGE_ROWS] if i in state.devices
        ]
        return DevicesOut(
            matches=len(ids), page=query.page, devices=[device_out(device) for device in shown]
        )

    @router.get("/devices/{device_id}")
    async def device(device_id: DeviceId) -> DeviceOut:
        return device_out(known(device_id))

    @router.get("/devices/{device_id}/health")
    async def health(
        device_id: DeviceId,
        since: float,
        limit: Annotated[int, Query(ge=1, le=MAX_POINTS)] = 600,
    ) -> dict[str, SeriesOut]:
        """Series by name: `host`, and `model:NAME` for each model."""
        known(device_id)
        return await _series(source, device_id, since=since, limit=limit)

    @router.get("/devices/{device_id}/events")
    async def events(
        device_id: DeviceId,
        limit: Annotated[int, Query(ge=1, le=MAX_EVENTS)] = 100,
        before: float | None = None,
    ) -> list[EventOut]:
        """Newest first; `before` is the instant to go on from."""
        known(device_id)
        stored = await source.events(device_id, limit=limit, before=before)
        return [event_out(logged) for logged in stored]

    @router.get("/releases")
    async def releases() -> list[ReleaseOut]:
        return [
            ReleaseOut(
                model=release.model,
                version=release.version,
                counter=release.counter,
                profiles=dict(release.profiles),
                added_at=release.added_at,
            )
            for release in await source.releases()
        ]

    return router


def _rollouts(desk: Desk) -> APIRouter:
    router, source = APIRouter(), desk.source

    def known(rollout_id: str) -> RolloutView:
        found = next((r for r in source.rollouts() if r.id == rollout_id), None)
        if found is None:
            raise HTTPException(404, f"There is no rollout {rollout_id!r}.")
        return found

    @router.get("/rollouts")
    async def rollouts() -> list[RolloutOut]:
        return [rollout_out(rollout) for rollout in source.rollouts()]

    @router.get("/rollouts/{rollout_id}")
    async def rollout(rollout_id: RolloutId) -> RolloutOut:
        return rollout_out(known(rollout_id))

    @router.get("/rollouts/{rollout_id}/devices")
    async def rollout_devices(rollout_id: RolloutId) -> list[RolloutDeviceOut]:
        known(rollout_id)
        return [
            RolloutDeviceOut(
                device=device.device_id,
                wave=device.wave,
                standing=device.standing,
                phase=device.phase,
                reason=device.reason,
            )
            for device in source.rollout_devices(rollout_id)
        ]

    @router.post("/rollouts", status_code=201)
    async def start(order: RolloutIn) -> RolloutOut:
        """Begin a rollout. 409 or 422 with a sentence where it cannot be."""
        rollout_id = await source.start_rollout(order.model, order.version, selector=order.selector)
        desk.ordered()
        return rollout_out(known(rollout_id))

    @router.post("/rollouts/{rollout_id}/{action}")
    async def order(rollout_id: RolloutId, action: Action) -> RolloutOut:
        """Pause, resume or abort. 409 with a sentence where its status does not permit that."""
        known(rollout_id)
        await source.order(rollout_id, action)
        desk.ordered()
        return rollout_out(known(rollout_id))

    return router


async def _series(
    source: FleetSource, device_id: str, *, since: float, limit: int
) -> dict[str, SeriesOut]:
    out = {"host": SeriesOut(columns=["at", *DEVICE_COLUMNS], rows=[])}
    before, before_at = None, 0.0
    for arrived, health in await source.health(device_id, since=since, limit=limit):
        at = believed(health.at.timestamp(), arrived)
        out["host"].rows.append([at, *host_values(health)])
        for name, model in health.models.items():
            series = out.setdefault(
                f"model:{name}", SeriesOut(columns=["at", *MODEL_COLUMNS], rows=[])
            )
            earlier = before.models.get(name) if before else None
            series.rows.append([at, *model_values(model, earlier, at - before_at)])
        before, before_at = health, at
    return out
