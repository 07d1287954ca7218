"""The dashboard as one ASGI application: pages, their WebSocket, the JSON API, static files.

Pages are rendered from the frame that the WebSocket then continues (`frame`, `live`); what a person
orders comes as a plain form and ends in a redirect, so that it works before any script has run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from pathlib import Path
from typing import Final
from urllib.parse import parse_qs

from fastapi import FastAPI, HTTPException, Request, WebSocket
from fastapi.responses import HTMLResponse, RedirectResponse
from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles

from edgekit.hub.rollout import ALL, Action
from edgekit.web.address import open_view
from edgekit.web.api import add_api
from edgekit.web.guard import LOOPBACK, Guard
from edgekit.web.live import Live
from edgekit.web.source import FleetSource
from edgekit.web.views.page import Desk, Page, rollout_href
from edgekit_contract.errors import EdgekitError, Refused

__all__ = ["ChartsMissing", "create_app"]

_STATIC: Final = Path(__file__).parent / "static"
_CHARTS: Final = _STATIC / "vendor" / "uplot.js"

MAX_FIELDS: Final = 20
"""Of a posted form."""
SECTIONS: Final = (
    ("overview", "/", "Overview"),
    ("devices", "/devices", "Devices"),
    ("rollouts", "/rollouts", "Rollouts"),
    ("releases", "/releases", "Releases"),
)


class ChartsMissing(Refused):
    """The build hook has not run in this source tree."""

    def __init__(self) -> None:
        super().__init__(
            "The dashboard's chart library is not in this source tree: run pip install -e . again."
        )


def create_app(source: FleetSource, *, hosts: Collection[str] = LOOPBACK) -> FastAPI:
    """The application; serve it on the event loop that folds into `source.state`.

    `hosts`: names, without port, under which it may be asked for. Errors: `ChartsMissing`.
    """
    if not _CHARTS.is_file():
        raise ChartsMissing
    app = FastAPI(
        title="edgekit hub",
        description="The state of the fleet, as its dashboard shows it.",
        version="1",
        openapi_url="/api/v1/openapi.json",
        docs_url=None,  # both would load scripts from elsewhere
        redoc_url=None,
    )
    desk = Desk(source)
    static = f"/static/{_digest(_STATIC)}"
    pages = _Pages(desk, static)
    add_api(app, desk)
    app.mount(static, StaticFiles(directory=_STATIC), name="static")
    live = Live(desk, build=static)

    @app.websocket("/live")
    async def _live(socket: WebSocket) -> None:
        await live(socket)

    @app.get("/favicon.ico", include_in_schema=False)
    async def _icon() -> Response:
        return FileResponse(_STATIC / "mark.svg", media_type="image/svg+xml")

    @app.post("/rollouts", include_in_schema=False)
    async def _start(request: Request) -> Response:
        form = await _form(request)
        model, _, version = form.get("release", "").rpartition("@")
        chosen = form.get("selector", ALL)
        try:
            rollout_id = await source.start_rollout(model, version, selector=chosen)
        except EdgekitError as error:
            return await pages.render(request, "/rollouts", alert=str(error), status=409)
        desk.ordered()
        return RedirectResponse(rollout_href(rollout_id), status_code=303)

    @app.post("/rollouts/{rollout_id}/{action}", include_in_schema=False)
    async def _order(request: Request, rollout_id: str, action: Action) -> Response:
        try:
            await source.order(rollout_id, action)
        except EdgekitError as error:
            here = rollout_href(rollout_id)
            return await pages.render(request, here, alert=str(error), status=409)
        desk.ordered()
        return RedirectResponse(rollout_href(rollout_id), status_code=303)

    @app.get("/{path:path}", include_in_schema=False)
    async def _page(request: Request) -> Response:
        asked = f"?{request.url.query}" if request.url.query else ""
        return await pages.render(request, request.url.path + asked)

    app.add_middleware(GZipMiddleware, minimum_size=1000)
    app.add_middleware(Guard, hosts=hosts)
    return app


class _Pages:
    """Templates filled with frames."""

    def __init__(self, desk: Desk, static: str) -> None:
        self._desk = desk
        self._templates = Environment(
            loader=PackageLoader("edgekit.web"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.globals.update(static=static, sections=SECTIONS)

    async def render(
        self, request: Request, address: str, *, alert: str = "", status: int = 200
    ) -> HTMLResponse:
        """The page at `address`, with a sentence on top where an order was refused."""
        view = await open_view(self._desk, address)
        if view is None:
            view, status = _Unknown(self._desk), 404
        now = self._desk.source.now()
        frame = await view.frame(now)
        text = self._templates.get_template(view.template).render(
            f=frame,
            now=now,
            fleet=self._desk.source.fleet,
            title=view.title,
            section=view.section,
            alert=alert,
            **view.context(),
        )
        return HTMLResponse(text, status_code=status)


class _Unknown(Page):
    """There is no such page."""

    template, title, section = "unknown.html", "Not found", ""

    async def fill(self, frame: object, now: float) -> None:
        """Nothing to show."""


async def _form(request: Request) -> dict[str, str]:
    """A posted form's fields; `Guard` has bounded it. Errors: `HTTPException`, 400."""
    body = (await request.body()).decode("utf-8", "replace")
    try:
        fields = parse_qs(body, max_num_fields=MAX_FIELDS)
    except ValueError as error:
        raise HTTPException(400, f"Send at most {MAX_FIELDS} fields.") from error
    return {name: values[0] for name, values in fields.items()}


def _digest(directory: Path) -> str:
    """Of the static files: it is in their address, so browsers may keep them for ever."""
    digest = hashlib.sha256()
    for path in sorted(directory.rglob("*")):
        if path.is_file():
            digest.update(path.relative_to(directory).as_posix().encode() + b"\0")
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
