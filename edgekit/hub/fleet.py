"""A fleet directory: how it is laid out, read, and made.

Invariant: a fleet directory is made whole or not at all, and never over another.
"""

from __future__ import annotations

import os
import pwd
import re
import secrets
import shutil
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Final

import msgspec

from edgekit.hub import authority, broker
from edgekit.hub.authority import Authority
from edgekit.release.keys import KeyUnreadable, PrivateKey, new_key, read_public_key
from edgekit.release.repository import Repository, init_repository
from edgekit.release.storage import write_file
from edgekit_contract import names
from edgekit_contract.errors import Misused, Refused
from edgekit_contract.trust import PublicKey

__all__ = [
    "HTTPS_PORT",
    "MQTT_PORT",
    "WEB_PORT",
    "Fleet",
    "FleetExists",
    "FleetSettings",
    "init_fleet",
    "open_fleet",
]

MQTT_PORT: Final = 8883
HTTPS_PORT: Final = 8443
WEB_PORT: Final = 8080
LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")
_HOST: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.:-]{0,251}[A-Za-z0-9])?\Z|::1\Z")


class FleetExists(Refused):
    def __init__(self, path: Path) -> None:
        super().__init__(f"{path} exists and a fleet is never made over it: name a new directory.")


class FleetSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`fleet.toml`."""

    name: str
    hosts: tuple[str, ...]
    """Names and addresses of the hub's machine; devices are told the first."""
    mqtt_port: int = MQTT_PORT
    https_port: int = HTTPS_PORT
    """Enrolment."""
    web_port: int = WEB_PORT
    """The dashboard, on loopback."""
    broker_host: str = "localhost"
    """Where the hub itself finds the broker; one of the names in the server certificate."""
    build_keys: tuple[str, ...] = ()
    """Public keys (PEM files; relative to the fleet directory) of which one must have signed what
    is released. None: anybody's bundles may be released by who holds the targets key."""

    @property
    def address(self) -> str | None:
        """Where servers listen: loopback where no other host is named, else everywhere (None)."""
        return "127.0.0.1" if set(self.hosts) <= set(LOOPBACK) else None


class Fleet:
    """An open fleet directory: its settings, and where everything is."""

    def __init__(self, directory: Path, settings: FleetSettings) -> None:
        self.directory, self.settings = directory, settings
        self.offline = directory / "offline"
        self.root_ca_key = self.offline / "root-ca.key"
        self.tuf_root_key = self.offline / "tuf-root.key"
        self.tuf_targets_key = self.offline / "tuf-targets.key"
        ca = directory / "ca"
        self.root_ca = ca / "root-ca.pem"
        self.issuing_ca = ca / "issuing-ca.pem"
        self.issuing_ca_key = ca / "issuing-ca.key"
        self.chain = ca / "chain.pem"
        self.server, self.server_key = ca / "server.pem", ca / "server.key"
        self.hub, self.hub_key = ca / "hub.pem", ca / "hub.key"
        self.mosquitto_conf = directory / "broker" / "mosquitto.conf"
        self.acl = directory / "broker" / "acl"
        self.database = directory / "hub.db"
        self.hub_lock = directory / "hub.lock"

    @property
    def name(self) -> str:
        return self.settings.name

    @property
    def repository(self) -> Repository:
        return Repository(self.directory)

    def issuing_authority(self) -> Authority:
        return authority.load_authority(self.issuing_ca, self.issuing_ca_key)

    def build_keys(self) -> tuple[PublicKey, ...]:
        """The keys that must vouch for what is released. Errors: `Misused`."""
        keys = []
        for name in self.settings.build_keys:
            path = self.directory / name
            try:
                keys.append(read_public_key(path))
            except KeyUnreadable as error:
                raise Misused(f"{error} It is one of build_keys in fleet.toml.") from error
        return tuple(keys)


def open_fleet(directory: Path) -> Fleet:
    """Read a fleet directory's settings. Errors: `Misused`."""
    path = directory / "fleet.toml"
    try:
        settings = msgspec.toml.decode(path.read_bytes(), type=FleetSettings)
    except OSError as error:
        raise Misused(
            f"{directory} is not a fleet directory ({error.strerror}: fleet.toml): "
            "make one with `edgekit fleet init`."
        ) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Misused(f"{path} is not sound: {error}; correct it.") from error
    return Fleet(directory.resolve(), check_settings(settings))


