"""One HTTP/1.1 connection: bytes in, requests out, answers in their order.

Invariants: a request is handed over whole or refused; answers leave in the order of their
requests; after the last answer the socket is half-closed and read until the client has gone, so
that no answer is lost to a reset. A body whose length is known is received into its final place,
without a copy. Sources: RFC 9110, RFC 9112 (sections 9.3 and 9.6).
"""

from __future__ import annotations

import asyncio
import http
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol, cast

import httptools

from edgekit_contract import limits

__all__ = ["Connection", "Host", "HttpRequest", "HttpResponse"]

KEEP_ALIVE_S: Final = 75.0
REQUEST_S: Final = 60.0
"""Longest that a request may take to arrive, or an answer to be taken."""
DRAIN_IDLE_S: Final = 1.0
"""In a drain, how long an idle connection may still send the request it was about to send."""
LINGER_S: Final = 1.0
_JOIN_BYTES: Final = 64 * limits.KIB
"""Answers up to this leave in one piece; copying them is cheaper than a second system call."""

Piece = bytes | bytearray | memoryview


@dataclass(frozen=True, kw_only=True, slots=True)
class HttpRequest:
    method: str
    path: str
    """Without its query."""
    headers: Mapping[str, str]
    """By lower-case name."""
    body: bytearray
    received_s: float
    """The host's clock when the last byte was there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HttpResponse:
    status: int
    body: tuple[Piece, ...] = ()
    headers: tuple[tuple[str, str], ...] = (("content-type", "application/json"),)


class Host(Protocol):
    """What a connection needs of the server that accepted it. All calls are on its loop."""

    scratch: memoryview
    draining: bool

    def now_s(self) -> float: ...

    def reserve(self, size_bytes: int) -> bool:
        """Claim memory for a body; a negative size gives it back."""
        ...

    def handle(self, request: HttpRequest, reply: Callable[[HttpResponse], None]) -> None:
        """Answer a request, now or later, exactly once."""
        ...

    def refuse(self, status: int, sentence: str) -> HttpResponse:
        """The answer to what is not a request that can be handled."""
        ...

    def closed(self, connection: Connection) -> None: ...


class Connection(asyncio.BufferedProtocol):
    """Reads into the host's scratch buffer, which is used up before the next read."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._transport: asyncio.Transport = cast(asyncio.Transport, None)
        self._waiting: deque[HttpRequest | HttpResponse] = deque()
        self._answering: HttpRequest | None = None
        self._advancing = self._reading_paused = self._writing_paused = False
        self._input_over = self._lingering = self._peer_done = self._lost = False
        self._reserved = 0
        self.deadline_s: float | None = None
        """When to give up on the client; None while it waits for the model."""
        self._begin()

    # --- of one request

    def _begin(self) -> None:
        self._parser = httptools.HttpRequestParser(self)
        self._reset()

    def _reset(self) -> None:
        self._begun_s: float | None = None
        self._url = b""
        self._headers: dict[str, str] = {}
        self._in_head = True
        self._keep_alive = True
        self._fed = 0
        self._body = bytearray()
        self._filled = 0
        self._chunked = False

    def on_message_begin(self) -> None:
        if self._input_over:
            return
        self._reset()
        self._begun_s = self._host.now_s()

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:
            self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self._in_head = False
        if self._input_over:
            return
        self._keep_alive = (
            self._parser.get_http_version() == "1.1" and self._parser.should_keep_alive()
        )
        self._chunked = "transfer-encoding" in self._headers
        length = int(self._headers.get("content-length", 0))
        if not self._claim(length):
            return
        self._body = bytearray(length)
        expects = self._headers.get("expect", "").lower() == "100-continue"
        if expects and self._answering is None and not self._waiting:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        if self._input_over:
            return
        if self._chunked:
            if self._claim(len(body)):
                self._body += body
        else:
            self._body[self._filled : self._filled + len(body)] = body
            self._filled += len(body)

    def on_message_complete(self) -> None:
        if self._input_over:
            return
        self._waiting.append(
            HttpRequest(
                method=self._parser.get_method().decode("ascii"),
                path=self._url.partition(b"?")[0].decode("latin-1"),
                headers=self._headers,
                body=self._body,
                received_s=self._host.now_s(),
            )
        )
        self._input_over = not self._keep_alive
        self._reset()

    def _claim(self, size_bytes: int) -> bool:
        if len(self._body) + size_bytes > limits.MAX_REQUEST_BYTES:
            self._refuse(
                413, f"a request is at most {limits.MAX_REQUEST_BYTES >> 20} MiB: send less."
            )
            return False
        if not self._host.reserve(size_bytes):
            self._refuse(503, "too many large requests at once: try again.")
            return False
        self._reserved += size_bytes
        return True

    def _refuse(self, status: int, sentence: str) -> None:
        if not self._input_over:
            self._input_over = True
            self._begun_s = None
            self._waiting.append(self._host.refuse(status, sentence))

    # --- asyncio, reading

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._settle()

    def get_buffer(self, sizehint: int) -> memoryview:
        if self._body_is_arriving:
            return memoryview(self._body)[self._filled :]
        return self._host.scratch

    @property
    def _body_is_arriving(self) -> bool:
        return not (self._in_head or self._chunked or self._input_over) and self._filled < len(
            self._body
        )

    def buffer_updated(self, nbytes: int) -> None:
        if self._body_is_arriving:
            self._filled += nbytes
            if self._filled == len(self._body):
                # The parser has not seen these bytes: the next request gets a fresh one.
                self.on_message_complete()
                self._begin()
        elif not self._input_over:
            self._feed(self._host.scratch[:nbytes])
        self._advance()

    def _feed(self, data: memoryview) -> None:
        self._fed += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # Upgrading is an offer; it is declined by answering in HTTP/1.1 and closing.
            self._input_over = True
        except httptools.HttpParserError as error:
            self._refuse(400, f"that is not HTTP/1.1 ({error}).")
        if self._in_head and self._fed > limits.MAX_HTTP_HEAD_BYTES:
            self._refuse(431, f"the header is over {limits.MAX_HTTP_HEAD_BYTES >> 10} KiB.")
        elif self._fed > limits.MAX_REQUEST_BYTES + limits.MAX_HTTP_HEAD_BYTES:
            self._refuse(413, "the chunks are too small for their sum: send larger ones.")

    def eof_received(self) -> bool:
        self._peer_done = True
        if self._begun_s is not None:
            self._refuse(400, "the request ended before its length: send it whole.")
        self._input_over = True
        self._advance()
        return not self._lingering and (self._answering is not None or bool(self._waiting))

    # --- answering

    def _advance(self) -> None:
        if self._advancing:
            return
        self._advancing = True
        try:
            while self._waiting and self._answering is None and not self._writing_paused:
                item = self._waiting.popleft()
                if isinstance(item, HttpResponse):
                    self._write(item, head_only=False)
                else:
                    self._answering = item
                    self._host.handle(item, self._reply)
        finally:
            self._advancing = False
        self._settle()

    def _reply(self, response: HttpResponse) -> None:
        request = self._answering
        if request is None:
            raise RuntimeError("a second answer to one request")
        self._answering = None
        size = len(request.body)
        if self._lost:
            return
        self._host.reserve(-size)
        self._reserved -= size
        self._write(response, head_only=request.method == "HEAD")
        self._advance()

    def _write(self, response: HttpResponse, *, head_only: bool) -> None:
        idle = not self._waiting and self._begun_s is None
        last = idle and (self._input_over or self._host.draining)
        size = sum(len(piece) for piece in response.body)
        lines = [f"HTTP/1.1 {response.status} {http.HTTPStatus(response.status).phrase}"]
        lines += [f"{name}: {value}" for name, value in response.headers]
        lines.append(f"content-length: {size}")
        if last:
            lines.append("connection: close")
        head = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
        if head_only:
            self._transport.write(head)
        elif size <= _JOIN_BYTES:
            self._transport.write(b"".join((head, *response.body)))
        else:
            self._transport.write(head)
            for piece in response.body:
                self._transport.write(piece)
        if last:
            self._input_over = self._lingering = True
            self.deadline_s = self._host.now_s() + LINGER_S
            if self._peer_done:
                self._transport.close()
            else:
                self._transport.write_eof()

    # --- pace

    def _settle(self) -> None:
        """Set the deadline and the flow of reading by what the connection waits for."""
        if self._lingering:
            return
        now = self._host.now_s()
        if self._writing_paused:
            self.deadline_s = now + REQUEST_S
        elif self._answering is not None or self._waiting:
            self.deadline_s = None
        elif self._begun_s is not None:
            self.deadline_s = self._begun_s + REQUEST_S
        else:
            self.deadline_s = now + (DRAIN_IDLE_S if self._host.draining else KEEP_ALIVE_S)
        crowded = len(self._waiting) >= limits.MAX_PIPELINED
        if crowded and not self._reading_paused:
            self._transport.pause_reading()
        elif self._reading_paused and not crowded:
            self._transport.resume_reading()
        self._reading_paused = crowded

    def drain(self) -> None:
        """The host drains: what is in flight is answered, what is idle has a moment left."""
        self._settle()

    def expire(self, now_s: float) -> None:
        """Give up on the client if its deadline has passed."""
        if self.deadline_s is None or now_s < self.deadline_s:
            return
        if self._begun_s is not None and not (self._lingering or self._writing_paused):
            self._refuse(408, "the request took too long to arrive.")
            self._advance()
        elif self._writing_paused:
            self._transport.abort()
        else:
            self._transport.close()

    def pause_writing(self) -> None:
        self._writing_paused = True
        self._settle()

    def resume_writing(self) -> None:
        self._writing_paused = False
        self._advance()

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        self._waiting.clear()
        self._host.reserve(-self._reserved)
        self._reserved = 0
        self._host.closed(self)
