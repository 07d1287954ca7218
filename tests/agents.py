"""A device and a depot for tests: the real daemon, updater, worker and python-tuf repository, with
a function call where MQTT would be."""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import msgspec
from bundles import KEY, OTHER_KEY, SmallBundle, null_bundle

from edgekit.hub.depot import BUSY, NOT_FOUND, Depot
from edgekit.release.repository import Repository, init_repository
from edgekit_agent import config
from edgekit_agent.clock import SystemClock
from edgekit_agent.config import DeviceConfig, Knobs
from edgekit_agent.daemon import Daemon
from edgekit_agent.link import Connected, Disconnected, LinkEvent, Received
from edgekit_contract.messages import (
    Ack,
    Bench,
    Benched,
    Chunk,
    Desired,
    Event,
    EventKind,
    Fetch,
    Health,
    Outcome,
    Phase,
    Reported,
    ReportedModel,
    Status,
    Target,
    decode,
    encode,
    encode_chunk,
)
from edgekit_contract.topics import Kind
from edgekit_profiles import text as profile_text

PATIENCE_S = 60.0
"""Upper bound of every wait; no test depends on how long something took."""

QUICK = Knobs(
    health_s=0.5,
    probation_s=1.0,
    probation_inferences=1,
    api_port=0,
    retry_s=0.2,
    most_retry_s=0.4,
    request_timeout_s=0.5,
    stall_s=3.0,
    warmup_s=60.0,
    load_s=60.0,
    hang_s=15.0,
)


def utc_now() -> datetime:
    return datetime.now(timezone.utc)


@dataclass
class Shop:
    """A fleet directory with a TUF repository, and releases of the model `tiny`."""

    directory: Path
    repository: Repository = field(init=False)

    def __post_init__(self) -> None:
        self.repository = init_repository(
            self.directory, root_keys=[OTHER_KEY], targets_keys=[KEY], now=utc_now()
        )
        self.depot = Depot(self.directory)

    def release(self, bundle: SmallBundle, *, floor: str | None = None) -> str:
        """Publish a bundle; its digest."""
        path = self.directory / "bundle.ekb"
        bundle.write(path)
        (release,) = self.repository.add_release(
            [path], targets_key=KEY, floor=floor, now=utc_now()
        )
        path.unlink()
        return release.version

    def offer(self, bundle: SmallBundle) -> str:
        """Sign a bundle to be measured only; its digest."""
        path = self.directory / "offered.ekb"
        bundle.write(path)
        (digest,) = self.repository.add_bench([path], targets_key=KEY, now=utc_now())
        path.unlink()
        return digest

    def older(self, days: float) -> None:
        """Sign the timestamp as if that was so many days ago."""
        chain = self.repository._chain()
        timestamp = chain.timestamp.signed
        timestamp.version += 1
        timestamp.expires = utc_now() + timedelta(days=7 - days)
        self.repository._publish(None, timestamp)


def variant(
    version: str, *, model: dict[str, Any] | None = None, ballast_bytes: int = 0, name: str = "tiny"
) -> SmallBundle:
    """A release of the null model; `model` changes its file and leaves the golden vectors."""
    bundle = null_bundle(version=version)
    files = dict(bundle.files)
    if model:
        body = msgspec.json.decode(files["files/model.json"])
        files["files/model.json"] = msgspec.json.encode(body | model)
    if ballast_bytes:
        files["files/ballast.bin"] = random.Random(version).randbytes(ballast_bytes)
    return bundle.with_files(files).changed(name=name)


def make_device(directory: Path, shop: Shop, *, knobs: Knobs = QUICK, device: str = "d1") -> Path:
    """A device directory as enrolment leaves it, but for its identity."""
    (directory / "tuf").mkdir(parents=True)
    (directory / "tuf" / "root.json").write_bytes(shop.repository.first_root())
    (directory / "profile.toml").write_bytes(profile_text("demo-small"))
    identity = config.render(
        DeviceConfig(
            id=device,
            fleet="test",
            profile="demo-small",
            hub_url="https://localhost",
            mqtt_host="localhost",
            mqtt_port=1883,
        )
    )
    lines = []
    for name, value in msgspec.structs.asdict(knobs).items():
        if value is not None:
            lines.append(f"{name} = {value}")
    (directory / "device.toml").write_text(identity + "\n".join(lines) + "\n")
    return directory


Fault = Callable[[Fetch], Chunk | None]
"""Another answer than the depot's; None: its own. Raising `Silence`: no answer."""


class Silence(Exception):
    """Answer nothing."""