def check_settings(settings: FleetSettings) -> FleetSettings:
    """Return `settings` if their names, hosts and ports can be used, else raise `Misused`."""
    names.fleet_name(settings.name)
    if not settings.hosts:
        raise Misused("a fleet needs a host: give the name by which devices reach the hub.")
    for host in (*settings.hosts, settings.broker_host):
        if not _HOST.match(host):
            raise Misused(f"{host[:80]!r} is not a host name or address: give one without a port.")
    ports = (settings.mqtt_port, settings.https_port, settings.web_port)
    if not all(0 < port < 65536 for port in ports) or len(set(ports)) != len(ports):
        raise Misused(f"{', '.join(map(str, ports))} are no three ports: choose 1 to 65535.")
    return settings


def init_fleet(
    directory: Path,
    settings: FleetSettings,
    *,
    passphrase: Callable[[], bytes | None],
    now: datetime,
) -> Fleet:
    """Make a fleet directory: authorities, TUF repository, broker configuration.

    `passphrase` is asked, once all else is known to be right, for what encrypts the keys in
    `offline/`; None: nothing. Errors: `FleetExists`, `Misused`, those of `passphrase`.
    """
    check_settings(settings)
    directory = directory.resolve()
    if directory.exists():
        raise FleetExists(directory)
    secret = passphrase()
    scratch = directory.with_name(f".{directory.name}.{secrets.token_hex(4)}")
    try:
        try:
            scratch.mkdir(mode=0o700, parents=True)
            _fill(Fleet(scratch, settings), Fleet(directory, settings), secret, now)
            scratch.rename(directory)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    except OSError as error:
        if directory.exists():
            raise FleetExists(directory) from error
        raise Misused(
            f"cannot make {directory}: {error.strerror}; choose another directory."
        ) from error
    return Fleet(directory, settings)


def _fill(fleet: Fleet, final: Fleet, passphrase: bytes | None, now: datetime) -> None:
    """Write all of `fleet`; the broker's configuration names the paths of `final`."""
    settings = fleet.settings
    for folder in (fleet.offline, fleet.root_ca.parent, fleet.acl.parent):
        folder.mkdir(mode=0o700)
    root = authority.new_root_authority(settings.name, now=now)
    issuing = authority.new_issuing_authority(settings.name, root, now=now)
    _write_key(fleet.root_ca_key, root.key, passphrase)
    _write_key(fleet.issuing_ca_key, issuing.key, None)
    write_file(fleet.root_ca, authority.pem(root.certificate))
    write_file(fleet.issuing_ca, authority.pem(issuing.certificate))
    write_file(fleet.chain, authority.pem(issuing.certificate, root.certificate))
    server_key, hub_key = authority.new_p256_key(), authority.new_p256_key()
    hosts = list(dict.fromkeys((*settings.hosts, *LOOPBACK)))
    server = issuing.server(hosts, authority.public_key(server_key), now=now)
    hub = issuing.hub(authority.public_key(hub_key), now=now)
    for path, certificate in ((fleet.server, server), (fleet.hub, hub)):
        write_file(path, authority.pem(certificate, issuing.certificate))
    _write_key(fleet.server_key, server_key, None)
    _write_key(fleet.hub_key, hub_key, None)
    init_repository(
        fleet.directory,
        root_keys=[new_key(fleet.tuf_root_key, passphrase)],
        targets_keys=[new_key(fleet.tuf_targets_key, passphrase)],
        now=now,
    )
    conf = broker.configuration(
        port=settings.mqtt_port,
        address=settings.address,
        chain=final.chain,
        certificate=final.server,
        key=final.server_key,
        acl_file=final.acl,
        user=pwd.getpwuid(os.geteuid()).pw_name,
    )
    write_file(fleet.mosquitto_conf, conf.encode())
    write_file(fleet.acl, broker.acl(settings.name).encode(), mode=0o600)
    write_file(fleet.directory / "fleet.toml", _settings_text(settings).encode())


def _write_key(path: Path, key: PrivateKey, passphrase: bytes | None) -> None:
    write_file(path, key.private_pem(passphrase), mode=0o600)


def _settings_text(settings: FleetSettings) -> str:
    # a JSON string or list of strings is a TOML one as well
    hosts = msgspec.json.encode(settings.hosts).decode()
    build_keys = msgspec.json.encode(settings.build_keys).decode()
    return f"""\
# Written by `edgekit fleet init`. Names and ports are also in broker/mosquitto.conf and in the
# server certificate.
name = "{settings.name}"
hosts = {hosts}
mqtt_port = {settings.mqtt_port}
https_port = {settings.https_port}
web_port = {settings.web_port}
# Where the hub itself finds the broker.
broker_host = "{settings.broker_host}"
# Public keys (.pub files) of which one must have signed each bundle that is released; none: any.
build_keys = {build_keys}
"""
