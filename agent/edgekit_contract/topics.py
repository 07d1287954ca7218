"""MQTT topics, built and parsed only here. Root: `edgekit/v1/<fleet>/device/<id>/<kind>`."""

from __future__ import annotations

import enum
from typing import Final

from edgekit_contract import names
from edgekit_contract.errors import EdgekitError, MessageRejected

__all__ = ["FROM_DEVICE", "TO_DEVICE", "Kind", "device_filter", "fleet_filter", "parse", "topic"]

_ROOT: Final = "edgekit/v1"


class Kind(enum.Enum):
    STATUS = "status"
    REPORTED = "reported"
    HEALTH = "health"
    EVENT = "event"
    FETCH = "fetch"
    DESIRED = "desired"
    ACK = "ack"
    BLOB = "blob"
    BENCH = "bench"
    BENCHED = "benched"


FROM_DEVICE: Final = (
    Kind.STATUS, Kind.REPORTED, Kind.HEALTH, Kind.EVENT, Kind.FETCH, Kind.BENCHED
)  # fmt: skip
TO_DEVICE: Final = (Kind.DESIRED, Kind.ACK, Kind.BLOB, Kind.BENCH)


def topic(fleet: str, device: str, kind: Kind) -> str:
    """The topic of one device and kind."""
    return f"{_ROOT}/{names.fleet_name(fleet)}/device/{names.device_id(device)}/{kind.value}"


def fleet_filter(fleet: str, kind: Kind) -> str:
    """The subscription filter for one kind from every device."""
    return f"{_ROOT}/{names.fleet_name(fleet)}/device/+/{kind.value}"


def device_filter(fleet: str, kind: Kind, *, user: str = "%u") -> str:
    """The pattern of one kind for the ACL of a broker that puts the user name in `%u`."""
    return f"{_ROOT}/{names.fleet_name(fleet)}/device/{user}/{kind.value}"


def parse(value: str) -> tuple[str, str, Kind]:
    """Split a topic into fleet, device id and kind. Errors: `MessageRejected`."""
    parts = value.split("/")
    try:
        root, generation, fleet, device, id_, kind = parts
        if f"{root}/{generation}" != _ROOT or device != "device":
            raise ValueError(value)
        return names.fleet_name(fleet), names.device_id(id_), Kind(kind)
    except (ValueError, EdgekitError) as error:
        raise MessageRejected(f"{value[:100]!r} is not a topic of edgekit.") from error