class DirectLink:
    """A hub in the same process. Satisfies `edgekit_agent.link.Link`."""

    def __init__(self, depot: Depot) -> None:
        self.depot = depot
        self.fault: Fault = lambda fetch: None
        self.fetched: list[Fetch] = []
        self.sent_bytes = 0
        self.status: Status | None = None
        self.reported: Reported | None = None
        self.events: list[Event] = []
        self.health: list[Health] = []
        self.benched: list[Benched] = []
        self.phases: list[Phase] = []
        self.acknowledge = True
        self.desired: Desired | None = None
        self.connected = False
        self._deliver: Callable[[LinkEvent], None] | None = None
        self._requests: deque[tuple[Fetch, bytes]] = deque()
        self._wake = threading.Condition()
        self._stopped = False
        self._thread = threading.Thread(target=self._serve, daemon=True)

    # --- Link

    def start(self, deliver: Callable[[LinkEvent], None]) -> None:
        self._deliver = deliver
        self._thread.start()
        self.connect()

    def publish(self, kind: Kind, payload: bytes, *, retain: bool = False) -> None:
        if not self.connected:
            return
        if kind is Kind.STATUS:
            self.status = decode(payload, Status)
        elif kind is Kind.REPORTED:
            self.reported = decode(payload, Reported)
        elif kind is Kind.EVENT:
            self._keep(self.events, decode(payload, Event))
        elif kind is Kind.HEALTH:
            self._keep(self.health, decode(payload, Health))
        elif kind is Kind.BENCHED:
            self.benched.append(decode(payload, Benched))

    def fetch(self, payload: bytes, correlation: bytes) -> None:
        if self.connected:
            with self._wake:
                self._requests.append((decode(payload, Fetch), correlation))
                self._wake.notify()

    @property
    def backlog(self) -> int:
        return 0

    def stop(self, farewell: bytes) -> None:
        self.publish(Kind.STATUS, farewell)
        with self._wake:
            self._stopped = True
            self._wake.notify()

    # --- the test's side

    def connect(self) -> None:
        self.connected = True
        self._give(Connected())
        if self.desired is not None:
            self._give(Received(Kind.DESIRED, encode(self.desired)))

    def disconnect(self) -> None:
        self.connected = False
        self._give(Disconnected("cut by the test", 0.0))

    def want(self, generation: int, **models: str) -> None:
        """Set the desired state, retained."""
        self.desired = Desired(
            generation=generation,
            models={name: Target(version=version) for name, version in models.items()},
        )
        if self.connected:
            self._give(Received(Kind.DESIRED, encode(self.desired)))

    def bench(self, digest: str, *, id_: str = "b1", seconds: float = 0.2, **fields: Any) -> None:
        """Ask for a measurement."""
        fields.setdefault("until", utc_now() + timedelta(seconds=60))
        order = Bench(id=id_, digest=digest, budget_s=seconds, **fields)
        self._give(Received(Kind.BENCH, encode(order)))

    def _give(self, event: LinkEvent) -> None:
        if self._deliver is not None:
            self._deliver(event)

    def _keep(self, store: list[Any], message: Event | Health) -> None:
        if all((m.stream, m.seq) != (message.stream, message.seq) for m in store):
            store.append(message)
        if isinstance(message, Event) and message.kind is EventKind.PHASE and message.phase:
            self.phases.append(message.phase)
        if self.acknowledge:
            ack = Ack(
                stream=message.stream,
                health=max((m.seq for m in self.health), default=0),
                event=max((m.seq for m in self.events), default=0),
            )
            self._give(Received(Kind.ACK, encode(ack)))

    def _serve(self) -> None:
        while True:
            with self._wake:
                while not self._requests and not self._stopped:
                    self._wake.wait()
                if self._stopped:
                    return
                fetch, correlation = self._requests.popleft()
            self.fetched.append(fetch)
            try:
                chunk = self.fault(fetch)
            except Silence:
                continue
            chunk = chunk or self.depot.read(fetch)
            self.sent_bytes += len(chunk.data)
            self._give(Received(Kind.BLOB, encode_chunk(chunk), correlation))

    def fetched_bytes(self, prefix: str = "blobs/") -> int:
        """Bytes of blobs that were asked for."""
        return sum(f.length for f in self.fetched if f.resource.startswith(prefix))

    def outcomes(self) -> list[tuple[str, str | None]]:
        return [
            (event.outcome.value, event.version)
            for event in self.events
            if event.kind is EventKind.OUTCOME and event.outcome
        ]

    def texts(self, kind: EventKind) -> list[str]:
        return [event.text for event in self.events if event.kind is kind]


@dataclass
class Agent:
    """A daemon that runs in a thread of the test's process."""

    directory: Path
    link: DirectLink
    daemon: Daemon
    thread: threading.Thread
    failure: list[BaseException] = field(default_factory=list)

    def model(self, name: str = "tiny") -> ReportedModel:
        reported = self.link.reported
        return (reported.models.get(name) if reported else None) or ReportedModel()

    def last(self, name: str = "tiny") -> Outcome | None:
        return self.model(name).last

    def serves(self, version: str, name: str = "tiny") -> bool:
        model = self.model(name)
        return (
            model.active is not None
            and model.active.version == version
            and model.phase is Phase.IDLE
        )

    def wait(self, fact: Callable[[], Any], what: str) -> None:
        wait_for(fact, f"{what}; {self.model()}; {[e.text for e in self.link.events][-8:]}", self)

    def stop(self) -> None:
        self.daemon.stop()
        self.thread.join(PATIENCE_S)
        assert not self.thread.is_alive()


def wait_for(fact: Callable[[], Any], what: str = "", agent: Agent | None = None) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not fact():
        if agent is not None and agent.failure:
            raise agent.failure[0]
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.02)


def start(directory: Path, link: DirectLink) -> Agent:
    device, trimmed = config.load(directory)
    daemon = Daemon(
        directory,
        device,
        trimmed,
        link=lambda will: link,
        clock=SystemClock(),
        randomness=random.Random(1),
    )
    agent = Agent(directory, link, daemon, threading.Thread())

    def run() -> None:
        try:
            daemon.run()
        except BaseException as error:
            agent.failure.append(error)

    agent.thread = threading.Thread(target=run, daemon=True)
    agent.thread.start()
    return agent


@contextmanager
def running(directory: Path, link: DirectLink) -> Iterator[Agent]:
    agent = start(directory, link)
    try:
        yield agent
    finally:
        agent.stop()
        if agent.failure:
            raise agent.failure[0]


__all__ = ["BUSY", "NOT_FOUND"]
