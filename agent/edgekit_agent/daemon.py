"""The daemon: wiring of link, update machines, workers, health and outbox around one loop.

Invariants: it imports no runtime, numpy, tuf, cryptography or asyncio, so that no model and no
update can take it down; it alone writes journal and record; the device's only connection is its
link; one updater runs at a time.
"""

from __future__ import annotations

import contextlib
import os
import random
import secrets
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import msgspec

from edgekit_agent import storage
from edgekit_agent.bench_desk import BenchDesk
from edgekit_agent.child_process import reap
from edgekit_agent.clock import Clock, latest
from edgekit_agent.config import DeviceConfig, Trimmed
from edgekit_agent.control import Request
from edgekit_agent.device_directory import lock, open_record
from edgekit_agent.facts_probe import FactsProbe
from edgekit_agent.health import Telemetry
from edgekit_agent.link import Connected, Link, LinkEvent, Received, TakenOver
from edgekit_agent.loop import Loop
from edgekit_agent.mailbox import Mailbox
from edgekit_agent.outbox import Outbox
from edgekit_agent.reporting import fitting_report
from edgekit_agent.status_socket import StatusSocket
from edgekit_agent.supervisor import Supervisor
from edgekit_agent.surroundings import Surroundings
from edgekit_agent.update_machine import UpdateMachine
from edgekit_agent.updater_process import UpdaterProcess
from edgekit_contract import limits, names
from edgekit_contract.errors import EdgekitError, MessageRejected
from edgekit_contract.messages import (
    Ack,
    Bench,
    Desired,
    DeviceFacts,
    Event,
    EventKind,
    Fetch,
    Health,
    Reported,
    Status,
    cut,
    decode,
    encode,
)
from edgekit_contract.topics import Kind

__all__ = ["Daemon"]

_TURN_S: Final = 0.2
_REPORT_EVERY_S: Final = 0.25
_INFLIGHT: Final = 20
"""Stored messages out at once."""
_REJECTED_EVERY_S: Final = 60.0
_RESEND_S: Final = 60.0
_MOST_RESEND_S: Final = 900.0
_STOP_S: Final = 20.0
_OBEY_AGAIN_S: Final = 30.0
"""After the storage refused to take what the hub desires, or to give what the outbox holds."""


