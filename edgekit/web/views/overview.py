"""The first page: what is wrong, what is moving, what is out there; in that order."""

from __future__ import annotations

from typing import Final

from edgekit.hub.rollout import RolloutStatus
from edgekit.hub.state import Presence
from edgekit.web import display
from edgekit.web.display import Tone
from edgekit.web.frame import Frame, cell
from edgekit.web.source import LoggedEvent
from edgekit.web.table import Only, Query, bundle_query
from edgekit.web.views.page import Desk, EventLog, Page, put_problem, put_rollout, title_of
from edgekit_contract.messages import EventKind, Phase

__all__ = ["Overview"]

PROBLEMS_SHOWN: Final = 6
ROLLOUTS_SHOWN: Final = 4
BUNDLES_SHOWN: Final = 12
EVENTS_SHOWN: Final = 12
EVENTS_READ: Final = 200
"""Most events are steps of updates, which only a device's own page shows."""

_TROUBLED: Final = Query(only=Only.PROBLEMS)
_UPDATING: Final = Query(only=Only.UPDATING)


class Overview(Page):
    template, title, section = "overview.html", "Overview", "overview"

    def __init__(self, desk: Desk, log: EventLog) -> None:
        super().__init__(desk)
        self._log = log

    @classmethod
    async def open(cls, desk: Desk) -> Overview:
        stored = await desk.source.events(None, limit=EVENTS_READ)
        telling = (logged for logged in stored if logged.event.kind is not EventKind.PHASE)
        return cls(desk, EventLog(telling, shown=EVENTS_SHOWN))

    async def fill(self, frame: Frame, now: float) -> None:
        for device_id, at, event in self.state.events:
            if event.kind is not EventKind.PHASE:
                self._log.add(LoggedEvent(device_id=device_id, at=at, event=event))
        self._log.fill(frame)
        self._fill_tiles(frame)
        self._fill_problems(frame, now)
        self._fill_rollouts(frame, now)
        self._fill_bundles(frame)
        frame.cells["empty"] = cell(show=not self.state.devices)
        frame.cells["full"] = cell(show=bool(self.state.devices))

    def _fill_tiles(self, frame: Frame) -> None:
        state = self.state
        total, troubled = len(state.devices), len(state.troubled)
        online = state.by_presence[Presence.ONLINE]
        updating = sum(n for phase, n in state.by_phase.items() if phase is not Phase.IDLE)
        serving = sum(1 for _, version in state.by_bundle if version)
        frame.cells |= {
            "tile.online": display.number(online),
            "tile.total": f"of {display.count(total, 'device')}",
            "tile.problems": cell(
                display.number(troubled), tone=Tone.BAD if troubled else Tone.GOOD
            ),
            "tile.problems.words": f"device{' needs' if troubled == 1 else 's need'} a look"
            if troubled
            else "nothing needs a look",
            "tile.updating": cell(
                display.number(updating), tone=Tone.BUSY if updating else Tone.MUTE
            ),
            "tile.bundles": display.number(serving),
            "tile.bundles.words": f"version{'' if serving == 1 else 's'} in service",
        }
        x = 0.0
        for presence in Presence:
            devices = state.by_presence[presence]
            width = display.share(devices, total)
            row = f"presence.{presence.value}"
            frame.cells[f"{row}.bar"] = cell(x=round(x, 4), width=round(width, 4))
            frame.cells[f"{row}.count"] = display.number(devices)
            frame.cells[f"{row}.item"] = cell(show=devices > 0)
            x += width

    def _fill_problems(self, frame: Frame, now: float) -> None:
        order = self.desk.orders.ids(_TROUBLED, now)
        # the order may be a second old, and a device well again since
        ids = [i for i in order[: 2 * PROBLEMS_SHOWN] if i in self.state.troubled][:PROBLEMS_SHOWN]
        frame.rows["problems"] = tuple(f"problem:{device_id}" for device_id in ids)
        for device_id in ids:
            put_problem(frame, f"problem:{device_id}", self.state.devices[device_id])
        troubled = len(self.state.troubled)
        frame.cells["problems.none"] = cell(show=not ids)
        frame.cells["problems.all"] = cell(
            f"All {display.number(troubled)}", href=_TROUBLED.address, show=troubled > len(ids)
        )

    def _fill_rollouts(self, frame: Frame, now: float) -> None:
        rollouts = self.desk.rollouts(now)
        moving = [r for r in rollouts if r.status in (RolloutStatus.RUNNING, RolloutStatus.PAUSED)]
        rest = [r for r in rollouts if r not in moving]
        shown = [*moving, *rest][:ROLLOUTS_SHOWN]
        frame.rows["rollouts"] = tuple(f"rollout:{rollout.id}" for rollout in shown)
        for rollout in shown:
            put_rollout(frame, f"rollout:{rollout.id}", rollout)
        frame.cells["rollouts.none"] = cell(show=not shown)

    def _fill_bundles(self, frame: Frame) -> None:
        total = len(self.state.devices)
        most = self.state.by_bundle.most_common(BUNDLES_SHOWN)
        frame.rows["bundles"] = tuple(f"bundle:{model}:{version}" for (model, version), _ in most)
        for (model, version), devices in most:
            row = f"bundle:{model}:{version}"
            frame.cells |= {
                f"{row}.title": cell(
                    f"{model} {version}" if version else f"{model}, none active",
                    href=bundle_query(model, version).address,
                ),
                f"{row}.count": display.number(devices),
                f"{row}.bar": cell(x=0, width=round(display.share(devices, total), 4)),
            }
        frame.cells["bundles.none"] = cell(show=not most)

    def context(self) -> dict[str, object]:
        return {
            "presences": [
                {
                    "value": presence.value,
                    "title": title_of(presence.value),
                    "tone": display.PRESENCE_TONES[presence].value,
                    "href": Query(presence=presence).address,
                }
                for presence in Presence
            ],
            "updating_href": _UPDATING.address,
            "problems_href": _TROUBLED.address,
        }
