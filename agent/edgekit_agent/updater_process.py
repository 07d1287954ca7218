"""The updater child, as the daemon sees it: one run, its requests relayed, its end told."""

from __future__ import annotations

import contextlib
import secrets
import struct
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from typing import Final

from edgekit_agent.child_process import end_process, ending, exit_code
from edgekit_agent.control import (
    Assignment,
    BenchAssignment,
    BlobPacket,
    Channel,
    Entering,
    Finished,
    FromUpdater,
    Measured,
    PeerGone,
    Proceed,
    Progress,
    Request,
    socket_pair,
)
from edgekit_agent.loop import Loop
from edgekit_contract.messages import Phase

__all__ = ["UpdaterProcess"]

_CORRELATION: Final = struct.Struct(">QQ")
_MOST_WAITING: Final = 64
"""Chunks kept for an updater that is busy: a few windows; what comes on top is asked for again."""


class UpdaterProcess:
    """`on_entering` and `on_end` are called in the loop; `on_end` once, with how it finished or why
    it did not."""

    def __init__(
        self,
        assignment: Assignment | BenchAssignment,
        *,
        loop: Loop,
        on_request: Callable[[Request, bytes], None],
        on_progress: Callable[[Progress], None],
        on_entering: Callable[[Entering], None],
        on_end: Callable[[Finished | Measured | str], None],
    ) -> None:
        self._loop = loop
        self._on_request, self._on_progress = on_request, on_progress
        self._on_entering, self._on_end = on_entering, on_end
        self._run = secrets.randbits(64)
        self._waiting: deque[tuple[int, bytes]] = deque()
        self._finished: Finished | Measured | None = None
        self._flushing = False
        self._open = True
        ours, theirs = socket_pair()
        command = [sys.executable, "-m", "edgekit_agent.updater"]
        command += ["--control-fd", str(theirs.fileno())]
        try:
            with theirs:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,
                )
        except OSError:
            ours.close()
            raise
        self._channel: Channel[FromUpdater] = Channel(ours, FromUpdater)
        loop.watch(self._channel, self._hear)
        with contextlib.suppress(PeerGone):  # heard as the end of the channel
            self._channel.send(assignment)

    @property
    def pid(self) -> int:
        return self._process.pid

    def proceed(self, phase: Phase) -> None:
        """Answer Entering: the journal says so."""
        with contextlib.suppress(PeerGone):  # heard as the end of the channel
            self._channel.send(Proceed(phase=phase))

    def relay(self, correlation: bytes, payload: bytes) -> None:
        """Hand on a blob frame, if it answers this run."""
        if len(correlation) != _CORRELATION.size or not self._open:
            return
        run, number = _CORRELATION.unpack(correlation)
        if run == self._run and len(self._waiting) < _MOST_WAITING:
            self._waiting.append((number, payload))
            self._flush()

    def kill(self) -> None:
        """End it without a word: `on_end` is not called."""
        if self._open:
            self._close()

    def _hear(self) -> None:
        while self._open:
            try:
                message = self._channel.receive(0.0)
            except PeerGone:
                self._gone()
                return
            if message is None:
                return
            if isinstance(message, Request):
                self._on_request(message, _CORRELATION.pack(self._run, message.number))
            elif isinstance(message, Progress):
                self._on_progress(message)
            elif isinstance(message, Entering):
                self._on_entering(message)
            elif isinstance(message, (Finished, Measured)):
                self._finished = message
            elif isinstance(message, BlobPacket):
                end_process(self._process)  # it has lost its way
                self._gone()

    def _flush(self) -> None:
        try:
            while self._waiting and self._channel.offer_blob(*self._waiting[0]):
                self._waiting.popleft()
        except PeerGone:
            self._waiting.clear()
        if bool(self._waiting) is not self._flushing:
            self._flushing = bool(self._waiting)
            self._loop.watch(self._channel, self._hear, self._flush if self._waiting else None)

    def _gone(self) -> None:
        code = exit_code(self._process)
        self._close()
        self._on_end(self._finished or f"the updater {ending(code)}")

    def _close(self) -> None:
        self._open = False
        self._loop.forget(self._channel)
        self._channel.close()
        end_process(self._process)
