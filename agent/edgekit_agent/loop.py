"""The daemon's one loop: sockets and pipes of its children, and calls posted from other threads."""

from __future__ import annotations

import contextlib
import queue
import selectors
import socket
from collections.abc import Callable
from typing import Protocol

__all__ = ["Loop"]


class _HasFileno(Protocol):
    def fileno(self) -> int: ...


class Loop:
    """Callbacks run in the thread that calls `turn`; only `post` may be called from elsewhere."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._posted: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._wake_reader, self._wake_writer = socket.socketpair()
        for end in (self._wake_reader, self._wake_writer):
            end.setblocking(False)
        self.watch(self._wake_reader, self._drain_wakes)

    def watch(
        self,
        source: _HasFileno,
        on_readable: Callable[[], None],
        on_writable: Callable[[], None] | None = None,
    ) -> None:
        """Call back while `source` can be read, and written if asked for; replaces a watch."""
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if on_writable else 0)
        calls = (on_readable, on_writable)
        if source.fileno() in self._selector.get_map():
            self._selector.modify(source.fileno(), events, calls)
        else:
            self._selector.register(source.fileno(), events, calls)

    def forget(self, source: _HasFileno) -> None:
        """End a watch; to be called before `source` is closed."""
        if source.fileno() in self._selector.get_map():
            self._selector.unregister(source.fileno())

    def post(self, call: Callable[[], None]) -> None:
        """Run `call` in the loop's thread, soon. Safe in threads and signal handlers."""
        self._posted.put(call)
        with contextlib.suppress(OSError):  # it is awake, or closed
            self._wake_writer.send(b"\0")

    @property
    def waiting(self) -> int:
        """Calls that were posted and have not run."""
        return self._posted.qsize()

    def turn(self, timeout_s: float) -> None:
        """Wait for something to happen, at most so long, and run what is due."""
        for key, events in self._selector.select(timeout_s):
            on_readable, on_writable = key.data
            if events & selectors.EVENT_READ:
                on_readable()
            # the first call may have ended this watch
            still = self._selector.get_map().get(key.fd)
            if on_writable and events & selectors.EVENT_WRITE and still is key:
                on_writable()
        # what is posted meanwhile waits for the next turn, or a flood would never let this one end
        for _ in range(self._posted.qsize()):
            self._posted.get_nowait()()

    def close(self) -> None:
        self._selector.close()
        self._wake_reader.close()
        self._wake_writer.close()

    def _drain_wakes(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self._wake_reader.recv(4096):
                pass
