"""The one WebSocket of a page: frames out, acknowledgements and wishes in.

Invariants: at most one frame is under way to a browser, and the next is worked out only when that
one was applied, so that nothing queues for a slow browser and what arrives is never old; a page
that nobody sees gets nothing. A page hears at least once per `BEAT_S`, or knows that it is cut off.

In: `{"view": ADDRESS}` subscribes, anew each time; `{"applied": N}`; `{"held": BOOL}`;
`{"seen": BOOL}`. Out: `{"n": N, "at": SECONDS, ...}` with what `frame.difference` gives; on the
first of a view `"whole": true` and the `build` of the scripts; `{"unknown": ADDRESS}` where there
is none.
"""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Final

import msgspec
from starlette.websockets import WebSocket, WebSocketDisconnect

from edgekit.web.address import MAX_ADDRESS_CHARS, open_view
from edgekit.web.frame import Frame, View, difference
from edgekit.web.views.page import Desk

__all__ = ["Live"]

BEAT_S: Final = 1.0
MAX_PAGES: Final = 256
"""Open at once."""
MAX_WISH_CHARS: Final = 4_000
TRY_LATER: Final = 1013
NOT_UNDERSTOOD: Final = 1007


class _Wish(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a browser may say; one of the fields."""

    view: Annotated[str, msgspec.Meta(max_length=MAX_ADDRESS_CHARS)] | None = None
    applied: int | None = None
    held: bool | None = None
    seen: bool | None = None


class Live:
    """The endpoint. Counts the pages that are open."""

    def __init__(self, desk: Desk, *, build: str) -> None:
        """`build` tells one edition of the scripts from another."""
        self._desk, self._build = desk, build
        self.pages = 0

    async def __call__(self, socket: WebSocket) -> None:
        if self.pages >= MAX_PAGES:
            await socket.close(TRY_LATER)
            return
        await socket.accept()
        self.pages += 1
        session = _Session(self._desk, socket, self._build)
        tasks = [
            asyncio.create_task(session.listen(), name="page in"),
            asyncio.create_task(session.tell(), name="page out"),
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.pages -= 1
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception) and not isinstance(result, WebSocketDisconnect):
                raise result


class _Session:
    """One page."""

    def __init__(self, desk: Desk, socket: WebSocket, build: str) -> None:
        self._desk, self._socket, self._build = desk, socket, build
        self._news = asyncio.Event()
        """Set by every wish; `tell` looks at all that it waits for whenever it is."""
        self._wanted: str | None = None
        self._view: View | None = None
        self._last = Frame()
        self._sent = self._applied = 0
        self._seen, self._held = True, False

    async def listen(self) -> None:
        """Take wishes until the browser leaves or says what cannot be understood."""
        while True:
            message = await self._socket.receive()
            if message["type"] == "websocket.disconnect":
                return
            text = message.get("text") or ""
            try:
                if len(text) > MAX_WISH_CHARS:
                    raise ValueError(f"{len(text)} characters")
                wish = msgspec.json.decode(text, type=_Wish)
            except (msgspec.DecodeError, ValueError, RecursionError):
                await self._socket.close(NOT_UNDERSTOOD)
                return
            if wish.view is not None:
                self._wanted = wish.view
            if wish.applied is not None:
                self._applied = wish.applied
            if wish.seen is not None:
                self._seen = wish.seen
            if wish.held is not None:
                self._held = wish.held
            self._news.set()

    async def tell(self) -> None:
        """Send frames, each after the one before was applied."""
        loop = asyncio.get_running_loop()
        told_at = -BEAT_S
        while True:
            while self._wanted is None and (
                self._view is None or not self._seen or self._applied < self._sent
            ):
                self._news.clear()
                await self._news.wait()
            began = loop.time()
            whole = self._wanted is not None
            if self._wanted is not None and not await self._turn(self._wanted):
                continue
            message = await self._message(whole=whole)
            if whole or message or began - told_at >= BEAT_S:
                self._sent += 1
                told_at = began
                await self._send({"n": self._sent, "at": self._desk.source.now(), **message})
            await self._pause(began)

    async def _turn(self, address: str) -> bool:
        """Open another view."""
        view = await open_view(self._desk, address)
        if self._wanted == address:
            self._wanted = None
        self._view, self._last = view, Frame()
        if view is None:
            await self._send({"unknown": address})
        return view is not None

    async def _message(self, *, whole: bool) -> dict[str, Any]:
        assert self._view is not None
        self._view.hold(self._held)
        frame = await self._view.frame(self._desk.source.now())
        message = difference(self._last, frame)
        self._last = frame
        return {"whole": True, "build": self._build, **message} if whole else message

    async def _pause(self, began: float) -> None:
        """Until the view's next frame is due, or another view is wanted."""
        assert self._view is not None
        loop = asyncio.get_running_loop()
        while self._wanted is None and (left := began + self._view.period_s - loop.time()) > 0:
            self._news.clear()
            try:
                await asyncio.wait_for(self._news.wait(), left)
            except asyncio.TimeoutError:
                return

    async def _send(self, message: dict[str, Any]) -> None:
        await self._socket.send_text(msgspec.json.encode(message).decode())
