"""What the broker lets devices and strangers do, by the files that `fleet init` wrote."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
from fleets import Identity, eventually, hub_identity, identity, make_fleet, stranger
from mosquitto import Mosquitto
from mqtt_clients import Client

from edgekit.hub.fleet import Fleet
from edgekit_contract import topics
from edgekit_contract.topics import FROM_DEVICE, TO_DEVICE, Kind

NOT_AUTHORIZED = 0x87
NO_SUBSCRIBERS = 0x10


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    fleet = make_fleet(tmp_path_factory.mktemp("acl") / "fleet")
    with Mosquitto(fleet):
        yield fleet


@pytest.fixture(scope="module")
def hub(lab: Fleet) -> Iterator[Client]:
    with Client(lab, hub_identity(lab)) as client:
        for kind in FROM_DEVICE:
            assert client.subscribe(topics.fleet_filter(lab.name, kind)) < 0x80
        yield client


@pytest.fixture(scope="module")
def identities(lab: Fleet, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Identity]:
    folder = tmp_path_factory.mktemp("identities")
    return {device: identity(lab, device, folder) for device in ("pi-1", "pi-2")}


@pytest.mark.parametrize("kind", FROM_DEVICE)
def test_a_device_writes_its_own_topics(
    lab: Fleet, hub: Client, identities: dict[str, Identity], kind: Kind
) -> None:
    with Client(lab, identities["pi-1"]) as device:
        assert device.publish(topics.topic(lab.name, "pi-1", kind), b"own") < 0x80
    eventually(lambda: b"own" in hub.got("pi-1", kind))


@pytest.mark.parametrize("kind", Kind)
def test_a_device_writes_no_topic_of_another(
    lab: Fleet, hub: Client, identities: dict[str, Identity], kind: Kind
) -> None:
    with Client(lab, identities["pi-1"]) as device:
        assert device.publish(topics.topic(lab.name, "pi-2", kind), b"forged") == NOT_AUTHORIZED
        device.publish(topics.topic(lab.name, "pi-1", Kind.EVENT), b"fence")
        eventually(lambda: b"fence" in hub.got("pi-1", Kind.EVENT))
    if kind in FROM_DEVICE:
        assert b"forged" not in hub.got("pi-2", kind)


@pytest.mark.parametrize("kind", TO_DEVICE)
def test_a_device_does_not_write_what_the_hub_writes(
    lab: Fleet, identities: dict[str, Identity], kind: Kind
) -> None:
    with Client(lab, identities["pi-1"]) as device:
        assert device.publish(topics.topic(lab.name, "pi-1", kind), b"forged") == NOT_AUTHORIZED


@pytest.mark.parametrize(
    "topic",
    ["edgekit/v1/lab/other", "$SYS/broker/x", "other", "edgekit/v1/other/device/pi-1/event"],
)
def test_a_device_writes_nothing_else(
    lab: Fleet, identities: dict[str, Identity], topic: str
) -> None:
    with Client(lab, identities["pi-1"]) as device:
        assert device.publish(topic, b"x") == NOT_AUTHORIZED


@pytest.mark.parametrize("kind", TO_DEVICE)
def test_a_device_reads_its_own_and_never_another_topic_whatever_it_subscribes(
    lab: Fleet, hub: Client, identities: dict[str, Identity], kind: Kind
) -> None:
    with Client(lab, identities["pi-1"]) as device:
        for wanted in ("#", "edgekit/#", "edgekit/v1/lab/device/+/+", "$SYS/#"):
            device.subscribe(wanted)
        device.subscribe(topics.topic(lab.name, "pi-2", kind))
        device.subscribe(topics.topic(lab.name, "pi-1", kind))
        hub.publish(topics.topic(lab.name, "pi-2", kind), b"secret")
        hub.publish(topics.topic(lab.name, "pi-1", kind), b"mine")
        eventually(lambda: b"mine" in device.got("pi-1", kind))
        assert {name for name, _, _ in device.received} == {topics.topic(lab.name, "pi-1", kind)}


def test_devices_do_not_hear_each_other(
    lab: Fleet, hub: Client, identities: dict[str, Identity]
) -> None:
    with Client(lab, identities["pi-1"]) as one, Client(lab, identities["pi-2"]) as two:
        two.subscribe("#")
        two.subscribe(topics.fleet_filter(lab.name, Kind.EVENT))
        one.publish(topics.topic(lab.name, "pi-1", Kind.EVENT), b"private")
        two.publish(topics.topic(lab.name, "pi-2", Kind.EVENT), b"fence")
        hub.publish(topics.topic(lab.name, "pi-2", Kind.ACK), b"fence")
        eventually(lambda: b"fence" in two.got("pi-2", Kind.ACK))
        assert not [payload for _, payload, _ in two.received if payload == b"private"]


def test_no_certificate_is_refused(lab: Fleet) -> None:
    with pytest.raises((ssl.SSLError, OSError)):
        Client(lab, None).connect()


def test_a_certificate_of_another_authority_is_refused(lab: Fleet, tmp_path: Path) -> None:
    with pytest.raises((ssl.SSLError, OSError)):
        Client(lab, stranger(lab, "pi-1", tmp_path)).connect()


def test_the_servers_certificate_does_not_make_a_client(lab: Fleet) -> None:
    with pytest.raises((ssl.SSLError, OSError)):
        Client(lab, Identity(lab.server, lab.server_key, lab.root_ca)).connect()


def test_a_client_id_of_another_device_does_not_end_its_session(
    lab: Fleet, identities: dict[str, Identity]
) -> None:
    with Client(lab, identities["pi-1"], client_id="pi-1") as victim:
        with Client(lab, identities["pi-2"], client_id="pi-1") as attacker:
            assert attacker.publish(topics.topic(lab.name, "pi-2", Kind.EVENT), b"me") < 0x80
        assert victim.publish(topics.topic(lab.name, "pi-1", Kind.EVENT), b"still here") < 0x80
        assert victim.ended == []


def test_a_will_may_only_be_the_devices_own(
    lab: Fleet, hub: Client, identities: dict[str, Identity]
) -> None:
    will = (topics.topic(lab.name, "pi-2", Kind.STATUS), b"forged")
    try:
        with Client(lab, identities["pi-1"], will=will) as device:
            device.vanish()
    except ConnectionError:
        pass  # mosquitto may refuse it already when it connects
    with Client(lab, identities["pi-2"]) as other:
        other.publish(topics.topic(lab.name, "pi-2", Kind.STATUS), b"fence")
    eventually(lambda: b"fence" in hub.got("pi-2", Kind.STATUS))
    assert b"forged" not in hub.got("pi-2", Kind.STATUS)
