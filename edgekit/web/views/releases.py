"""Releases: what the repository holds, and where each serves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final
from urllib.parse import urlencode

from edgekit.web import display
from edgekit.web.frame import Frame, cell
from edgekit.web.source import ReleaseView
from edgekit.web.table import bundle_query
from edgekit.web.views.page import Desk, Page

__all__ = ["Releases"]

AGAIN_S: Final = 5.0
"""Between two looks at the repository."""


class Releases(Page):
    template, title, section = "releases.html", "Releases", "releases"

    def __init__(self, desk: Desk) -> None:
        super().__init__(desk)
        self._releases: Sequence[ReleaseView] = ()
        self._read_at: float | None = None

    async def fill(self, frame: Frame, now: float) -> None:
        if self._read_at is None or now - self._read_at >= AGAIN_S:
            self._releases, self._read_at = await self.source.releases(), now
        frame.rows["releases"] = tuple(_row(release) for release in self._releases)
        for release in self._releases:
            row = _row(release)
            devices = self.state.by_bundle[release.model, release.version]
            frame.cells |= {
                f"{row}.title": f"{release.model} {release.version}",
                f"{row}.counter": str(release.counter),
                f"{row}.profiles": ", ".join(
                    f"{profile} ({display.size(size_bytes)})"
                    for profile, size_bytes in sorted(release.profiles.items())
                ),
                f"{row}.devices": cell(
                    display.count(devices, "device"),
                    href=bundle_query(release.model, release.version).address,
                ),
                f"{row}.at": cell("") if release.added_at is None else cell(at=release.added_at),
                f"{row}.start": cell(href=f"/rollouts?{_asked(release)}#start"),
            }
        frame.cells["releases.none"] = cell(show=not self._releases)
        frame.cells["releases.some"] = cell(show=bool(self._releases))


def _row(release: ReleaseView) -> str:
    return f"release:{release.model}@{release.version}"


def _asked(release: ReleaseView) -> str:
    return urlencode({"release": f"{release.model}@{release.version}"})
