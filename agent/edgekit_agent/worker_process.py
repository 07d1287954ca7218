"""One worker child, as the daemon sees it: started, spoken to, watched, ended."""

from __future__ import annotations

import contextlib
import enum
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edgekit_agent.child_process import end_process, ending, exit_code
from edgekit_agent.control import (
    Channel,
    Drain,
    Failed,
    FromWorker,
    PeerGone,
    Ready,
    Serve,
    Stats,
    socket_pair,
)
from edgekit_contract.messages import Execution

__all__ = ["Launch", "WorkerProcess", "WorkerState"]

_DRAIN_S: Final = 15.0
_SILENCE_S: Final = 2.0
"""A worker speaks every second; on top of what counts as a hang."""
_OOM_SCORE: Final = 500
_INCOMING_OOM_SCORE: Final = 700
"""Where memory runs out the kernel takes a worker, not the daemon; and not the one that serves
where two are loaded for a switch."""


@dataclass(frozen=True, kw_only=True)
class Launch:
    """What a worker is to serve."""

    directory: Path
    digest: str
    version: str


class WorkerState(enum.Enum):
    STARTING = "starting"
    READY = "ready"
    SERVING = "serving"
    DRAINING = "draining"
    GONE = "gone"


class WorkerProcess:
    """`lost` says why it is gone, unless it left because it was told to."""

    def __init__(
        self,
        launch: Launch,
        listeners: Sequence[socket.socket],
        *,
        now: float,
        before_close: Callable[[WorkerProcess], None],
    ) -> None:
        self.launch = launch
        self._before_close = before_close
        self.state = WorkerState.STARTING
        self.stats: Stats | None = None
        self.execution: Execution | None = None
        self.lost: str | None = None
        self.damaged = False
        self._since = self._heard = now
        ours, theirs = socket_pair()
        command = [sys.executable, "-m", "edgekit_agent.worker"]
        command += ["--bundle", str(launch.directory), "--digest", launch.digest]
        command += ["--control-fd", str(theirs.fileno())]
        for listener in listeners:
            command += ["--listen-fd", str(listener.fileno())]
        try:
            with theirs:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno(), *(listener.fileno() for listener in listeners)],
                    start_new_session=True,  # Ctrl-C is the daemon's to answer
                )
        except OSError:
            ours.close()
            raise
        self._channel: Channel[FromWorker] = Channel(ours, FromWorker)
        self._score(_INCOMING_OOM_SCORE)

    @property
    def pid(self) -> int:
        return self._process.pid

    def fileno(self) -> int:
        return self._channel.fileno()

    @property
    def alive(self) -> bool:
        return self.state is not WorkerState.GONE

    @property
    def ready(self) -> bool:
        """Whether it waits for the word to serve."""
        return self.state is WorkerState.READY

    def receive(self, *, now: float) -> None:
        """Take what the worker has said."""
        while self.alive:
            try:
                message = self._channel.receive(0.0)
            except PeerGone:
                self._gone()
                return
            if message is None:
                return
            self._heard = now
            if isinstance(message, Ready) and self.state is WorkerState.STARTING:
                self.state, self.execution = WorkerState.READY, message.execution
            elif isinstance(message, Stats):
                self.stats = message
            elif isinstance(message, Failed):
                self.lost, self.damaged = message.reason, message.damaged
            # Drained: the worker closes the channel next

    def serve(self) -> None:
        """Let a ready worker accept."""
        self._score(_OOM_SCORE)
        self._tell(Serve(), WorkerState.SERVING)

    def drain(self, *, now: float) -> None:
        """Let it finish what is in flight and leave."""
        if self.state in (WorkerState.STARTING, WorkerState.READY):
            self.kill(None)
        elif self.state is WorkerState.SERVING:
            self._since = now
            self._tell(Drain(), WorkerState.DRAINING)

    def overdue(self, *, now: float, load_s: float, hang_s: float) -> bool:
        """Whether it did not do what it should by now, and has been ended for it."""
        if self.state is WorkerState.STARTING and now - self._since > load_s:
            self.kill(f"the worker was not ready after {load_s:.0f} s")
        elif self.state is WorkerState.DRAINING and now - self._since > _DRAIN_S:
            self.kill(None)
        elif self.state is WorkerState.SERVING:
            busy_s = self.stats.busy_since_s if self.stats else None
            if busy_s is not None and busy_s > hang_s:
                self.kill(f"an inference hung for {busy_s:.0f} s")
            elif now - self._heard > _SILENCE_S + hang_s:
                self.kill(f"the worker was silent for {now - self._heard:.0f} s")
            else:
                return False
        else:
            return False
        return True

    def kill(self, reason: str | None) -> None:
        """End it now; None: nobody will miss it."""
        if self.alive:
            if self.state is not WorkerState.DRAINING:
                self.lost = reason
            self._end()

    def _score(self, score: int) -> None:
        with contextlib.suppress(OSError):  # a container may forbid it
            Path(f"/proc/{self.pid}/oom_score_adj").write_text(str(score), encoding="ascii")

    def _tell(self, message: Serve | Drain, state: WorkerState) -> None:
        try:
            self._channel.send(message)
        except PeerGone:
            self._gone()
        else:
            self.state = state

    def _gone(self) -> None:
        expected = self.state is WorkerState.DRAINING
        code = exit_code(self._process)
        self._end()
        if not expected and self.lost is None:
            self.lost = f"the worker {ending(code)}"

    def _end(self) -> None:
        self.state = WorkerState.GONE
        self._before_close(self)
        self._channel.close()
        end_process(self._process)
