"""What one page shows at one moment, and the difference between two moments.

A frame is cells (a key and a value) and lists (rows that come and go). The template renders the
first frame; the WebSocket then sends what differs. Both read the same frame, so a page says the
same before and after its script has started. A cell goes with its row; other cells never go.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

from markupsafe import Markup, escape

from edgekit.web import display
from edgekit.web.display import Tone

__all__ = ["Cell", "Frame", "View", "cell", "difference"]

Cell: TypeAlias = "str | dict[str, Any]"
"""The text of an element; or its parts:

`text`; `tone` (data-tone); `href`; `at` (Unix seconds, shown as an age); `share` (0 to 1, the value
of a progress); `x` and `width` (0 to 1, of a bar's part); `show` (false hides it); `sort`
(aria-sort); `current` (aria-current).
"""

_PARTS = frozenset("text tone href at share x width show sort current".split())


@dataclass(slots=True)
class Frame:
    cells: dict[str, Cell] = field(default_factory=dict)
    rows: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Name of a list to the ids of its rows, in order; row `r` has the cells `r.*`."""
    points: dict[str, list[list[float | None]]] = field(default_factory=dict)
    """Name of a chart's series to rows to append: not state, so never part of a difference."""

    def bind(self, key: str) -> Markup:
        """The attributes of the element that shows a cell."""
        value = self.cells.get(key, "")
        out = Markup('data-cell="{}"').format(key)
        if isinstance(value, str):
            return out
        for part, attribute in (
            ("tone", "data-tone"),
            ("href", "href"),
            ("sort", "aria-sort"),
            ("current", "aria-current"),
            ("share", "value"),
        ):
            if value.get(part) is not None:
                out += Markup(' {}="{}"').format(Markup(attribute), value[part])
        for part in ("x", "width"):
            if value.get(part) is not None:
                out += Markup(' {}="{:.2f}%"').format(Markup(part), 100 * value[part])
        if value.get("at") is not None:
            stamp = display.instant(value["at"])
            out += Markup(' data-at="{}" datetime="{}"').format(value["at"], stamp)
        if value.get("show") is False:
            out += Markup(" hidden")
        return out

    def text(self, key: str) -> Markup:
        """The text of a cell."""
        value = self.cells.get(key, "")
        if isinstance(value, str):
            return escape(value)
        if value.get("at") is not None:
            return escape(display.instant(value["at"]))
        return escape(value.get("text", ""))

    def shown(self, key: str) -> bool:
        """Whether anything stands in a cell."""
        return bool(self.cells.get(key))


def cell(text: str | None = None, *, tone: Tone | None = None, **parts: Any) -> Cell:
    """A cell of these parts; None leaves one out. Errors: `RuntimeError` for an unknown part."""
    if unknown := parts.keys() - _PARTS:
        raise RuntimeError(f"no such part of a cell: {sorted(unknown)}")
    value = {part: content for part, content in parts.items() if content is not None}
    if text is not None:
        value["text"] = text
    if tone is not None:
        value["tone"] = tone.value
    return value


def difference(old: Frame, new: Frame) -> dict[str, Any]:
    """What turns `old` into `new`: `set`, `rows`, `points`; each only where there is something."""
    out: dict[str, Any] = {}
    before = old.cells
    changed = {key: value for key, value in new.cells.items() if before.get(key) != value}
    if changed:
        out["set"] = changed
    rows = {name: ids for name, ids in new.rows.items() if old.rows.get(name) != ids}
    if rows:
        out["rows"] = rows
    if new.points:
        out["points"] = new.points
    return out


class View(Protocol):
    """One page: what its address asked for, and how that stands."""

    @property
    def template(self) -> str: ...
    @property
    def title(self) -> str: ...
    @property
    def period_s(self) -> float:
        """Between two frames."""
        ...

    async def frame(self, now: float) -> Frame:
        """How it stands at `now`."""
        ...

    def hold(self, held: bool) -> None:
        """Keep the order of rows as it is, while somebody points at them."""

    def context(self) -> Mapping[str, Any]:
        """What the template needs beside the frame, and the script never changes."""
        ...
