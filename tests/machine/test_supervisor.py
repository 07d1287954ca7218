"""The workers of one model and the port that they share."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from agents import QUICK, wait_for
from bundles import null_bundle
from rigs import Clock
from workers import unpack

from edgekit_agent.loop import Loop
from edgekit_agent.supervisor import Supervisor
from edgekit_agent.worker_process import Launch, WorkerProcess


class Bench:
    """A supervisor with a loop and a clock of its own, which is asked for `wanted` as port."""

    def __init__(self, directory: Path) -> None:
        self.loop, self.clock = Loop(), Clock()
        self.clock.seconds = self.wanted = 1
        self.supervisor = Supervisor(
            unix_path=directory / "m.sock",
            port=lambda: self.wanted,
            knobs=QUICK,
            loop=self.loop,
            clock=self.clock,
            randomness=random.Random(1),
            on_change=lambda: None,
        )
        slot = directory / "slot"
        self.launch = Launch(directory=slot, digest=unpack(null_bundle(), slot), version="1.0")

    def turn(self) -> bool:
        self.loop.turn(0.05)
        self.supervisor.tick()
        return True


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.supervisor.close()
    bench.loop.close()


def test_a_port_that_was_taken_for_want_of_another_is_not_kept(bench: Bench) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        bench.wanted = other.getsockname()[1]
        bench.supervisor.prepare(bench.launch)
        bench.supervisor.tick()
        assert bench.supervisor.port is None, "the one that has the port may be about to leave"
        bench.clock.seconds += 60
        bench.supervisor.tick()
        assert bench.supervisor.port not in (None, bench.wanted)
        assert bench.supervisor.lasting_port is None


@pytest.mark.parametrize("any_port", [True, False])
def test_a_port_that_was_asked_for_is_kept(bench: Bench, any_port: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        free = other.getsockname()[1]
    bench.wanted = 0 if any_port else free
    bench.supervisor.prepare(bench.launch)
    bench.supervisor.tick()
    assert bench.supervisor.lasting_port == bench.supervisor.port
    assert any_port or bench.supervisor.port == free


def oom_score(worker: WorkerProcess | None) -> int:
    assert worker is not None
    return int(Path(f"/proc/{worker.pid}/oom_score_adj").read_text())


def test_where_two_models_are_too_many_the_kernel_takes_the_incoming(bench: Bench) -> None:
    bench.wanted = 0
    workers = bench.supervisor
    workers.serve(bench.launch)
    wait_for(lambda: bench.turn() and workers.serving, "a worker that serves")
    workers.prepare(bench.launch)
    wait_for(lambda: bench.turn() and workers.incoming and workers.incoming.ready, "the next")
    serving, incoming = oom_score(workers.current), oom_score(workers.incoming)
    assert 0 < serving < incoming
    workers.promote()
    assert oom_score(workers.current) == serving
