"""The local API's server: accepts on sockets that the daemon bound, in a thread with its own loop.

Invariants: a connection that was accepted is answered; a drain accepts no more and ends when no
connection is left, which the connections' deadlines and a running inference bound. The daemon holds
the listening sockets too, so what arrives meanwhile waits in their backlog for the next worker; a
drain lets go of ours, so that a worker which outlives its daemon keeps no port from the next one.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from edgekit_agent.connection import Connection, HttpRequest, HttpResponse
from edgekit_contract import limits

__all__ = ["Application", "Server"]

_SWEEP_S: Final = 1.0
_DRAIN_SWEEP_S: Final = 0.05
_ACCEPT_BATCH: Final = 32
_SCRATCH_BYTES: Final = 64 * limits.KIB


class Application(Protocol):
    """What answers requests. Called on the server's loop."""

    def handle(self, request: HttpRequest, reply: Callable[[HttpResponse], None]) -> None:
        """Answer a request, now or later, exactly once. Errors: none."""
        ...

    def refuse(self, status: int, sentence: str) -> HttpResponse:
        """The answer to what is not a request that can be handled."""
        ...


class Server:
    """Serves from `start` until a `drain` is over. Its public methods may be called anywhere."""

    def __init__(self, listeners: Sequence[socket.socket]) -> None:
        self._listeners = listeners
        self._application: Application | None = None
        self._connections: set[Connection] = set()
        self._opening: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._accepting = False
        self._bodies_bytes = 0
        self.scratch = memoryview(bytearray(_SCRATCH_BYTES))
        self.draining = False
        self.drained = threading.Event()

    def start(self, application: Application) -> None:
        """Begin to accept connections."""
        self._application, self._loop = application, asyncio.new_event_loop()
        threading.Thread(target=self._run, name="server", daemon=True).start()

    def drain(self) -> None:
        """Accept no more, answer what is in flight; `drained` is set when that is done."""
        if self.draining:
            return
        self.draining = True
        if self._application is None:
            self.drained.set()
        else:
            self.post(self._drain)

    def post(self, call: Callable[[], None]) -> None:
        """Run `call` on the server's loop soon, or never where the loop has ended."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(call)

    # --- the loop's thread

    def _run(self) -> None:
        self._sweep()
        try:
            self._loop.run_forever()
        finally:
            self._loop.close()
            self.drained.set()

    def _accept_again(self) -> None:
        if not (self._accepting or self.draining):
            self._accepting = True
            for listener in self._listeners:
                listener.setblocking(False)
                self._loop.add_reader(listener, self._accept, listener)

    def _accept_no_more(self) -> None:
        if self._accepting:
            self._accepting = False
            for listener in self._listeners:
                self._loop.remove_reader(listener)

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(_ACCEPT_BATCH):
            if len(self._connections) + len(self._opening) >= limits.MAX_CONNECTIONS:
                return self._accept_no_more()
            try:
                accepted, _ = listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return None
            except OSError:
                # No descriptors or no memory: the sweep tries again.
                return self._accept_no_more()
            accepted.setblocking(False)
            if accepted.family != socket.AF_UNIX:
                accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            task = self._loop.create_task(self._open(accepted))
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)
        return None

    async def _open(self, accepted: socket.socket) -> None:
        connection = Connection(self)
        self._connections.add(connection)
        try:
            await self._loop.connect_accepted_socket(lambda: connection, accepted)
        except OSError:
            accepted.close()
            self.closed(connection)

    def _sweep(self) -> None:
        now = self.now_s()
        for connection in list(self._connections):
            connection.expire(now)
        self._accept_again()
        self._stop_if_drained()
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(
            _DRAIN_SWEEP_S if self.draining else _SWEEP_S, self._sweep
        )

    def _drain(self) -> None:
        self._accept_no_more()
        for listener in self._listeners:
            listener.close()
        for connection in self._connections:
            connection.drain()
        self._sweep()

    def _stop_if_drained(self) -> None:
        if self.draining and not (self._accepting or self._connections or self._opening):
            self._loop.stop()

    # --- what connections need (`connection.Host`)

    def now_s(self) -> float:
        return self._loop.time()

    def reserve(self, size_bytes: int) -> bool:
        if size_bytes > 0 and self._bodies_bytes + size_bytes > limits.MAX_BODIES_BYTES:
            return False
        self._bodies_bytes += size_bytes
        return True

    def handle(self, request: HttpRequest, reply: Callable[[HttpResponse], None]) -> None:
        assert self._application is not None
        self._application.handle(request, reply)

    def refuse(self, status: int, sentence: str) -> HttpResponse:
        assert self._application is not None
        return self._application.refuse(status, sentence)

    def closed(self, connection: Connection) -> None:
        self._connections.discard(connection)
        if len(self._connections) < limits.MAX_CONNECTIONS:
            self._accept_again()
        self._stop_if_drained()
