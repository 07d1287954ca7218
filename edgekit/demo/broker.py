"""The demo's broker: mosquitto where it is installed, else one that pip can install.

iotcore serves the same TLS and MQTT 5 on loopback, but asks clients for no certificate and has
no ACL: it is good for a look, and for nothing else.
"""

from __future__ import annotations

import enum
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import msgspec

from edgekit_contract.errors import Refused

__all__ = ["BrokerChoice", "BrokerKind", "NoBroker", "choose_broker", "start_broker"]

_RUMQTTD: Final = """\
id = 0

[router]
id = 0
max_connections = 1000
max_outgoing_packet_count = 200
# every message stays in memory until its segment is full: keep segments small
max_segment_size = 1048576
max_segment_count = 10

[v5.1]
name = "demo"
listen = "127.0.0.1:{port}"
next_connection_delay_ms = 1

[v5.1.tls]
capath = "{ca}"
certpath = "{certificate}"
keypath = "{key}"

[v5.1.connections]
connection_timeout_ms = 60000
max_payload_size = 131072
max_inflight_count = 200
dynamic_filters = true
"""


class NoBroker(Refused):
    """Neither broker is installed."""

    def __init__(self) -> None:
        super().__init__(
            "there is no MQTT broker: apt-get install mosquitto, or pip install 'edgekit[demo]'."
        )


class BrokerKind(enum.Enum):
    """Which broker the demo uses."""

    AUTO = "auto"
    """Mosquitto where it is installed, else iotcore."""
    MOSQUITTO = "mosquitto"
    IOTCORE = "iotcore"


class BrokerChoice(msgspec.Struct, frozen=True, kw_only=True):
    """How to start the broker, and what a newcomer should know of it."""

    title: str
    command: tuple[str, ...]
    remark: str


def choose_broker(fleet: Path, kind: BrokerKind, *, port: int) -> BrokerChoice:
    """How to start a broker for a fleet directory. Errors: `NoBroker`."""
    mosquitto = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin")
    if mosquitto is not None and kind is not BrokerKind.IOTCORE:
        return BrokerChoice(
            title="mosquitto",
            command=(mosquitto, "-c", str(fleet / "broker" / "mosquitto.conf")),
            remark="mutual TLS, and an ACL by device",
        )
    if kind is BrokerKind.MOSQUITTO or importlib.util.find_spec("iotcore") is None:
        raise NoBroker
    configuration = fleet / "broker" / "iotcore.toml"
    configuration.write_text(
        _RUMQTTD.format(
            port=port,
            ca=fleet / "ca" / "root-ca.pem",
            certificate=fleet / "ca" / "server.pem",
            key=fleet / "ca" / "server.key",
        )
    )
    return BrokerChoice(
        title="iotcore",
        command=(sys.executable, "-m", "iotcore", "--config", str(configuration)),
        remark="TLS on loopback, but no client certificates and no ACL: install mosquitto "
        "for anything but a look",
    )


def start_broker(choice: BrokerChoice, log: Path) -> subprocess.Popen[bytes]:
    """Start it; what it says goes to `log`."""
    with log.open("ab") as stream:
        return subprocess.Popen(
            choice.command, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream
        )
