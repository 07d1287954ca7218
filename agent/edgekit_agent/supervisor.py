"""The workers of one model: which one serves, which one is being made ready, which ones leave.

Invariants: the listening sockets outlive every worker, so that a request waits instead of being
refused; the next worker is ready before the last one leaves; a lost worker is started again with
growing delay, and counted.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Final

from edgekit_agent.clock import Clock
from edgekit_agent.config import Knobs
from edgekit_agent.endpoints import listen_tcp, listen_unix
from edgekit_agent.loop import Loop
from edgekit_agent.transitions import retry_delay_s
from edgekit_agent.worker_process import Launch, WorkerProcess, WorkerState
from edgekit_contract.messages import Execution

__all__ = ["Supervisor"]

_LEAST_RESTART_S: Final = 0.5
_MOST_RESTART_S: Final = 60.0
_STEADY_S: Final = 300.0
"""A worker that lived so long starts again without delay."""
_PORT_PATIENCE_S: Final = 5.0
"""A worker of a daemon that was killed may hold the port a little longer."""


class Supervisor:
    """`on_change` is called when a worker became ready, served or was lost."""

    def __init__(
        self,
        *,
        unix_path: Path,
        port: Callable[[], int],
        knobs: Knobs,
        loop: Loop,
        clock: Clock,
        randomness: random.Random,
        on_change: Callable[[], None],
    ) -> None:
        self._unix_path, self._preferred_port = unix_path, port
        self._knobs, self._loop, self._clock = knobs, loop, clock
        self._randomness, self._on_change = randomness, on_change
        self._listeners: list[socket.socket] = []
        self._makeshift = False
        """Whether the port is another than the one that was asked for."""
        self._launch: Launch | None = None
        self._prepared: Launch | None = None
        self.current: WorkerProcess | None = None
        self.incoming: WorkerProcess | None = None
        self._leaving: list[WorkerProcess] = []
        self.restarts = 0
        self._failures = 0
        self._started_at = self._start_at = self._binding_since = 0.0

    @property
    def port(self) -> int | None:
        """Loopback port, once it is bound."""
        return self._listeners[0].getsockname()[1] if self._listeners else None

    @property
    def lasting_port(self) -> int | None:
        """`port`, unless it was taken for want of another: the next start asks for that again."""
        return None if self._makeshift else self.port

    @property
    def launch(self) -> Launch | None:
        """What is to be served, whether a worker is up or lost."""
        return self._launch

    @property
    def execution(self) -> Execution | None:
        """What computes the model that serves."""
        return self.current.execution if self.current is not None else None

    @property
    def serving(self) -> bool:
        return self.current is not None and self.current.state is WorkerState.SERVING

    def serve(self, launch: Launch) -> None:
        """Serve this and nothing else from the next tick on; keep a worker that does."""
        self.abandon()
        self._launch = launch
        if self.current is not None and self.current.alive and self.current.launch == launch:
            return
        self._retire(self.current)
        self.current = None
        self._failures, self._start_at = 0, self._clock.monotonic()

    def prepare(self, launch: Launch) -> None:
        """Make a worker ready beside the one that serves: `incoming`, from the next tick on."""
        self.abandon()
        self._prepared = launch

    def promote(self) -> None:
        """Let the ready `incoming` serve and the other leave."""
        if self.incoming is None or self.incoming.state is not WorkerState.READY:
            raise RuntimeError("there is no worker ready to serve")
        old, self.current, self.incoming = self.current, self.incoming, None
        self._launch, self._failures = self.current.launch, 0
        self.current.serve()
        self._retire(old)

    def abandon(self) -> None:
        """Give up `incoming`."""
        self._prepared = None
        if self.incoming is not None:
            self.incoming.kill(None)
            self.incoming = None

    def stop(self) -> None:
        """Serve nothing."""
        self.abandon()
        self._retire(self.current)
        self.current = self._launch = None

    def close(self) -> None:
        """Stop, without patience, and give the sockets back."""
        self.stop()
        for worker in self._leaving:
            worker.kill(None)
        self._leaving.clear()
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()
        self._unix_path.unlink(missing_ok=True)

    @property
    def leaving(self) -> bool:
        """Whether a worker is still finishing what is in flight."""
        return bool(self._leaving)

    def tick(self) -> None:
        """Do what time asks for: watch, reap, start.

        Errors: `OSError` where the system has no room for a worker; the next tick tries again.
        """
        now = self._clock.monotonic()
        for worker in (self.current, self.incoming, *self._leaving):
            if worker is not None and worker.overdue(
                now=now, load_s=self._knobs.load_s, hang_s=self._knobs.hang_s
            ):
                self._on_change()
        self._leaving = [worker for worker in self._leaving if worker.alive]
        wanted = self.current is None and now >= self._start_at
        if wanted and self._launch is not None and self._bound():
            self.current = self._spawn(self._launch)
            self._started_at = now
        if self._prepared is not None and self._bound():
            self.incoming, self._prepared = self._spawn(self._prepared), None

    def restart_later(self) -> None:
        """Put a lost `current` away and start it again after a while."""
        if self.current is None or self.current.alive:
            raise RuntimeError("the worker is not lost")
        now = self._clock.monotonic()
        if now - self._started_at >= _STEADY_S:
            self._failures = 0
        self.current = None
        self.restarts += 1
        self._start_at = now + retry_delay_s(
            self._failures,
            least_s=_LEAST_RESTART_S,
            most_s=_MOST_RESTART_S,
            randomness=self._randomness,
        )
        self._failures += 1

    def _spawn(self, launch: Launch) -> WorkerProcess:
        worker = WorkerProcess(
            launch, self._listeners, now=self._clock.monotonic(), before_close=self._loop.forget
        )
        self._loop.watch(worker, lambda: self._hear(worker))
        return worker

    def _hear(self, worker: WorkerProcess) -> None:
        before = worker.state
        worker.receive(now=self._clock.monotonic())
        if worker is self.current and worker.state is WorkerState.READY:
            worker.serve()
        if worker.state is not before:
            self._on_change()

    def _retire(self, worker: WorkerProcess | None) -> None:
        if worker is None:
            return
        worker.drain(now=self._clock.monotonic())
        if worker.alive:
            self._leaving.append(worker)

    def _bound(self) -> bool:
        """Whether the sockets listen; tries again at the next tick where the port is taken."""
        if self._listeners:
            return True
        now = self._clock.monotonic()
        self._binding_since = self._binding_since or now
        tcp = listen_tcp(self._preferred_port())
        if tcp is None:
            if now - self._binding_since < _PORT_PATIENCE_S:
                return False
            tcp = listen_tcp(0)
            if tcp is None:
                return False
            self._makeshift = True
        try:
            self._listeners = [tcp, listen_unix(self._unix_path)]
        except OSError:
            tcp.close()
            raise
        self._on_change()
        return True
