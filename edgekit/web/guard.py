"""Who may ask, and what a browser may do with the answer.

The dashboard has no log-in: it is bound to loopback, and whoever reaches it there may use it. What
must be kept out is another site in the same browser. Invariants:

- A request for a host name that is not ours is refused: DNS rebinding ends here.
- A WebSocket, or a request that may change something, that tells of another origin is refused.
- A page runs only our scripts and styles, from our own files, and cannot be framed.

Sources: Fetch (the Origin header), CSP level 3, the Fetch metadata request headers.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketClose

__all__ = ["LOOPBACK", "MAX_BODY_BYTES", "Guard"]

LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")
MAX_BODY_BYTES: Final = 16 << 10
SAFE: Final = ("GET", "HEAD", "OPTIONS")
POLICY_VIOLATION: Final = 1008

HEADERS: Final = {
    "Content-Security-Policy": "default-src 'self'; object-src 'none'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    # not no-referrer: a form's Origin would be `null`
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}


class Guard:
    """ASGI middleware, the outermost."""

    def __init__(self, app: ASGIApp, *, hosts: Collection[str]) -> None:
        self._app = app
        self._hosts = frozenset(host.lower() for host in hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        if refusal is None:
            await self._app(scope, receive, _with_headers(scope, send))
        elif scope["type"] == "websocket":
            await WebSocketClose(POLICY_VIOLATION)(scope, receive, send)
        else:
            status, sentence = refusal
            response = PlainTextResponse(f"{sentence}\n", status_code=status)
            await response(scope, receive, _with_headers(scope, send))

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        headers = Headers(scope=scope)
        hosts = headers.getlist("host")
        if len(hosts) != 1 or _hostname(f"//{hosts[0]}") not in self._hosts:
            return 421, "This is not the name of the dashboard: open the address the hub printed."
        if scope["type"] == "http" and scope["method"] in SAFE:
            return None
        origin = headers.get("origin")
        if origin is None:
            if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
                return 403, "Another site asked for this: use the dashboard's own page."
        elif urlsplit(origin).netloc.lower() != hosts[0].lower():
            return 403, "Another site asked for this: use the dashboard's own page."
        if scope["type"] == "http":
            length = headers.get("content-length", "")
            if not length.isdigit():
                return 411, "Send the length of the body."
            if int(length) > MAX_BODY_BYTES:
                return 413, f"Send at most {MAX_BODY_BYTES} bytes."
        return None


def _hostname(value: str) -> str:
    try:
        return urlsplit(value).hostname or ""
    except ValueError:
        return ""


def _with_headers(scope: Scope, send: Send) -> Send:
    kept = "/static/" in scope["path"]

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers[name] = value
            good = message["status"] < 400
            # a static path holds the digest of what it delivers
            headers["Cache-Control"] = (
                "public, max-age=31536000, immutable" if kept and good else "no-store"
            )
        await send(message)

    return sending
