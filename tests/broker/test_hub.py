"""The hub's service on a real mosquitto: what comes, what is kept, what goes out."""

from __future__ import annotations

import hashlib
import sqlite3
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from bundles import KEY, null_bundle
from fleets import eventually, identity, make_fleet, publish_bundles, utc_now
from hubs import RunningHub
from mosquitto import Mosquitto
from mqtt_clients import Client

from edgekit.hub import database, orders
from edgekit.hub.depot import Depot
from edgekit.hub.fleet import Fleet
from edgekit.hub.link import FETCHES_PER_DEVICE, REJECTED_LOGGED
from edgekit.hub.rollout import Action, RolloutStatus, Standing
from edgekit.release.storage import locked
from edgekit_contract import limits, messages
from edgekit_contract.messages import (
    Ack,
    Bench,
    Benched,
    BundleRef,
    Chunk,
    ChunkStatus,
    Desired,
    DeviceFacts,
    Event,
    EventKind,
    Fetch,
    Health,
    Outcome,
    OutcomeKind,
    Phase,
    Reported,
    ReportedModel,
    Status,
)
from edgekit_contract.topics import Kind

FACTS = DeviceFacts(profile="demo-small", arch="x86_64", cores=1, ram_bytes=1 << 30)


@pytest.fixture
def lab(tmp_path: Path) -> Fleet:
    return make_fleet(tmp_path / "fleet")


@pytest.fixture
def broker(lab: Fleet) -> Iterator[Mosquitto]:
    with Mosquitto(lab) as running:
        yield running


@pytest.fixture
def join(lab: Fleet, tmp_path: Path) -> Iterator[Callable[[str], Client]]:
    """Connects a device that has subscribed to all that the hub sends it."""
    clients: list[Client] = []

    def joined(device: str) -> Client:
        client = Client(lab, identity(lab, device, tmp_path / "identities"))
        client.connect()
        clients.append(client)
        client.subscribe(f"edgekit/v1/lab/device/{device}/+")
        return client

    yield joined
    for client in clients:
        client.close()


def reported(generation: int = 0, **model: object) -> Reported:
    models = {"tiny": ReportedModel(**model)} if model else {}  # type: ignore[arg-type]
    return Reported(at=utc_now(), generation=generation, device=FACTS, models=models)


def serving(version: str, generation: int) -> Reported:
    return reported(generation, active=BundleRef(version=version, digest="0" * 64, counter=1))


def health(seq: int, stream: str = "s") -> Health:
    return Health(stream=stream, seq=seq, at=utc_now())


def newest_ack(client: Client, device: str) -> Ack | None:
    found = client.got(device, Kind.ACK)
    return messages.decode(found[-1], Ack) if found else None


def newest_desired(client: Client, device: str) -> Desired | None:
    found = client.got(device, Kind.DESIRED)
    return messages.decode(found[-1], Desired) if found else None


def start(hub: RunningHub, version: str, selector: str = "all") -> str:
    started = orders.start_rollout(
        hub.store,
        hub.fleet.repository,
        model="tiny",
        version=version,
        selector=selector,
        now=utc_now(),
    )
    return started.rollout.id


def release(fleet: Fleet, tmp_path: Path, version: str, profile: str = "demo-small") -> None:
    bundle = null_bundle(version=version, profile=profile)
    publish_bundles(fleet, bundle.write(tmp_path / f"{version}-{profile}.ekb", KEY))


def test_a_device_reads_all_of_a_release_over_the_broker(
    lab: Fleet, broker: Mosquitto, join: Callable[[str], Client], tmp_path: Path
) -> None:
    bundle = null_bundle()
    big = bytes(range(256)) * 4096 + b"tail"
    bundle = bundle.with_files({**bundle.files, "files/big.bin": big})
    added = publish_bundles(lab, bundle.write(tmp_path / "b.ekb", KEY))
    digest = added.bundles["demo-small"].digest
    with RunningHub(lab):
        device = join("pi-1")
        raw = device.read("pi-1", f"targets/tiny/1.0/{digest}.demo-small.dsse.json")
        assert hashlib.sha256(raw).hexdigest() == digest
        for entry in bundle.manifest.files:
            data = device.read("pi-1", f"blobs/{entry.sha256}")
            assert hashlib.sha256(data).hexdigest() == entry.sha256
        timestamp = device.read("pi-1", "metadata/timestamp.json")
        assert timestamp == (lab.directory / "tuf/metadata/timestamp.json").read_bytes()


