"""Topics are built and parsed in one place, and no name can break out of its level."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit_contract import topics
from edgekit_contract.errors import InvalidName, MessageRejected
from edgekit_contract.topics import FROM_DEVICE, TO_DEVICE, Kind


@given(
    fleet=st.from_regex(r"\A[a-z0-9]([a-z0-9-]{0,62}[a-z0-9])?\Z"),
    device=st.from_regex(r"\A[a-z0-9-]{1,64}\Z").filter(lambda device: device != "hub"),
    kind=st.sampled_from(Kind),
)
def test_topic_parses_back(fleet: str, device: str, kind: Kind) -> None:
    topic = topics.topic(fleet, device, kind)
    assert topics.parse(topic) == (fleet, device, kind)
    assert not set(topic) & set("+#\0 ")


def test_topic_is_as_documented() -> None:
    assert topics.topic("demo", "pi-1", Kind.DESIRED) == "edgekit/v1/demo/device/pi-1/desired"
    assert topics.fleet_filter("demo", Kind.HEALTH) == "edgekit/v1/demo/device/+/health"
    assert topics.device_filter("demo", Kind.ACK) == "edgekit/v1/demo/device/%u/ack"


def test_each_kind_has_one_direction() -> None:
    assert sorted((*FROM_DEVICE, *TO_DEVICE), key=lambda kind: kind.value) == sorted(
        Kind, key=lambda kind: kind.value
    )


@pytest.mark.parametrize("device", ["", "hub", "a/b", "+", "#", "a+", "A", "a b", "a\0", "x" * 65])
def test_topic_of_no_device_cannot_be_built(device: str) -> None:
    with pytest.raises(InvalidName):
        topics.topic("demo", device, Kind.STATUS)


@pytest.mark.parametrize("fleet", ["", "+", "a/b", "-a", "x" * 65])
def test_topic_of_no_fleet_cannot_be_built(fleet: str) -> None:
    with pytest.raises(InvalidName):
        topics.fleet_filter(fleet, Kind.STATUS)


@pytest.mark.parametrize(
    "topic",
    [
        "",
        "/",
        "edgekit/v1/demo/device/pi-1",
        "edgekit/v1/demo/device/pi-1/status/",
        "/edgekit/v1/demo/device/pi-1/status",
        "edgekit/v2/demo/device/pi-1/status",
        "edgekit/v1/demo/hub/pi-1/status",
        "edgekit/v1/demo/device/hub/status",
        "edgekit/v1/demo/device/+/status",
        "edgekit/v1/demo/device//status",
        "edgekit/v1/demo/device/pi-1/STATUS",
        "edgekit/v1/demo/device/pi-1/reboot",
        "edgekit/v1/demo/device/pi-1\n/status",
        "$SYS/broker/version",
        "x" * 65_535,
        "/" * 65_535,
    ],
    ids=lambda topic: repr(topic[:50]),
)
def test_other_topic_is_refused(topic: str) -> None:
    with pytest.raises(MessageRejected):
        topics.parse(topic)
