"""Measurements that the hub asks for, as the daemon sees them: one at a time, and updates first.

Invariants: every order that is not a repetition gets one answer, as long as the daemon lives;
nothing is measured while an update is under way or on probation, and an update that becomes due
ends a measurement.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from edgekit_agent import storage
from edgekit_agent.allowance import Allowance
from edgekit_agent.control import (
    BENCH_DIRECTORY,
    BenchAssignment,
    Entering,
    Finished,
    Measured,
    MetadataVersions,
)
from edgekit_agent.record import raised
from edgekit_agent.surroundings import Surroundings
from edgekit_agent.update_machine import UpdateMachine
from edgekit_agent.updater_process import UpdaterProcess
from edgekit_contract.messages import Bench, Benched, Phase, cut

__all__ = ["BenchDesk"]

_MOST_S: Final = 1800.0
"""For one measurement, fetching included."""
_MOST_OF_AN_HOUR_S: Final = 1800.0
"""For all: a stolen hub must not keep a device busy."""
_REMEMBERED: Final = 16
"""Orders that a repetition is known by."""


class BenchDesk:
    def __init__(
        self,
        around: Surroundings,
        machines: Mapping[str, UpdateMachine],
        answer: Callable[[Benched], None],
    ) -> None:
        self._around, self._machines, self._answer = around, machines, answer
        self._seen: deque[str] = deque(maxlen=_REMEMBERED)
        self._allowance = Allowance(_MOST_OF_AN_HOUR_S)
        self._order: Bench | None = None
        self._process: UpdaterProcess | None = None
        self._began_at = 0.0

    def take(self, order: Bench) -> None:
        """Begin, or say why not."""
        if order.id in self._seen:
            return  # QoS 1 brings a message at least once
        self._seen.append(order.id)
        assignment = self._around.bench_assignment(order)
        if self._around.clock.now() > order.until:
            self._refuse(order, "the order came too late")
        elif self._process is not None:
            self._refuse(order, "another measurement is under way")
        elif (hindrance := self._hindrance()) is not None:
            self._refuse(order, hindrance)
        elif self._allowance.is_spent(self._around.clock.monotonic()):
            self._refuse(order, f"{_MOST_OF_AN_HOUR_S / 60:.0f} minutes of the hour were measured")
        elif assignment is None:
            self._refuse(order, "the device has just started")
        else:
            self._begin(order, assignment)

    def relay(self, correlation: bytes, payload: bytes) -> None:
        if self._process is not None:
            self._process.relay(correlation, payload)

    def tick(self, now: float) -> None:
        if self._process is not None and now >= self._began_at + _MOST_S:
            self.stop(f"it took more than {_MOST_S:.0f} s")

    def stop(self, reason: str) -> None:
        """End what is under way, if anything, and say so."""
        process, order = self._process, self._order
        self._process = self._order = None
        if process is not None and order is not None:
            process.kill()
            self._ended()
            self._refuse(order, reason)

    def clean(self) -> None:
        """Remove what a measurement left that was killed."""
        with contextlib.suppress(OSError):  # the next one tries again
            storage.remove(self._around.directory / BENCH_DIRECTORY)

    def _ended(self) -> None:
        self._allowance.spend(self._began_at, self._around.clock.monotonic())
        self.clean()

    def _hindrance(self) -> str | None:
        """What a measurement would disturb: an update, whatever its phase, or one that is due."""
        now = self._around.clock.monotonic()
        for model, machine in self._machines.items():
            if machine.phase is not Phase.IDLE:
                return f"{model} is in {machine.phase.value}"
            if machine.due(now):
                return f"an update of {model} is due"
        return None

    def _keep(self, versions: MetadataVersions) -> None:
        record = self._around.record
        with contextlib.suppress(OSError):  # the next one brings them again
            record.save(raised(record.value, versions))

    def _begin(self, order: Bench, assignment: BenchAssignment) -> None:
        try:
            self._process = self._around.spawn_updater(
                assignment,
                on_progress=lambda progress: None,
                on_entering=self._on_entering,
                on_end=self._on_end,
            )
        except OSError as error:
            self._refuse(order, f"the system refuses: {error.strerror or error}")
            return
        self._order = order
        self._began_at = self._around.clock.monotonic()

    def _on_entering(self, entering: Entering) -> None:
        self.stop(f"it wanted to enter {entering.phase.value}")

    def _on_end(self, end: Finished | Measured | str) -> None:
        order, self._order, self._process = self._order, None, None
        if order is None:
            return
        self._ended()
        if not isinstance(end, Measured):
            self._refuse(order, end if isinstance(end, str) else "the updater lost its way")
            return
        if end.versions is not None:
            self._keep(end.versions)
        figures = msgspec.structs.asdict(end.figures) if end.figures is not None else {}
        self._answer(
            Benched(
                id=order.id,
                at=self._around.clock.now(),
                reason=cut(end.reason),
                rss_bytes=end.rss_bytes,
                runtime=end.runtime,
                **figures,
            )
        )

    def _refuse(self, order: Bench, reason: str) -> None:
        self._answer(Benched(id=order.id, at=self._around.clock.now(), reason=cut(reason)))