def test_what_is_not_published_is_not_found(
    lab: Fleet, broker: Mosquitto, join: Callable[[str], Client]
) -> None:
    with RunningHub(lab):
        device = join("pi-1")
        for resource in ("metadata/2.root.json", "metadata/../online/snapshot.key", "fleet.toml"):
            device.fetch("pi-1", Fetch(resource=resource), resource.encode())
            eventually(lambda r=resource: r.encode() in device.chunks)  # type: ignore[misc]
            assert device.chunks[resource.encode()].status is ChunkStatus.NOT_FOUND


def test_what_the_hubs_disk_does_not_give_is_not_said_to_be_missing(
    lab: Fleet, broker: Mosquitto, join: Callable[[str], Client]
) -> None:
    """A device takes NOT_FOUND of the next root metadata for the end of the chain."""
    (lab.directory / "tuf/metadata/2.root.json").mkdir()  # opens, and cannot be read
    with RunningHub(lab):
        device = join("pi-1")
        device.fetch("pi-1", Fetch(resource="metadata/2.root.json"), b"root")
        eventually(lambda: b"root" in device.chunks)
    assert device.chunks[b"root"].status is ChunkStatus.BUSY


class _StuckDepot(Depot):
    def __init__(self) -> None:
        super().__init__(Path("/nonexistent"))
        self.go_on = threading.Event()

    def read(self, fetch: Fetch) -> Chunk:
        self.go_on.wait(30)
        return Chunk(status=ChunkStatus.OK, total=1, data=b"x")


def test_more_requests_than_a_device_may_have_are_answered_busy(
    lab: Fleet, broker: Mosquitto, join: Callable[[str], Client]
) -> None:
    depot = _StuckDepot()
    surplus = 5
    with RunningHub(lab, depot=depot):
        device = join("pi-1")
        for index in range(FETCHES_PER_DEVICE + surplus):
            device.fetch("pi-1", Fetch(resource="blobs/x"), str(index).encode())
        device.say("pi-1", health(1), Kind.HEALTH)
        eventually(lambda: newest_ack(device, "pi-1") is not None)
        depot.go_on.set()
        eventually(lambda: len(device.chunks) == FETCHES_PER_DEVICE + surplus)
    statuses = [chunk.status for chunk in device.chunks.values()]
    assert statuses.count(ChunkStatus.BUSY) == surplus
    assert statuses.count(ChunkStatus.OK) == FETCHES_PER_DEVICE


def test_correlation_data_that_no_packet_would_hold_do_not_cost_the_hub_its_connection(
    lab: Fleet, broker: Mosquitto, join: Callable[[str], Client]
) -> None:
    """Beside a whole chunk they would pass the broker's `max_packet_size`: it hangs up on that."""
    (lab.directory / "blobs" / ("a" * 64)).write_bytes(bytes(limits.MAX_CHUNK_BYTES))
    with RunningHub(lab) as hub:
        device = join("pi-1")
        whole = Fetch(resource="blobs/" + "a" * 64)
        device.fetch("pi-1", whole, b"x" * 60_000)
        device.fetch("pi-1", whole, b"y" * (limits.MAX_CORRELATION_BYTES + 1))
        device.fetch("pi-1", whole, b"z" * limits.MAX_CORRELATION_BYTES)
        eventually(lambda: bool(device.chunks))
        assert list(device.chunks) == [b"z" * limits.MAX_CORRELATION_BYTES]
        assert sum("connected" in line for line in hub.said) == 1


def test_health_and_events_are_stored_then_acknowledged(
    lab: Fleet, broker: Mosquitto, join: Callable[[str], Client]
) -> None:
    with RunningHub(lab) as hub:
        device = join("pi-1")
        for seq in (1, 2, 3, 3):
            device.say("pi-1", health(seq), Kind.HEALTH)
        event = Event(stream="s", seq=1, at=utc_now(), kind=EventKind.STARTED, text="hello")
        device.say("pi-1", event, Kind.EVENT)
        eventually(lambda: newest_ack(device, "pi-1") == Ack(stream="s", health=3, event=1))
        stored = hub.store.records.health("pi-1", since=0, limit=100)
        assert [message.seq for _, message in stored] == [1, 2, 3]
        ((_, _, kept),) = hub.store.records.events(None, limit=10, before=None)
        assert kept == event


