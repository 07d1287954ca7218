"""Fleets for tests: a real fleet directory on free ports, and identities of its devices."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import NameOID

from edgekit.hub import authority
from edgekit.hub.fleet import Fleet, FleetSettings, init_fleet
from edgekit.release.keys import PrivateKey, load_key
from edgekit.release.releases import Release

WAIT_S = 30.0


class Identity(NamedTuple):
    """Files of a TLS client."""

    certificate: Path
    key: Path
    root_ca: Path


def utc_now() -> datetime:
    return datetime.now(timezone.utc)


def free_ports(count: int) -> list[int]:
    """Ports that are free now, all different."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def make_fleet(directory: Path, *, now: datetime | None = None) -> Fleet:
    """A fleet named `lab` on loopback, its offline keys without passphrase."""
    mqtt, https, web = free_ports(3)
    settings = FleetSettings(
        name="lab", hosts=("localhost",), mqtt_port=mqtt, https_port=https, web_port=web
    )
    return init_fleet(directory, settings, passphrase=lambda: None, now=now or utc_now())


def csr(common_name: str, key: PrivateKey) -> bytes:
    """A DER PKCS#10 request."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject)
    signed = request.sign(key.private, hashes.SHA256())
    return signed.public_bytes(serialization.Encoding.DER)


def identity(fleet: Fleet, device: str, directory: Path) -> Identity:
    """What enrolment would have left on a device."""
    key = authority.new_p256_key()
    certificate = fleet.issuing_authority().device(csr(device, key), device, now=utc_now())
    return _written(directory, device, authority.pem(certificate), key, fleet.root_ca)


def stranger(fleet: Fleet, device: str, directory: Path) -> Identity:
    """A device's certificate by an authority that has the fleet's names, and not its keys."""
    root = authority.new_root_authority(fleet.name, now=utc_now())
    issuing = authority.new_issuing_authority(fleet.name, root, now=utc_now())
    key = authority.new_p256_key()
    certificate = issuing.device(csr(device, key), device, now=utc_now())
    chain = authority.pem(certificate, issuing.certificate, root.certificate)
    return _written(directory, f"stranger-{device}", chain, key, fleet.root_ca)


def hub_identity(fleet: Fleet) -> Identity:
    return Identity(fleet.hub, fleet.hub_key, fleet.root_ca)


def publish_bundles(fleet: Fleet, *bundles: Path, now: datetime | None = None) -> Release:
    """Add bundles of one release with the fleet's own targets key."""
    key = load_key(fleet.tuf_targets_key, None)
    (release,) = fleet.repository.add_release(bundles, targets_key=key, now=now or utc_now())
    return release


def eventually(true: Callable[[], bool], *, timeout_s: float = WAIT_S) -> None:
    """Wait until `true()`; fail when that takes too long."""
    ends_at = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < ends_at, f"not within {timeout_s} s"
        time.sleep(0.02)


def _written(directory: Path, name: str, chain: bytes, key: PrivateKey, root_ca: Path) -> Identity:
    directory.mkdir(parents=True, exist_ok=True)
    found = Identity(directory / f"{name}.pem", directory / f"{name}.key", root_ca)
    found.certificate.write_bytes(chain)
    found.key.write_bytes(key.private_pem(None))
    return found