class Daemon:
    """One device. `run` serves until `stop` is called, from wherever."""

    def __init__(
        self,
        directory: Path,
        config: DeviceConfig,
        trimmed: Trimmed,
        *,
        link: Callable[[bytes], Link],
        clock: Clock,
        randomness: random.Random,
    ) -> None:
        """`link` makes the connection, given the Will."""
        self._directory, self._config, self._knobs = directory, config, config.agent
        self._clock, self._randomness = clock, randomness
        self._lock = lock(directory)
        for name in ("models", "downloads", "run"):
            storage.create_directory(directory / name)
        self._record = open_record(directory, _say)
        self._outbox = Outbox(directory / "outbox", boot=_boot())
        self._instance = secrets.token_hex(4)
        self._link = link(encode(Status(online=False, instance=self._instance)))
        self._loop = Loop()
        self._mailbox = Mailbox(self._loop, self._on_link)
        self._telemetry = Telemetry(directory, trimmed.thermal)
        self._probe = FactsProbe(config.profile, self._loop, self._on_facts)
        self._facts: DeviceFacts | None = None
        self._surroundings = Surroundings(
            directory=directory,
            record=self._record,
            knobs=self._knobs,
            clock=clock,
            randomness=randomness,
            emit=self._emit,
            changed=self._changed,
            spawn_updater=self._spawn_updater,
            facts=lambda: self._facts,
        )
        self._machines: dict[str, UpdateMachine] = {}
        self._updating: UpdateMachine | None = None
        self._updater: UpdaterProcess | None = None
        self._bench = BenchDesk(
            self._surroundings,
            self._machines,
            lambda answer: self._link.publish(Kind.BENCHED, encode(answer)),
        )
        self._connection = "connecting"
        self._connected = self._own_stream = self._believing = False
        self._unobeyed: Desired | None = None
        """A desired state that the storage did not take yet."""
        self._obey_at = self._pump_at = self._reject_at = 0.0
        self._stopping = False
        self._attention = True
        self._report_due, self._reported_at = True, 0.0
        self._health_at = 0.0
        self._acknowledged_at, self._resend_s = 0.0, _RESEND_S
        self._ticked_at = 0.0
        self._status_socket = StatusSocket(
            directory / "run" / "control.sock", self._loop, self._describe
        )

    @property
    def time_floor(self) -> datetime:
        """The latest time that a signature has proven."""
        return self._record.value.time_floor

    def stop(self) -> None:
        """End `run`, soon. Safe in signal handlers and other threads."""
        self._loop.post(self._stop)

    def run(self) -> None:
        """Serve until stopped; then say so to the hub and leave nothing running."""
        for model in sorted(path.name for path in (self._directory / "models").iterdir()):
            self._machine(model).recover()
        self._emit(EventKind.STARTED, "the agent started")
        self._bench.clean()
        self._probe.start()
        try:
            while not self._stopping:
                self._loop.turn(0.0 if self._attention else _TURN_S)
                now = self._clock.monotonic()
                if self._attention or now - self._ticked_at >= _TURN_S:
                    self._attention, self._ticked_at = False, now
                    self._tick(now)
        finally:
            self._leave()

    def _stop(self) -> None:
        self._stopping = True

    def _leave(self) -> None:
        self._probe.stop()
        self._bench.stop("the agent stops")
        for machine in self._machines.values():
            machine.stop(graceful=self._stopping)
        self._link.stop(encode(self._status(online=False)))
        deadline = self._clock.monotonic() + _STOP_S
        while (
            any(machine.workers.leaving for machine in self._machines.values())
            and self._clock.monotonic() < deadline
        ):
            self._loop.turn(0.05)
            for machine in self._machines.values():
                machine.workers.tick()
        for machine in self._machines.values():
            machine.workers.close()
        self._status_socket.close()
        self._loop.close()
        os.close(self._lock)

    def _on_facts(self, facts: DeviceFacts) -> None:
        """The device knows what it is: now it may talk to the hub."""
        self._facts = facts
        self._link.start(self._mailbox.deliver)

    # --- time

    def _tick(self, now: float) -> None:
        reap()
        self._mailbox.tick()
        for machine in self._machines.values():
            machine.tick()
        if self._updating is not None and self._updating.updater is None:
            self._updating = self._updater = None
        self._bench.tick(now)
        if self._unobeyed is not None and now >= self._obey_at:
            self._obey(self._unobeyed)
        if self._connected and self._updating is None and self._facts is not None:
            self._begin_update(now)
        if now >= self._health_at:
            self._health_at = max(self._health_at + self._knobs.health_s, now)
            self._measure()
        self._pump(now)  # what happened is told before what is so now
        if self._report_due and now - self._reported_at >= _REPORT_EVERY_S:
            self._report(now)

    def _begin_update(self, now: float) -> None:
        due = [machine for machine in self._machines.values() if machine.due(now)]
        if due:
            self._bench.stop("an update came first")
            self._updating = due[0]
            due[0].begin()
            self._updater = due[0].updater

    def _pump(self, now: float) -> None:
        """Publish what the outbox holds, and again what nobody has acknowledged for long."""
        if not self._connected or now < self._pump_at:
            return
        if not self._outbox.unacknowledged:
            self._acknowledged_at = now
        elif now - self._acknowledged_at > self._resend_s:
            self._outbox.resend()
            self._acknowledged_at = now
            self._resend_s = min(self._resend_s * 2, _MOST_RESEND_S)
        if self._outbox.pending:
            try:
                taken = self._outbox.take(max(0, _INFLIGHT - self._link.backlog))
            except OSError as error:
                _say(f"the outbox cannot be read: {error}")
                self._pump_at = now + _OBEY_AGAIN_S
                return
            for kind, payload in taken:
                self._link.publish(kind, payload)

    # --- link

    def _on_link(self, event: LinkEvent) -> None:
        if isinstance(event, Received):
            self._on_received(event)
            return
        self._attention = True
        if isinstance(event, Connected):
            self._connected, self._connection = True, "connected"
            self._believing = True
            self._link.publish(Kind.STATUS, encode(self._status(online=True)), retain=True)
            self._report_due, self._reported_at = True, 0.0
            self._outbox.resend()
            self._acknowledged_at, self._resend_s = self._clock.monotonic(), _RESEND_S
            for machine in self._machines.values():
                machine.attempts.hub_is_back()
            return
        self._connected = False
        self._connection = f"{event.reason}; trying again in {event.retry_s:.1f} s"
        if isinstance(event, TakenOver):
            self._on_takeover()
        _say(f"not connected: {self._connection}")

    def _on_takeover(self) -> None:
        if not self._own_stream:
            # the other one may be a copy of this device and count in the same stream
            try:
                self._outbox.renew_stream()
                self._own_stream = True
            except OSError as error:
                _say(f"the new stream cannot be stored: {error}")
        self._emit(
            EventKind.TAKEOVER,
            "another client takes this device's session: two devices may have one identity",
        )

    def _on_received(self, event: Received) -> None:
        try:
            if event.kind is Kind.BLOB:
                if event.correlation is not None:
                    self._bench.relay(event.correlation, event.payload)
                    if self._updater is not None:
                        self._updater.relay(event.correlation, event.payload)
            elif event.kind is Kind.DESIRED:
                self._attention = True
                self._take(decode(event.payload, Desired))
            elif event.kind is Kind.ACK:
                self._acknowledge(decode(event.payload, Ack))
            elif event.kind is Kind.BENCH:
                self._bench.take(decode(event.payload, Bench))
        except MessageRejected as error:
            self._on_rejected(f"{event.kind.value}: {error}")
        except OSError as error:
            _say(f"{event.kind.value}: the storage fails: {error}")

    def _on_rejected(self, reason: str) -> None:
        """Tell it, but not of each: every event costs the flash a write."""
        now = self._clock.monotonic()
        if now >= self._reject_at:
            self._reject_at = now + _REJECTED_EVERY_S
            self._emit(EventKind.REJECTED, reason)

    def _acknowledge(self, ack: Ack) -> None:
        self._outbox.acknowledge(ack)
        self._acknowledged_at, self._resend_s = self._clock.monotonic(), _RESEND_S

    def _take(self, desired: Desired) -> None:
        """Check what the hub desires, and obey. Errors: `MessageRejected`.

        The first after a connect is retained, so the newest, whatever its generation: nobody can
        lock a device out for good with a generation that no hub reaches.
        """
        if desired.generation < self._record.value.generation and not self._believing:
            return  # an older state that was on its way for long
        if len(desired.models) > limits.MAX_DESIRED_MODELS:
            raise MessageRejected(f"{len(desired.models)} models are too many.")
        try:
            for model, target in desired.models.items():
                names.model_name(model)
                names.version(target.version)
        except EdgekitError as error:
            raise MessageRejected(str(error)) from error
        self._believing = False
        self._obey(desired)

    def _obey(self, desired: Desired) -> None:
        record, self._unobeyed = self._record.value, None
        anew = desired.generation != record.generation
        if anew:
            try:
                self._record.save(msgspec.structs.replace(record, generation=desired.generation))
            except OSError as error:
                _say(f"the generation cannot be stored: {error}")
        for model in self._machines.keys() - desired.models.keys():
            try:
                self._machines.pop(model).remove()
            except OSError as error:
                _say(f"{model} cannot be removed: {error}")
        for model, target in desired.models.items():
            try:
                self._machine(model).want(target.version, anew=anew)
            except OSError as error:
                _say(f"{model} has to wait: {error}")
                self._unobeyed = desired
                self._obey_at = self._clock.monotonic() + _OBEY_AGAIN_S
        self._changed()

    def _relay(self, request: Request, correlation: bytes) -> None:
        fetch = Fetch(resource=request.resource, offset=request.offset, length=request.length)
        with contextlib.suppress(MessageRejected):  # no resource has such a name
            self._link.fetch(encode(fetch), correlation)

    # --- machines

    def _machine(self, model: str) -> UpdateMachine:
        if model not in self._machines:
            self._machines[model] = UpdateMachine(model, self._surroundings, self._supervisor)
        return self._machines[model]

    def _supervisor(self, model: str) -> Supervisor:
        return Supervisor(
            unix_path=self._directory / "run" / f"{model}.sock",
            port=lambda: self._port(model),
            knobs=self._knobs,
            loop=self._loop,
            clock=self._clock,
            randomness=self._randomness,
            on_change=self._changed,
        )

    def _port(self, model: str) -> int:
        """The port to try for a model: the one it had, else the next that no model has."""
        ports = self._record.value.ports
        if model in ports or not self._knobs.api_port:
            return ports.get(model, 0)
        bound = (machine.workers.port for machine in self._machines.values())
        taken = {*ports.values(), *bound}
        return next(p for p in range(self._knobs.api_port, 65536) if p not in taken)

    def _spawn_updater(self, assignment: Any, **calls: Any) -> UpdaterProcess:
        return UpdaterProcess(assignment, loop=self._loop, on_request=self._relay, **calls)

    def _changed(self) -> None:
        self._attention = self._report_due = True

    # --- what is told

    def _status(self, *, online: bool) -> Status:
        return Status(
            online=online,
            at=self._clock.now(),
            instance=self._instance,
            agent=self._facts.agent if self._facts else "",
        )

    def _reported(self) -> Reported | None:
        if self._facts is None:
            return None
        return Reported(
            at=self._clock.now(),
            generation=self._record.value.generation,
            models={name: machine.reported() for name, machine in self._machines.items()},
            device=self._facts,
        )

    def _report(self, now: float) -> None:
        reported = self._reported()
        self._remember_ports()
        if reported is not None and self._connected:
            self._report_due, self._reported_at = False, now
            self._link.publish(Kind.REPORTED, fitting_report(reported), retain=True)

    def _remember_ports(self) -> None:
        record = self._record.value
        bound = {
            name: port
            for name, machine in self._machines.items()
            if (port := machine.workers.lasting_port) is not None
        }
        ports = record.ports | bound
        if ports != record.ports:
            try:
                self._record.save(msgspec.structs.replace(record, ports=ports))
            except OSError as error:
                _say(f"the port cannot be stored: {error}")

    def _measure(self) -> None:
        workers = {
            name: machine.workers
            for name, machine in self._machines.items()
            if machine.workers.launch is not None
        }
        updater = self._updater.pid if self._updater is not None else None
        self._store(self._telemetry.health(workers, updater=updater, at=self._clock.now()))

    def _emit(self, kind: EventKind, text: str, **fields: Any) -> None:
        _say(
            " ".join(
                str(part)
                for part in (fields.get("model") or "", fields.get("version") or "", text)
                if part
            )
        )
        self._store(
            Event(stream="", seq=0, at=self._clock.now(), kind=kind, text=cut(text), **fields)
        )
        self._attention = True

    def _store(self, message: Health | Event) -> None:
        try:
            self._outbox.put(message)
        except OSError as error:
            _say(f"a message for the hub is lost: {error}")

    def _describe(self) -> bytes:
        """What `edgekit-agent status` prints."""
        return msgspec.json.encode(
            {
                "id": self._config.id,
                "fleet": self._config.fleet,
                "pid": os.getpid(),
                "connection": self._connection,
                "unacknowledged": self._outbox.unacknowledged,
                "dropped": self._outbox.dropped,
                "time": latest(self._clock.now(), self._record.value.time_floor),
                "reported": self._reported(),
            }
        )


def _boot() -> str:
    """Another one after each start of the machine. Source: random(4)."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def _say(sentence: str) -> None:
    print(f"edgekit-agent: {sentence}", file=sys.stderr, flush=True)