def test_what_the_broker_took_while_the_hub_was_away_is_not_acknowledged(
    lab: Fleet, broker: Mosquitto, join: Callable[[str], Client]
) -> None:
    device = join("pi-1")
    with RunningHub(lab):
        device.say("pi-1", health(1), Kind.HEALTH)
        eventually(lambda: newest_ack(device, "pi-1") == Ack(stream="s", health=1))
    device.say("pi-1", health(2), Kind.HEALTH)
    seen = len(device.got("pi-1", Kind.ACK))
    with RunningHub(lab):
        eventually(lambda: len(device.got("pi-1", Kind.ACK)) == seen + 1)  # told again
        device.say("pi-1", health(3), Kind.HEALTH)
        eventually(lambda: len(device.got("pi-1", Kind.ACK)) == seen + 2)
        assert newest_ack(device, "pi-1") == Ack(stream="s", health=1)
        device.say("pi-1", health(2), Kind.HEALTH)
        eventually(lambda: newest_ack(device, "pi-1") == Ack(stream="s", health=3))


def test_a_store_that_another_process_holds_is_waited_for(
    lab: Fleet,
    broker: Mosquitto,
    join: Callable[[str], Client],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(database, "BUSY_TIMEOUT_S", 0.05)
    with RunningHub(lab) as hub:
        device = join("pi-1")
        other = sqlite3.connect(lab.database)
        other.execute("BEGIN IMMEDIATE")
        device.say("pi-1", health(1), Kind.HEALTH)
        eventually(lambda: any("another process" in line for line in hub.said))
        device.say("pi-1", health(2), Kind.HEALTH)
        assert newest_ack(device, "pi-1") is None
        other.close()
        eventually(lambda: newest_ack(device, "pi-1") == Ack(stream="s", health=2))
        stored = hub.store.records.health("pi-1", since=0, limit=10)
        assert [message.seq for _, message in stored] == [1, 2]
        assert sum("another process" in line for line in hub.said) == 1


def test_the_hub_works_while_a_release_is_being_added(
    lab: Fleet, broker: Mosquitto, join: Callable[[str], Client]
) -> None:
    with locked(lab.directory / "tuf" / "lock"), RunningHub(lab):
        device = join("pi-1")
        device.say("pi-1", health(1), Kind.HEALTH)
        eventually(lambda: newest_ack(device, "pi-1") is not None)


def test_a_rollout_moves_a_device_and_ends(
    lab: Fleet, broker: Mosquitto, join: Callable[[str], Client], tmp_path: Path
) -> None:
    release(lab, tmp_path, "1.0")
    with RunningHub(lab) as hub:
        device = join("pi-1")
        device.say("pi-1", reported(), Kind.REPORTED, retain=True)
        rollout = start(hub, "1.0")
        eventually(lambda: newest_desired(device, "pi-1") is not None)
        desired = newest_desired(device, "pi-1")
        assert desired is not None
        assert desired.models["tiny"].version == "1.0"
        (before,) = hub.ask(hub.source.rollouts)
        assert before.waves[0].standings == {Standing.UPDATING: 1}
        device.say("pi-1", serving("1.0", desired.generation), Kind.REPORTED, retain=True)
        eventually(lambda: hub.store.ledger.rollout(rollout).status is RolloutStatus.DONE)
        (part,) = hub.store.ledger.assignments(rollout).values()
        assert part.standing is Standing.COMMITTED


def test_a_refusal_is_reported_with_its_reason_and_a_new_rollout_asks_again(
    lab: Fleet, broker: Mosquitto, join: Callable[[str], Client], tmp_path: Path
) -> None:
    release(lab, tmp_path, "1.0")
    with RunningHub(lab) as hub:
        device = join("pi-1")
        device.say("pi-1", reported(), Kind.REPORTED, retain=True)
        rollout = start(hub, "1.0")
        eventually(lambda: newest_desired(device, "pi-1") is not None)
        last = Outcome(
            kind=OutcomeKind.REFUSED,
            version="1.0",
            phase=Phase.WARMUP,
            reason="golden vector 0 differs",
            at=utc_now(),
        )
        device.say("pi-1", reported(1, last=last), Kind.REPORTED, retain=True)
        eventually(lambda: hub.store.ledger.rollout(rollout).status is RolloutStatus.DONE)
        (part,) = hub.store.ledger.assignments(rollout).values()
        assert part.standing is Standing.FAILED
        assert "golden vector 0 differs" in part.reason
        again = start(hub, "1.0")
        eventually(lambda: len(device.got("pi-1", Kind.DESIRED)) == 2)
        desired = newest_desired(device, "pi-1")
        assert desired is not None
        assert (desired.generation, desired.models["tiny"].version) == (2, "1.0")
        device.say("pi-1", serving("1.0", 2), Kind.REPORTED, retain=True)
        eventually(lambda: hub.store.ledger.rollout(again).status is RolloutStatus.DONE)
        (part,) = hub.store.ledger.assignments(again).values()
        assert part.standing is Standing.COMMITTED


def test_a_profile_without_bundle_is_skipped_with_a_reason(
    lab: Fleet, broker: Mosquitto, join: Callable[[str], Client], tmp_path: Path
) -> None:
    release(lab, tmp_path, "1.0", profile="raspberry-pi-5")
    with RunningHub(lab) as hub:
        device = join("pi-1")
        device.say("pi-1", reported(), Kind.REPORTED, retain=True)
        eventually(lambda: "pi-1" in hub.service.state.devices)
        rollout = start(hub, "1.0")
        eventually(lambda: bool(hub.store.ledger.assignments(rollout)))
        (part,) = hub.store.ledger.assignments(rollout).values()
        assert part.standing is Standing.SKIPPED
        assert "no bundle for profile demo-small" in part.reason
        assert newest_desired(device, "pi-1") is None


def test_an_abort_returns_who_has_not_committed(
    lab: Fleet, broker: Mosquitto, join: Callable[[str], Client], tmp_path: Path
) -> None:
    for version in ("1.0", "1.1"):
        release(lab, tmp_path, version)
    with RunningHub(lab) as hub:
        slow, fast = join("slow"), join("fast")
        for name, client in (("slow", slow), ("fast", fast)):
            client.say(name, serving("1.0", 0), Kind.REPORTED, retain=True)
        rollout = start(hub, "1.1")
        eventually(lambda: None not in (newest_desired(slow, "slow"), newest_desired(fast, "fast")))
        fast.say("fast", serving("1.1", 1), Kind.REPORTED, retain=True)

        def standings() -> dict[str, Standing]:
            parts = hub.store.ledger.assignments(rollout)
            return {device: part.standing for device, part in parts.items()}

        eventually(lambda: standings().get("fast") is Standing.COMMITTED)
        hub.store.ledger.order(rollout, Action.ABORT, now=utc_now().timestamp())
        eventually(lambda: standings()["slow"] is Standing.SKIPPED)
        eventually(lambda: len(slow.got("slow", Kind.DESIRED)) == 2)
        back = newest_desired(slow, "slow")
        assert back is not None
        assert (back.generation, back.models["tiny"].version) == (2, "1.0")
        assert len(fast.got("fast", Kind.DESIRED)) == 1


def test_a_hub_that_starts_again_goes_on_where_it_was(
    lab: Fleet, broker: Mosquitto, join: Callable[[str], Client], tmp_path: Path
) -> None:
    release(lab, tmp_path, "1.0")
    device = join("pi-1")
    with RunningHub(lab) as hub:
        device.say("pi-1", Status(online=True, instance="a"), Kind.STATUS, retain=True)
        device.say("pi-1", reported(), Kind.REPORTED, retain=True)
        device.say("pi-1", health(1), Kind.HEALTH)
        start(hub, "1.0")
        eventually(lambda: newest_desired(device, "pi-1") is not None)
        eventually(lambda: newest_ack(device, "pi-1") is not None)
    broker.restart()  # so that nothing is remembered but what the store holds
    eventually(lambda: bool(device.ended))
    with RunningHub(lab) as hub:
        state = hub.ask(lambda: hub.service.state.devices["pi-1"])
        assert state.profile == "demo-small"
        late = join("pi-1")
        eventually(lambda: newest_desired(late, "pi-1") is not None)
        desired = newest_desired(late, "pi-1")
        assert desired is not None
        assert (desired.generation, desired.models["tiny"].version) == (1, "1.0")
        eventually(lambda: newest_ack(late, "pi-1") == Ack(stream="s", health=1))


def test_a_broker_that_comes_late_dies_and_returns_is_found_again(
    lab: Fleet, join: Callable[[str], Client], tmp_path: Path
) -> None:
    broker = Mosquitto(lab)
    with RunningHub(lab, connected=False) as hub:
        eventually(lambda: any("no broker" in line for line in hub.said))
        for _ in range(2):
            broker.start()
            eventually(lambda: hub.service.link.connected)
            device = join("pi-1")
            device.say("pi-1", health(1), Kind.HEALTH)
            eventually(lambda: newest_ack(device, "pi-1") is not None)  # noqa: B023
            broker.stop()
            eventually(lambda: not hub.service.link.connected)
        assert sum("no broker" in line for line in hub.said) <= 3


def test_a_generation_below_the_devices_own_is_overtaken(
    lab: Fleet, broker: Mosquitto, join: Callable[[str], Client], tmp_path: Path
) -> None:
    """A hub whose store is new wants of a device what it serves, above what it has seen."""
    with RunningHub(lab):
        device = join("pi-1")
        device.say("pi-1", serving("1.0", 41), Kind.REPORTED, retain=True)
        eventually(lambda: newest_desired(device, "pi-1") is not None)
        desired = newest_desired(device, "pi-1")
        assert desired is not None
        assert (desired.generation, desired.models["tiny"].version) == (42, "1.0")


def test_the_hub_gets_all_that_devices_retain_when_it_connects(
    lab: Fleet, join: Callable[[str], Client]
) -> None:
    """More than the 1,000 messages that mosquitto queues for a client by default."""
    devices = 1_500
    topic = "edgekit/v1/lab/device/{}/reported"
    with lab.acl.open("a") as acl:
        acl.write(f"user loader\ntopic write {topic.format('+')}\n")
    with Mosquitto(lab):
        loader = join("loader")
        body = messages.encode(serving("1.0", 0))
        loader.publish_many((topic.format(f"pi-{i}"), body) for i in range(devices))
        with RunningHub(lab) as hub:
            eventually(lambda: len(hub.service.state.devices) == devices)


def test_two_answers_to_measurements_at_once_are_both_kept(
    lab: Fleet, broker: Mosquitto, join: Callable[[str], Client]
) -> None:
    with RunningHub(lab) as hub:
        device, ids = join("pi-1"), ("first", "second")
        until = utc_now() + timedelta(minutes=5)
        for id_ in ids:
            bench = Bench(id=id_, digest="0" * 64, budget_s=1.0, until=until)
            hub.store.benches.order("pi-1", bench, now=utc_now().timestamp())
        for id_ in ids:
            device.say("pi-1", Benched(id=id_, at=utc_now(), reason="it is busy"), Kind.BENCHED)
        eventually(lambda: all(hub.store.benches.answered(id_) for id_ in ids))


def test_two_agents_on_one_identity_are_told_of(
    lab: Fleet, broker: Mosquitto, join: Callable[[str], Client]
) -> None:
    with RunningHub(lab) as hub:
        device = join("pi-1")
        for instance in "abababab":
            status = Status(online=True, at=utc_now(), instance=instance)
            device.say("pi-1", status, Kind.STATUS, retain=True)
        eventually(lambda: bool(hub.store.records.events("pi-1", limit=5, before=None)))
        device.say("pi-1", health(1), Kind.HEALTH)
        eventually(lambda: newest_ack(device, "pi-1") is not None)
        ((_, _, event),) = hub.store.records.events("pi-1", limit=5, before=None)
        assert event.kind is EventKind.TAKEOVER
        problems = hub.ask(lambda: hub.service.state.devices["pi-1"].problems)
        assert "Two agents" in problems[0].text


def test_malformed_messages_are_dropped_and_the_hub_goes_on(
    lab: Fleet, broker: Mosquitto, join: Callable[[str], Client]
) -> None:
    with RunningHub(lab) as hub:
        device = join("pi-1")
        for kind in (Kind.STATUS, Kind.REPORTED, Kind.HEALTH, Kind.EVENT, Kind.FETCH):
            for body in (b"", b"{", b"\xff", b"null", b"[" * 3000, b"x" * limits.MAX_CHUNK_BYTES):
                device.publish(f"edgekit/v1/lab/device/pi-1/{kind.value}", body)
        device.say("pi-1", health(1), Kind.HEALTH)
        eventually(lambda: newest_ack(device, "pi-1") is not None)
        assert hub.service.link.connected


def test_one_device_does_not_fill_the_log(
    lab: Fleet,
    broker: Mosquitto,
    join: Callable[[str], Client],
    caplog: pytest.LogCaptureFixture,
) -> None:
    with RunningHub(lab):
        loud, quiet = join("loud"), join("quiet")
        for _ in range(REJECTED_LOGGED):
            for kind in (Kind.FETCH, Kind.HEALTH):
                loud.publish(f"edgekit/v1/lab/device/loud/{kind.value}", b"{")
        quiet.publish("edgekit/v1/lab/device/quiet/fetch", b"{")
        quiet.say("quiet", health(1), Kind.HEALTH)
        eventually(lambda: newest_ack(quiet, "quiet") is not None)
    lines = [record.getMessage() for record in caplog.records]
    assert sum("loud" in line for line in lines) == REJECTED_LOGGED
    assert sum("quiet" in line for line in lines) == 1
