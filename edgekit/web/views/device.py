"""One device: what it is and serves, what its update machine does, how it feels, what it said."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from edgekit.hub.state import DeviceState, ModelState
from edgekit.web import display
from edgekit.web.display import Tone
from edgekit.web.frame import Frame, cell
from edgekit.web.source import LoggedEvent
from edgekit.web.views.page import Desk, EventLog, Page, title_of
from edgekit_contract.messages import Phase, Reported

__all__ = ["STEPS", "Device"]

PERIOD_S: Final = 0.25
EVENTS_SHOWN: Final = 50

STEPS: Final = (
    Phase.CHECK,
    Phase.PREFLIGHT,
    Phase.FETCH,
    Phase.VERIFY,
    Phase.STAGE,
    Phase.WARMUP,
    Phase.SWITCH,
    Phase.PROBATION,
    Phase.COMMIT,
)
"""The way of an update that goes well, as the page draws it."""


class Device(Page):
    template, section, period_s = "device.html", "devices", PERIOD_S

    def __init__(self, desk: Desk, device: DeviceState, log: EventLog) -> None:
        super().__init__(desk)
        self.id = self.title = device.id
        self._log = log
        self._told: dict[str, float] = {}
        """By series: the instant of the newest point that was handed out."""

    @classmethod
    async def open(cls, desk: Desk, device_id: str) -> Device | None:
        """The page of a device; None where the fleet has none of this id."""
        device = desk.source.state.devices.get(device_id)
        if device is None:
            return None
        stored = await desk.source.events(device_id, limit=EVENTS_SHOWN)
        return cls(desk, device, EventLog(stored, shown=EVENTS_SHOWN))

    async def fill(self, frame: Frame, now: float) -> None:
        device = self.state.devices.get(self.id)
        frame.cells["revoked"] = cell(show=device is None)
        if device is None:
            return
        for event in device.events:
            at = event.at.timestamp()
            self._log.add(LoggedEvent(device_id=self.id, at=min(at, now), event=event))
        self._log.fill(frame)
        _fill_head(frame, device)
        _fill_problems(frame, device)
        frame.cells |= dict(_facts(device.reported, device))
        models = sorted(device.models.values(), key=lambda model: model.name)
        frame.rows["models"] = tuple(f"model:{model.name}" for model in models)
        for model in models:
            _fill_model(frame, model)
        frame.cells["models.none"] = cell(show=not models)
        self._fill_points(frame, device)

    def _fill_points(self, frame: Frame, device: DeviceState) -> None:
        series = {"host": device.points}
        series |= {f"model:{model.name}": model.points for model in device.models.values()}
        for name, points in series.items():
            rows = [[at, *values] for at, values in points.after(self._told.get(name, 0.0))]
            if rows:
                self._told[name] = rows[-1][0] or 0.0
                frame.points[name] = rows

    def context(self) -> dict[str, Any]:
        return {
            "device_id": self.id,
            "steps": [(step.value, title_of(step.value)) for step in STEPS],
        }


def _fill_head(frame: Frame, device: DeviceState) -> None:
    host = device.health.host if device.health else None
    daemon = device.health.daemon if device.health else None
    frame.cells |= {
        "presence": cell(
            title_of(device.presence.value), tone=display.PRESENCE_TONES[device.presence]
        ),
        "profile": device.profile or "profile unknown",
        "heard": cell("never") if device.heard_at is None else cell(at=device.heard_at),
        "host.temperature": display.temperature(host.temperature_c if host else None),
        "host.cpu": display.percent(host.cpu_percent if host else None),
        "host.ram": display.size(host.ram_used_bytes if host else None),
        "host.disk": display.size(host.disk_free_bytes if host else None),
        "host.uptime": display.duration(host.uptime_s if host else None),
        "daemon.rss": display.size(daemon.rss_bytes if daemon else None),
    }


def _fill_problems(frame: Frame, device: DeviceState) -> None:
    rows = []
    for problem in device.problems:
        row = f"problem:{problem.kind.value}:{problem.model or ''}"
        rows.append(row)
        frame.cells |= {
            f"{row}.text": cell(problem.text, tone=display.SEVERITY_TONES[problem.severity]),
            f"{row}.at": cell(at=problem.since, show=problem.since is not None),
        }
    frame.rows["problems"] = tuple(rows)
    frame.cells["problems.some"] = cell(show=bool(rows))


def _facts(reported: Reported | None, device: DeviceState) -> Iterator[tuple[str, str]]:
    facts = reported.device if reported else None
    status = device.status
    yield "fact.board", (facts and facts.board) or display.NONE
    yield (
        "fact.cpu",
        f"{facts.arch}, {display.count(facts.cores, 'core')}" if facts else display.NONE,
    )
    yield "fact.ram", display.size(facts.ram_bytes) if facts else display.NONE
    yield "fact.os", (facts and facts.os) or display.NONE
    yield "fact.python", (facts and facts.python) or display.NONE
    yield "fact.agent", (facts and facts.agent) or (status and status.agent) or display.NONE
    runtimes = sorted(facts.runtimes.items()) if facts else []
    yield "fact.runtimes", ", ".join(f"{k} {v}" for k, v in runtimes) or display.NONE
    yield "fact.features", ", ".join(facts.features) if facts and facts.features else display.NONE
    yield "fact.generation", str(reported.generation) if reported else display.NONE


def _fill_model(frame: Frame, model: ModelState) -> None:
    row, reported, health = f"model:{model.name}", model.reported, model.health
    moving = reported.phase is not Phase.IDLE
    version, execution = model.active_version, reported.execution
    frame.cells |= {
        f"{row}.name": model.name,
        f"{row}.version": cell(version or "none active", tone=Tone.GOOD if version else Tone.MUTE),
        f"{row}.digest": reported.active.digest[:12] if reported.active else "",
        f"{row}.phase": cell(
            title_of(reported.phase.value)
            + (f" · to {reported.target}" if reported.target else ""),
            tone=Tone.BUSY if moving else Tone.MUTE,
        ),
        f"{row}.steps": cell(show=moving),
        f"{row}.fetched": cell(
            share=round(reported.progress or 0.0, 3),
            show=reported.phase is Phase.FETCH and reported.progress is not None,
        ),
        f"{row}.p50": display.milliseconds(health.p50_ms if health else None),
        f"{row}.p95": display.milliseconds(health.p95_ms if health else None),
        f"{row}.p99": display.milliseconds(health.p99_ms if health else None),
        f"{row}.rate": display.rate(model.points.newest("inferences_per_s")),
        f"{row}.inferences": display.number(health.inferences) if health else display.NONE,
        f"{row}.errors": cell(
            display.number(health.errors) if health else display.NONE,
            tone=Tone.BAD if model.failing_share else Tone.MUTE,
        ),
        f"{row}.restarts": display.number(health.restarts) if health else display.NONE,
        f"{row}.rss": display.size(health.worker.rss_bytes if health and health.worker else None),
        f"{row}.execution": cell(
            ", ".join(execution.used) if execution and execution.used else display.NONE,
            tone=Tone.WARN if execution and execution.missed else Tone.MUTE,
        ),
        f"{row}.port": f"127.0.0.1:{reported.port}" if reported.port else display.NONE,
    }
    at = STEPS.index(reported.phase) if reported.phase in STEPS else -1
    for index, step in enumerate(STEPS):
        tone = Tone.GOOD if index < at else Tone.BUSY if index == at else Tone.MUTE
        frame.cells[f"{row}.step.{step.value}"] = cell(
            title_of(step.value), tone=tone, current="step" if index == at else "false"
        )
    last = reported.last
    frame.cells |= {
        f"{row}.outcome": cell(show=last is not None),
        f"{row}.outcome.kind": cell("")
        if last is None
        else cell(
            f"{title_of(last.kind.value)} {last.version}", tone=display.OUTCOME_TONES[last.kind]
        ),
        f"{row}.outcome.reason": (last.reason if last else "")
        + (f" (in {last.phase.value})" if last and last.reason else ""),
        f"{row}.outcome.at": cell("") if last is None else cell(at=last.at.timestamp()),
    }
