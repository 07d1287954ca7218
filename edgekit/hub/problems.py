"""What is wrong with a device: one rule per kind of problem, gravest first. Pure.

A rule looks at one device and the time. A problem that only time ends tells by `next_change`
when that is, so that `edgekit.hub.state.advance` looks at a device no earlier than it must.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from edgekit.hub.device import DeviceState, ModelState, Presence, Problem, ProblemKind, Severity
from edgekit_contract.messages import HostMetrics, OutcomeKind, Phase

__all__ = ["find_problems", "next_change"]

FADE_S: Final = 600.0
"""A takeover or a lost worker is shown for so long after it was last seen."""
STALL_S: Final = 900.0
"""An update that has not moved for so long is stalled; the longest step, PROBATION, takes 600."""
FAILING_SHARE: Final = 0.01
HOT_C: Final = 80.0
"""Where a Raspberry Pi begins to slow itself down; the same order as other boards."""
DISK_FREE_LEAST_BYTES: Final = 200 << 20

_MOVING: Final = frozenset(Phase) - {Phase.IDLE, Phase.COMMIT, Phase.ROLLBACK}
_NO_HOST: Final = HostMetrics()


def find_problems(device: DeviceState, now: float) -> tuple[Problem, ...]:
    """All that is wrong with `device` at `now`, gravest first."""
    found: list[Problem] = []
    for rule in _RULES:
        found += rule(device, now)
    found.sort(key=lambda problem: -problem.severity)
    return tuple(found)


def next_change(device: DeviceState, now: float) -> float | None:
    """When, after `now`, time alone may change the presence or problems of `device`."""
    at = [] if device.takeover_at is None else [device.takeover_at + FADE_S]
    for model in device.models.values():
        if model.worker_lost_at is not None:
            at.append(model.worker_lost_at + FADE_S)
        if model.reported.phase in _MOVING:
            at.append(model.moved_at + STALL_S)
    if device.presence is Presence.ONLINE and device.alive_at is not None:
        at.append(device.alive_at + device.late_after_s)
    return min((instant for instant in at if instant > now), default=None)


def _contested(device: DeviceState, now: float) -> Iterator[Problem]:
    if device.takeover_at is not None and now < device.takeover_at + FADE_S:
        yield Problem(
            kind=ProblemKind.CONTESTED,
            severity=Severity.CRITICAL,
            text="Two agents use this identity: stop one, or invite it under another id",
            since=device.takeover_at,
        )


def _unreachable(device: DeviceState, now: float) -> Iterator[Problem]:
    if device.presence is Presence.UNREACHABLE:
        yield Problem(
            kind=ProblemKind.UNREACHABLE,
            severity=Severity.CRITICAL,
            text="Unreachable: the broker has lost its connection",
            since=device.unreachable_at,
        )
    elif device.presence is Presence.LATE:
        yield Problem(
            kind=ProblemKind.LATE,
            severity=Severity.WARNING,
            text="Silent, though still connected",
            since=device.alive_at,
        )


def _host(device: DeviceState, now: float) -> Iterator[Problem]:
    host = (device.health and device.health.host) or _NO_HOST
    if host.throttled:
        yield _warning(ProblemKind.THROTTLED, "The board throttles its clock: check power, cooling")
    elif host.temperature_c is not None and host.temperature_c >= HOT_C:
        yield _warning(ProblemKind.HOT, f"{host.temperature_c:.0f} °C: check its cooling")
    if host.disk_free_bytes is not None and host.disk_free_bytes < DISK_FREE_LEAST_BYTES:
        free_mib = host.disk_free_bytes >> 20
        yield _warning(ProblemKind.DISK_LOW, f"{free_mib} MiB of disk left: free some")


def _serving(device: DeviceState, now: float) -> Iterator[Problem]:
    for model in device.models.values():
        if model.worker_lost_at is not None and now < model.worker_lost_at + FADE_S:
            yield Problem(
                kind=ProblemKind.WORKER_LOST,
                severity=Severity.CRITICAL,
                text=f"The worker of {model.name} died and was restarted",
                since=model.worker_lost_at,
                model=model.name,
            )
        if model.failing_share >= FAILING_SHARE:
            yield Problem(
                kind=ProblemKind.FAILING,
                severity=Severity.CRITICAL,
                text=f"{_percent(model.failing_share)} of requests to {model.name} fail",
                model=model.name,
            )


def _computed(device: DeviceState, now: float) -> Iterator[Problem]:
    for model in device.models.values():
        execution = model.reported.execution
        if execution is not None and execution.missed:
            yield Problem(
                kind=ProblemKind.FALLBACK,
                severity=Severity.WARNING,
                text=f"{model.name} does without "
                + (execution.reason or ", ".join(execution.missed)),
                model=model.name,
            )


def _percent(share: float) -> str:
    # in tenths of all: a text that changes with every message would be a new problem each time
    return f"Over {int(share * 10) * 10}%" if share >= 0.1 else "Some"


def _updates(device: DeviceState, now: float) -> Iterator[Problem]:
    for model in device.models.values():
        last = model.reported.last
        if last is not None and last.kind in _OUTCOMES:
            kind, words = _OUTCOMES[last.kind]
            yield Problem(
                kind=kind,
                severity=Severity.WARNING,
                text=f"{model.name} {last.version} {words}"
                + (f": {last.reason}" if last.reason else ""),
                since=last.at.timestamp(),
                model=model.name,
            )
        if _stalled(model, now):
            yield Problem(
                kind=ProblemKind.STALLED,
                severity=Severity.WARNING,
                text=f"{model.name} stands still in {model.reported.phase.value}",
                since=model.moved_at,
                model=model.name,
            )


_OUTCOMES: Final = {
    OutcomeKind.REFUSED: (ProblemKind.REFUSED, "was refused"),
    OutcomeKind.ROLLED_BACK: (ProblemKind.ROLLED_BACK, "was rolled back"),
}


def _stalled(model: ModelState, now: float) -> bool:
    return model.reported.phase in _MOVING and now >= model.moved_at + STALL_S


def _warning(kind: ProblemKind, text: str) -> Problem:
    return Problem(kind=kind, severity=Severity.WARNING, text=text)


_RULES: Final[tuple[Callable[[DeviceState, float], Iterator[Problem]], ...]] = (
    _contested,
    _serving,
    _unreachable,
    _updates,
    _computed,
    _host,
)
