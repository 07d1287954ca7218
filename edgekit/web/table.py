"""The device table: a query that is the page's address, and the order that answers it.

Invariants: `parse(query.address)` is `query`; an order is worked out at most once per `FRESH_S` for
all pages that ask the same, and not at all while nothing it depends on has changed.
"""

from __future__ import annotations

import enum
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from operator import attrgetter, itemgetter
from typing import Any, Final
from urllib.parse import urlencode

from edgekit.hub.state import DeviceState, FleetState, Presence
from edgekit_contract.messages import Phase

__all__ = [
    "COLUMNS",
    "FRESH_S",
    "MAX_PAGE",
    "PAGE_ROWS",
    "Column",
    "Only",
    "Orders",
    "Query",
    "bundle_query",
    "parse",
]

PAGE_ROWS: Final = 50
MAX_PAGE: Final = 10_000
MAX_WORDS_CHARS: Final = 100
FRESH_S: Final = 1.0
"""How old an order may be whose columns change with every message."""
ORDERS_KEPT: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    title: str
    key: Callable[[DeviceState], Any]
    """Never None; devices that lack the value come last in both directions: see `missing`."""
    descending: bool = False
    """Whether the first click shows the greatest first."""
    indexed: bool = True
    """Whether it changes only with `FleetState.index_version`."""


def _greatest(device: DeviceState, column: str) -> float | None:
    values = [v for m in device.models.values() if (v := m.points.newest(column)) is not None]
    return max(values, default=None)


def _progress(device: DeviceState) -> int | None:
    """The phase furthest along; devices that do nothing are missing."""
    order = [_PHASES[m.reported.phase] for m in device.models.values()]
    return max((at for at in order if at), default=None)


_PHASES: Final = {phase: index for index, phase in enumerate(Phase)}
_PRESENCES: Final = {presence: index for index, presence in enumerate(Presence)}

COLUMNS: Final[Mapping[str, Column]] = {
    "device": Column(title="Device", key=lambda d: d.id),
    "presence": Column(title="Presence", key=lambda d: _PRESENCES[d.presence]),
    "bundle": Column(
        title="Bundle",
        key=lambda d: sorted((m.name, m.active_version) for m in d.models.values()) or None,
    ),
    "phase": Column(title="Update", key=_progress, descending=True),
    "latency": Column(
        title="p95", key=lambda d: _greatest(d, "p95_ms"), descending=True, indexed=False
    ),
    "memory": Column(
        title="Worker RSS", key=lambda d: _greatest(d, "rss_bytes"), descending=True, indexed=False
    ),
    "temperature": Column(
        title="Temp.",
        key=lambda d: d.points.newest("temperature_c"),
        descending=True,
        indexed=False,
    ),
    "heard": Column(title="Heard", key=lambda d: d.heard_at, descending=True, indexed=False),
    "problem": Column(title="Problem", key=lambda d: d.severity, descending=True),
}


class Only(enum.Enum):
    """Narrowings that are not a value of one column."""

    EVERY = ""
    PROBLEMS = "problems"
    UPDATING = "updating"


