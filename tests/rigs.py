"""An update machine on a real journal, record and slots, with stand-ins for its child processes:
what the medium does to it can be tried a thousand times."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, cast

import msgspec
from agents import QUICK

from edgekit_agent import journal as journals
from edgekit_agent import storage
from edgekit_agent.control import (
    Assignment,
    Entering,
    Finished,
    MetadataVersions,
    Release,
    Stats,
)
from edgekit_agent.record import RecordFile
from edgekit_agent.slots import Active, Slot, Slots
from edgekit_agent.supervisor import Supervisor
from edgekit_agent.surroundings import Surroundings
from edgekit_agent.update_machine import UpdateMachine
from edgekit_agent.worker_process import Launch
from edgekit_contract.messages import DeviceFacts, Phase

OLD = Active(slot=Slot.A, version="1.0", digest="aa" * 32, counter=1, floor=0)
NEW = Release(version="1.1", digest="bb" * 32, counter=2, floor=1)
VERSIONS = MetadataVersions(root=1, timestamp=5, snapshot=4, targets=3)
FACTS = DeviceFacts(profile="demo-small", arch="x86_64", cores=1, ram_bytes=1 << 30)


class Worker:
    """Ready at once; `healthy` says how it fares on probation."""

    def __init__(self, launch: Launch, healthy: bool) -> None:
        self.launch, self.alive, self.ready = launch, healthy, healthy
        self.lost = None if healthy else "killed"
        self.damaged = False
        self.execution = None
        self.stats = Stats(inferences=0, errors=0, rejected=0, rss_bytes=1)


class Workers:
    """Stands in for processes, which the medium knows nothing of."""

    def __init__(self, sick: str | None) -> None:
        self._sick = sick
        self.current: Any = None
        self.incoming: Any = None
        self.port = 8000
        self.execution = None

    serving = property(lambda self: self.current is not None)

    def serve(self, launch: Launch) -> None:
        self.incoming = None
        self.current = Worker(launch, launch.version != self._sick)

    def prepare(self, launch: Launch) -> None:
        self.incoming = Worker(launch, True)

    def promote(self) -> None:
        self.serve(self.incoming.launch)

    def restart_later(self) -> None:
        self.current = None

    def stop(self) -> None:
        self.current = self.incoming = None

    def tick(self) -> None:
        pass

    def close(self) -> None:
        pass


class Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> datetime:
        return datetime(2026, 11, 1, tzinfo=timezone.utc)

    def monotonic(self) -> float:
        return self.seconds


class Updater:
    def __init__(self, calls: dict[str, Callable[..., None]]) -> None:
        self.calls = calls

    def proceed(self, phase: Phase) -> None:
        pass

    def kill(self) -> None:
        pass


class Rig:
    """A machine with a real journal, record and slots, and an updater that always succeeds."""

    def __init__(self, root: Path, *, sick: str | None) -> None:
        self.clock, self.events = Clock(), []  # type: ignore[var-annotated]
        knobs = msgspec.structs.replace(QUICK, probation_s=1.0)
        self.updaters: list[Updater] = []
        self.record = RecordFile(root)
        around = Surroundings(
            directory=root,
            record=self.record,
            knobs=knobs,
            clock=self.clock,
            randomness=random.Random(1),
            emit=lambda kind, text, **fields: self.events.append((kind, fields)),
            changed=lambda: None,
            spawn_updater=self._spawn,
            facts=lambda: FACTS,
        )

        def workers(model: str) -> Supervisor:
            stand_in: Any = Workers(sick)
            return cast(Supervisor, stand_in)

        self.machine = UpdateMachine("m", around, workers)
        self.machine.recover()

    def _spawn(self, assignment: Assignment, **calls: Callable[..., None]) -> Any:
        assert assignment.slot != assignment.active_slot, "the running slot is never touched"
        self.updaters.append(Updater(calls))
        return self.updaters[-1]

    def run(self, version: str) -> None:
        """Until nothing more happens."""
        self.machine.want(version, anew=False)
        for _ in range(60):
            self.clock.seconds += 0.5
            self.machine.tick()
            if self.machine.due(self.clock.seconds) and self.machine.attempts.wanted:
                self.machine.begin()
                self._update()

    def _update(self) -> None:
        if self.machine.updater is None:
            return  # it could not begin
        calls = self.updaters[-1].calls
        for phase in (Phase.PREFLIGHT, Phase.FETCH, Phase.VERIFY, Phase.STAGE, Phase.WARMUP):
            calls["on_entering"](Entering(phase=phase, release=NEW, versions=VERSIONS))
            if self.machine.updater is None:
                return
        calls["on_end"](Finished(release=NEW, versions=VERSIONS))


def installed(root: Path) -> None:
    """Version 1.0 in slot A, committed."""
    storage.create_directory(root / "models" / "m")
    Slots(root / "models" / "m").switch(OLD)
    journals.save(root / "models" / "m", journals.Journal())
