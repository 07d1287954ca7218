"""What all pages share: the desk they work at, the shell around them, rows that several show."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final
from urllib.parse import quote

from edgekit.hub.device import believed
from edgekit.hub.rollout import RolloutStatus, Standing
from edgekit.hub.state import DeviceState
from edgekit.web import display
from edgekit.web.display import Tone
from edgekit.web.frame import Frame, cell
from edgekit.web.source import FleetSource, LoggedEvent, RolloutDevice, RolloutView
from edgekit.web.table import FRESH_S, Orders
from edgekit_contract.messages import EventKind

__all__ = [
    "Desk",
    "EventLog",
    "Page",
    "device_href",
    "put_problem",
    "put_rollout",
    "put_standings",
    "rollout_href",
    "title_of",
]

PERIOD_S: Final = 0.5
EVENTS_SHOWN: Final = 50


class Desk:
    """The source, and what pages work out together. One per application."""

    def __init__(self, source: FleetSource) -> None:
        self.source = source
        self.orders = Orders(source.state)
        self._rollouts: Sequence[RolloutView] = ()
        self._rollouts_at: float | None = None
        self._devices: dict[str, tuple[float, Sequence[RolloutDevice]]] = {}

    def rollouts(self, now: float) -> Sequence[RolloutView]:
        """All rollouts, newest first, at most `PERIOD_S` old: counting may take a while."""
        at = self._rollouts_at
        if at is None or not 0 <= now - at < PERIOD_S:
            self._rollouts, self._rollouts_at = self.source.rollouts(), now
        return self._rollouts

    def rollout(self, rollout_id: str, now: float) -> RolloutView | None:
        return next((r for r in self.rollouts(now) if r.id == rollout_id), None)

    def rollout_devices(self, rollout_id: str, now: float) -> Sequence[RolloutDevice]:
        """As the source tells it, at most `FRESH_S` old: a rollout may have 10,000 devices."""
        at, devices = self._devices.get(rollout_id, (None, ()))
        if at is None or not 0 <= now - at < FRESH_S:
            devices = self.source.rollout_devices(rollout_id)
            for other in [i for i, (then, _) in self._devices.items() if now - then >= FRESH_S]:
                del self._devices[other]
            self._devices[rollout_id] = (now, devices)
        return devices

    def ordered(self) -> None:
        """An order was given: what is known of rollouts is old."""
        self._rollouts_at = None
        self._devices.clear()


class Page(ABC):
    """Base of the views: fills the shell, leaves the rest to `fill`."""

    template: str
    title: str
    section: str
    """The entry of the navigation that it belongs to."""
    period_s = PERIOD_S

    def __init__(self, desk: Desk) -> None:
        self.desk, self.source, self.state = desk, desk.source, desk.source.state
        self.held = False

    def hold(self, held: bool) -> None:
        self.held = held

    def context(self) -> Mapping[str, Any]:
        return {}

    async def frame(self, now: float) -> Frame:
        frame = Frame()
        troubled = len(self.state.troubled)
        frame.cells["nav.problems"] = cell(
            display.number(troubled), tone=Tone.BAD, show=troubled > 0
        )
        frame.cells["hub.broker"] = cell(show=not self.source.broker_connected)
        await self.fill(frame, now)
        return frame

    @abstractmethod
    async def fill(self, frame: Frame, now: float) -> None:
        """Put what this view shows into `frame`."""


class EventLog:
    """The newest events of one device or of the fleet: stored ones first, then as they come."""

    def __init__(self, stored: Iterable[LoggedEvent], *, shown: int = EVENTS_SHOWN) -> None:
        self._shown = shown
        self._events: dict[str, LoggedEvent] = {}
        for logged in sorted(stored, key=lambda logged: logged.at):
            self.add(logged)

    def add(self, logged: LoggedEvent) -> None:
        event = logged.event
        self._events.setdefault(f"event:{logged.device_id}:{event.stream}:{event.seq}", logged)
        while len(self._events) > self._shown:
            del self._events[next(iter(self._events))]

    def fill(self, frame: Frame) -> None:
        frame.rows["events"] = tuple(reversed(self._events))
        for row, logged in self._events.items():
            event = logged.event
            tone = display.EVENT_TONES[event.kind]
            if event.kind is EventKind.OUTCOME and event.outcome is not None:
                tone = display.OUTCOME_TONES[event.outcome]
            kind = event.outcome or (event.phase if event.kind is EventKind.PHASE else None)
            title = (kind or event.kind).value
            subject = f"{event.model} {event.version or ''}".strip() if event.model else ""
            frame.cells |= {
                f"{row}.at": cell(at=_event_at(logged)),
                f"{row}.device": cell(logged.device_id, href=device_href(logged.device_id)),
                f"{row}.kind": cell(title_of(title), tone=tone),
                f"{row}.model": subject,
                f"{row}.text": event.text if event.text != title else "",
            }
        frame.cells["events.empty"] = cell(show=not self._events)


def _event_at(logged: LoggedEvent) -> float:
    return believed(logged.event.at.timestamp(), logged.at)


def title_of(value: str) -> str:
    """`rolled-back` as `Rolled back`."""
    return value.replace("-", " ").capitalize()


def device_href(device_id: str) -> str:
    return f"/devices/{quote(device_id)}"


def rollout_href(rollout_id: str) -> str:
    return f"/rollouts/{quote(rollout_id, safe='')}"


STANDING_ORDER: Final = (
    Standing.COMMITTED,
    Standing.UPDATING,
    Standing.FAILED,
    Standing.SKIPPED,
    Standing.WAITING,
)
"""From left to right in a bar."""


def put_standings(frame: Frame, row: str, standings: Mapping[Standing, int]) -> None:
    """The parts of a bar and its words: `row.COMMITTED` and so on, and `row.words`."""
    total, x = sum(standings.values()), 0.0
    for standing in STANDING_ORDER:
        width = display.share(standings.get(standing, 0), total)
        frame.cells[f"{row}.{standing.value}"] = cell(x=round(x, 4), width=round(width, 4))
        x += width
    frame.cells[f"{row}.words"] = (
        ", ".join(
            f"{display.number(standings[standing])} {standing.value}"
            for standing in STANDING_ORDER
            if standings.get(standing)
        )
        or "no device yet"
    )


def put_rollout(frame: Frame, row: str, rollout: RolloutView) -> None:
    """A rollout's line: link, status, bar, words."""
    standings: dict[Standing, int] = {}
    for wave in rollout.waves:
        for standing, devices in wave.standings.items():
            standings[standing] = standings.get(standing, 0) + devices
    tone = display.ROLLOUT_TONES[rollout.status]
    if rollout.status is RolloutStatus.DONE and standings.get(Standing.FAILED):
        tone = Tone.WARN
    frame.cells |= {
        f"{row}.title": cell(f"{rollout.model} {rollout.version}", href=rollout_href(rollout.id)),
        f"{row}.status": cell(title_of(rollout.status.value), tone=tone),
        f"{row}.selector": f"to {rollout.selector}",
        f"{row}.at": cell(at=rollout.started_at),
    }
    put_standings(frame, row, standings)


def put_problem(frame: Frame, row: str, device: DeviceState) -> None:
    """A device's line in a list of problems."""
    first, more = device.problems[0], len(device.problems) - 1
    frame.cells |= {
        f"{row}.device": cell(device.id, href=device_href(device.id)),
        f"{row}.text": cell(first.text, tone=display.SEVERITY_TONES[first.severity]),
        f"{row}.more": cell(f"+{more}", show=more > 0),
        f"{row}.at": cell(at=first.since, show=first.since is not None),
    }
