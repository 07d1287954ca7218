"""What mosquitto is told: its configuration and its access list. Pure text.

Invariants: nobody without a certificate of the fleet gets in; a client's user name and client id
are the common name of its certificate; a device may use its own topics and no others.
Source: mosquitto.conf(5) of 2.0.11, the oldest that is supported.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from edgekit_contract import limits, names, topics

__all__ = ["acl", "configuration"]

_FRAME_BYTES: Final = limits.MAX_CHUNK_BYTES + limits.KIB
"""Longest payload: a chunk and its header."""
_PACKET_BYTES: Final = _FRAME_BYTES + 4 * limits.KIB
"""And its topic and properties."""
_QUEUED_MESSAGES: Final = 100_000
_QUEUED_BYTES: Final = 32 * limits.MIB
"""Of one client: what a device that reads nothing may cost the broker."""


def configuration(
    *,
    port: int,
    address: str | None,
    chain: Path,
    certificate: Path,
    key: Path,
    acl_file: Path,
    user: str,
) -> str:
    """`mosquitto.conf`.

    `address` None binds all; `user` is whom a broker becomes that root starts.
    """
    return f"""\
# Written by `edgekit fleet init`.
per_listener_settings true
user {user}

# Hub and devices publish again what they retain whenever they connect; nothing here is a record.
persistence false
# The hub gets all that devices retain at once; mosquitto would drop what is beyond 1,000 messages.
max_queued_messages {_QUEUED_MESSAGES}
max_queued_bytes {_QUEUED_BYTES}
message_size_limit {_FRAME_BYTES}
max_packet_size {_PACKET_BYTES}
persistent_client_expiration 1d
connection_messages false
log_dest stderr
log_type error
log_type warning
log_type notice

listener {port}{f" {address}" if address else ""}
protocol mqtt
cafile {chain}
certfile {certificate}
keyfile {key}
tls_version tlsv1.2
require_certificate true
allow_anonymous false
use_identity_as_username true
# Without this line, a device could end another's session by taking its client id.
use_username_as_clientid true
acl_file {acl_file}
"""


def acl(fleet: str) -> str:
    """The access list: topics of `%u` for devices, one topic of each kind; the hub's own part."""
    lines = ["# Written by `edgekit fleet init`. %u is the common name of the certificate."]
    lines += [f"pattern write {topics.device_filter(fleet, kind)}" for kind in topics.FROM_DEVICE]
    lines += [f"pattern read {topics.device_filter(fleet, kind)}" for kind in topics.TO_DEVICE]
    lines += ["", f"user {names.HUB}"]
    lines += [f"topic read {topics.fleet_filter(fleet, kind)}" for kind in topics.FROM_DEVICE]
    lines += [f"topic write {topics.fleet_filter(fleet, kind)}" for kind in topics.TO_DEVICE]
    return "\n".join(lines) + "\n"
