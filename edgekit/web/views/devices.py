"""The device table: rows of one page of one query; 10,000 devices cost what 50 cost."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from edgekit.hub.state import DeviceState, ModelState, Presence
from edgekit.web import display
from edgekit.web.display import Tone
from edgekit.web.frame import Cell, Frame, cell
from edgekit.web.table import COLUMNS, PAGE_ROWS, Only, Query
from edgekit.web.views.page import Desk, Page, device_href, title_of
from edgekit_contract.messages import Phase

__all__ = ["Devices", "phase_cell"]


class Devices(Page):
    template, title, section = "devices.html", "Devices", "devices"

    def __init__(self, desk: Desk, query: Query) -> None:
        super().__init__(desk)
        self.query = query
        self._shown: list[str] = []
        self._matches = 0
        self._cells: dict[str, tuple[int, dict[str, Cell]]] = {}
        """By device: its version and what its row showed then."""

    async def fill(self, frame: Frame, now: float) -> None:
        if not (self.held and self._shown):
            self._turn(now)
        known: dict[str, tuple[int, dict[str, Cell]]] = {}
        for device_id in self._shown:
            device = self.state.devices.get(device_id)
            if device is None:
                continue  # forgotten while the order was held
            version, cells = self._cells.get(device_id, (-1, {}))
            if version != device.version:
                cells = _row(device)
            known[device_id] = (device.version, cells)
            frame.cells.update(cells)
        self._cells = known
        frame.rows["devices"] = tuple(f"device:{device_id}" for device_id in known)
        self._fill_controls(frame)

    def _turn(self, now: float) -> None:
        order = self.desk.orders.ids(self.query, now)
        pages = max(1, -(-len(order) // PAGE_ROWS))
        if self.query.page > pages:
            self.query = replace(self.query, page=pages)
        start = (self.query.page - 1) * PAGE_ROWS
        self._matches, self._shown = len(order), order[start : start + PAGE_ROWS]

    def _fill_controls(self, frame: Frame) -> None:
        query, matches = self.query, self._matches
        start = (query.page - 1) * PAGE_ROWS
        last = start + len(self._shown)
        for name in COLUMNS:
            here = name == query.sort
            frame.cells[f"sort.{name}"] = cell(href=query.sorted_by(name).address)
            frame.cells[f"head.{name}"] = cell(
                sort=("descending" if query.descending else "ascending") if here else "none"
            )
        frame.cells |= {
            "matches": display.count(matches, "device")
            + (f" of {display.number(len(self.state.devices))}" if query.narrowed else ""),
            "page.words": f"{start + 1:,}–{last:,} of {matches:,}" if matches else "",
            "page.previous": cell(
                href=replace(query, page=query.page - 1).address, show=query.page > 1
            ),
            "page.next": cell(
                href=replace(query, page=query.page + 1).address, show=last < matches
            ),
            "page.bar": cell(show=matches > PAGE_ROWS),
            "table": cell(show=matches > 0),
            "none.left": cell(show=not matches and bool(self.state.devices)),
            "none.known": cell(show=not self.state.devices),
            "all": cell(show=query.narrowed),
        }

    def context(self) -> dict[str, Any]:
        state = self.state
        return {
            "query": self.query,
            "columns": COLUMNS,
            "presences": [(p.value, title_of(p.value)) for p in Presence],
            "profiles": sorted(p for p in state.by_profile if p),
            "bundles": [
                (f"{model}@{version or 'none'}", f"{model} {version or '(none active)'}")
                for model, version in sorted(state.by_bundle)
            ],
            "onlys": [
                (Only.EVERY.value, "Every state"),
                (Only.PROBLEMS.value, "With problems"),
                (Only.UPDATING.value, "Updating"),
            ],
        }


def _row(device: DeviceState) -> dict[str, Cell]:
    row = f"device:{device.id}"
    models = sorted(device.models.values(), key=lambda model: model.name)
    problem = device.problems[0] if device.problems else None
    more = len(device.problems) - 1
    return {
        f"{row}.device": cell(device.id, href=device_href(device.id)),
        f"{row}.profile": device.profile or "profile unknown",
        f"{row}.presence": cell(
            title_of(device.presence.value), tone=display.PRESENCE_TONES[device.presence]
        ),
        f"{row}.bundle": ", ".join(f"{m.name} {m.active_version or 'none'}" for m in models)
        or display.NONE,
        f"{row}.phase": phase_cell(models),
        f"{row}.latency": display.milliseconds(_greatest(models, "p95_ms")),
        f"{row}.memory": display.size(_greatest(models, "rss_bytes")),
        f"{row}.temperature": display.temperature(device.points.newest("temperature_c")),
        f"{row}.heard": cell(display.NONE) if device.heard_at is None else cell(at=device.heard_at),
        f"{row}.problem": cell(
            "" if problem is None else problem.text + (f" (+{more})" if more else ""),
            tone=Tone.GOOD if problem is None else display.SEVERITY_TONES[problem.severity],
            show=problem is not None,
        ),
    }


def phase_cell(models: list[ModelState]) -> Cell:
    """What the update machine furthest along is doing."""
    moving = [model for model in models if model.reported.phase is not Phase.IDLE]
    if not moving:
        return cell("Idle", tone=Tone.MUTE)
    reported = moving[0].reported
    words = title_of(reported.phase.value)
    if reported.progress is not None and reported.phase is Phase.FETCH:
        words += f" {display.percent(100 * reported.progress)}"
    return cell(words, tone=Tone.BUSY)


def _greatest(models: list[ModelState], column: str) -> float | None:
    return max((v for m in models if (v := m.points.newest(column)) is not None), default=None)
