"""What the JSON API gives and takes, and how the hub's values become that."""

from __future__ import annotations

from pydantic import BaseModel

from edgekit.hub.rollout import ALL, Action, RolloutStatus, Standing
from edgekit.hub.state import DeviceState, Presence
from edgekit.web.source import LoggedEvent, RolloutView
from edgekit_contract.messages import EventKind, OutcomeKind, Phase

__all__ = [
    "DeviceOut",
    "DevicesOut",
    "EventOut",
    "FleetOut",
    "ModelOut",
    "ProblemOut",
    "ReleaseOut",
    "RolloutDeviceOut",
    "RolloutIn",
    "RolloutOut",
    "SeriesOut",
    "WaveOut",
    "device_out",
    "event_out",
    "rollout_out",
]


class FleetOut(BaseModel):
    fleet: str
    at: float
    broker_connected: bool
    devices: int
    problems: int
    by_presence: dict[Presence, int]
    by_phase: dict[Phase, int]
    by_bundle: dict[str, dict[str, int]]
    """Model to active version to devices; the empty version where none serves."""


class ProblemOut(BaseModel):
    kind: str
    severity: int
    text: str
    since: float | None
    model: str | None


class ModelOut(BaseModel):
    active: str | None
    phase: Phase
    target: str | None
    progress: float | None
    outcome: OutcomeKind | None
    outcome_version: str | None
    outcome_reason: str | None
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    rss_bytes: int | None
    inferences: int | None
    errors: int | None


class DeviceOut(BaseModel):
    id: str
    profile: str
    presence: Presence
    heard_at: float | None
    problems: list[ProblemOut]
    models: dict[str, ModelOut]
    temperature_c: float | None


class DevicesOut(BaseModel):
    matches: int
    page: int
    devices: list[DeviceOut]


class SeriesOut(BaseModel):
    columns: list[str]
    """The first is `at`."""
    rows: list[list[float | None]]


class EventOut(BaseModel):
    device: str
    at: float
    kind: EventKind
    text: str
    model: str | None
    version: str | None
    phase: Phase | None
    outcome: OutcomeKind | None


class WaveOut(BaseModel):
    title: str
    standings: dict[Standing, int]


class RolloutOut(BaseModel):
    id: str
    model: str
    version: str
    selector: str
    status: RolloutStatus
    note: str
    started_at: float
    ended_at: float | None
    waves: list[WaveOut]
    actions: list[Action]


class RolloutDeviceOut(BaseModel):
    device: str
    wave: int
    standing: Standing
    phase: Phase | None
    reason: str


class RolloutIn(BaseModel):
    model: str
    version: str
    selector: str = ALL


class ReleaseOut(BaseModel):
    model: str
    version: str
    counter: int
    profiles: dict[str, int]
    """Profile to the bundle's size in bytes."""
    added_at: float | None


def device_out(device: DeviceState) -> DeviceOut:
    models = {}
    for name, model in device.models.items():
        reported, health = model.reported, model.health
        last = reported.last
        models[name] = ModelOut(
            active=model.active_version or None,
            phase=reported.phase,
            target=reported.target,
            progress=reported.progress,
            outcome=last.kind if last else None,
            outcome_version=last.version if last else None,
            outcome_reason=last.reason if last else None,
            p50_ms=health.p50_ms if health else None,
            p95_ms=health.p95_ms if health else None,
            p99_ms=health.p99_ms if health else None,
            rss_bytes=health.worker.rss_bytes if health and health.worker else None,
            inferences=health.inferences if health else None,
            errors=health.errors if health else None,
        )
    return DeviceOut(
        id=device.id,
        profile=device.profile,
        presence=device.presence,
        heard_at=device.heard_at,
        problems=[
            ProblemOut(
                kind=problem.kind.value,
                severity=problem.severity,
                text=problem.text,
                since=problem.since,
                model=problem.model,
            )
            for problem in device.problems
        ],
        models=models,
        temperature_c=device.points.newest("temperature_c"),
    )


def rollout_out(rollout: RolloutView) -> RolloutOut:
    return RolloutOut(
        id=rollout.id,
        model=rollout.model,
        version=rollout.version,
        selector=rollout.selector,
        status=rollout.status,
        note=rollout.note,
        started_at=rollout.started_at,
        ended_at=rollout.ended_at,
        waves=[WaveOut(title=w.title, standings=dict(w.standings)) for w in rollout.waves],
        actions=list(rollout.actions),
    )


def event_out(logged: LoggedEvent) -> EventOut:
    event = logged.event
    return EventOut(
        device=logged.device_id,
        at=logged.at,
        kind=event.kind,
        text=event.text,
        model=event.model,
        version=event.version,
        phase=event.phase,
        outcome=event.outcome,
    )