_ONLY: Final[Mapping[Only, Callable[[DeviceState], bool]]] = {
    Only.EVERY: lambda d: True,
    Only.PROBLEMS: lambda d: bool(d.problems),
    Only.UPDATING: lambda d: any(m.reported.phase is not Phase.IDLE for m in d.models.values()),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    words: str = ""
    """Part of a device id or profile."""
    presence: Presence | None = None
    profile: str = ""
    bundle: str = ""
    """`MODEL`, `MODEL@VERSION`, or `MODEL@none` for devices where it does not serve."""
    only: Only = Only.EVERY
    sort: str = "problem"
    descending: bool = True
    page: int = 1

    @property
    def address(self) -> str:
        """The page's address; what is as usual is left out."""
        column = COLUMNS[self.sort]
        asked = {
            "q": self.words,
            "presence": self.presence.value if self.presence else "",
            "profile": self.profile,
            "bundle": self.bundle,
            "only": self.only.value,
            "sort": "" if self.sort == "problem" else self.sort,
            "order": "" if self.descending == column.descending else _ORDERS[self.descending],
            "page": "" if self.page == 1 else str(self.page),
        }
        words = urlencode({name: value for name, value in asked.items() if value})
        return f"/devices?{words}" if words else "/devices"

    def sorted_by(self, column: str) -> Query:
        """As a click on a column's title asks: turned round if it is the one already."""
        descending = COLUMNS[column].descending
        if column == self.sort:
            descending = not self.descending
        return replace(self, sort=column, descending=descending, page=1)

    @property
    def narrowed(self) -> bool:
        """Whether any device may be left out."""
        return replace(self, sort="problem", descending=True, page=1) != Query()


_DIGITS: Final = re.compile(r"[0-9]{1,6}", re.ASCII)
_ORDERS: Final = {False: "up", True: "down"}


def parse(asked: Mapping[str, str]) -> Query:
    """The query of an address. What cannot be understood is as usual: an address never fails."""
    sort = asked.get("sort", "problem")
    if sort not in COLUMNS:
        sort = "problem"
    descending = {"up": False, "down": True}.get(asked.get("order", ""), COLUMNS[sort].descending)
    page = asked.get("page", "1")
    return Query(
        words=asked.get("q", "").strip().lower()[:MAX_WORDS_CHARS],
        presence=next((p for p in Presence if p.value == asked.get("presence")), None),
        profile=asked.get("profile", "")[:MAX_WORDS_CHARS],
        bundle=asked.get("bundle", "")[:MAX_WORDS_CHARS],
        only=next((o for o in Only if o.value == asked.get("only")), Only.EVERY),
        sort=sort,
        descending=descending,
        page=min(max(int(page), 1), MAX_PAGE) if _DIGITS.fullmatch(page) else 1,
    )


@dataclass(slots=True)
class _Order:
    ids: list[str]
    depends_on: int
    at: float


class Orders:
    """The answers that pages share. One per application, used on the loop that folds."""

    def __init__(self, state: FleetState) -> None:
        self._state = state
        self._orders: OrderedDict[Query, _Order] = OrderedDict()

    def ids(self, query: Query, now: float) -> list[str]:
        """Ids of all devices that a query leaves, sorted; its `page` plays no part."""
        key = replace(query, page=1)
        indexed = COLUMNS[key.sort].indexed
        depends_on = self._state.index_version if indexed else self._state.version
        order = self._orders.get(key)
        if order is None or (order.depends_on != depends_on and now - order.at >= FRESH_S):
            order = self._orders[key] = _Order(_sorted(self._state, key), depends_on, now)
        self._orders.move_to_end(key)
        while len(self._orders) > ORDERS_KEPT:
            self._orders.popitem(last=False)
        return order.ids


def bundle_query(model: str, version: str) -> Query:
    """Devices on which this version serves; the empty version: on which none does."""
    return Query(bundle=f"{model}@{version or 'none'}")


def _sorted(state: FleetState, query: Query) -> list[str]:
    devices = [device for device in _narrowed(state, query) if _leaves(query, device)]
    devices.sort(key=attrgetter("id"))
    if query.sort == "device":
        if query.descending:
            devices.reverse()
        return [device.id for device in devices]
    key = COLUMNS[query.sort].key
    keyed, missing = [], []
    for device in devices:
        value = key(device)
        if value is None:
            missing.append(device.id)
        else:
            keyed.append((value, device.id))
    keyed.sort(key=itemgetter(0), reverse=query.descending)
    return [device_id for _, device_id in keyed] + missing


def _narrowed(state: FleetState, query: Query) -> Any:
    return state.troubled.values() if query.only is Only.PROBLEMS else state.devices.values()


def _leaves(query: Query, device: DeviceState) -> bool:
    if query.words and query.words not in device.id and query.words not in device.profile:
        return False
    if query.presence is not None and device.presence is not query.presence:
        return False
    if query.profile and device.profile != query.profile:
        return False
    if query.bundle:
        name, _, version = query.bundle.partition("@")
        model = device.models.get(name)
        if model is None or (version and (model.active_version or "none") != version):
            return False
    return _ONLY[query.only](device)
