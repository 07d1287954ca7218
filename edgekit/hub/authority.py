"""The fleet's certificate authorities: a root (offline), an issuing CA (at the hub), and leaves.

Invariants: all keys are P-256. A leaf names one common name, which the broker takes as user name;
device certificates serve clients only and the server's serves servers only, so that no device can
pose as the hub or the broker. What a CSR asks for, beyond its public key, is ignored.
Sources: RFC 5280 sections 4.2.1.3, 4.2.1.9, 4.2.1.12; RFC 2986.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from edgekit.release.keys import PrivateKey, load_key
from edgekit_contract import names
from edgekit_contract.errors import Refused

__all__ = [
    "Authority",
    "CsrRejected",
    "fingerprint",
    "load_authority",
    "new_issuing_authority",
    "new_p256_key",
    "new_root_authority",
    "pem",
    "public_key",
]

ROOT_LIFE: Final = timedelta(days=20 * 365)
ISSUING_LIFE: Final = timedelta(days=10 * 365)
SERVER_LIFE: Final = timedelta(days=5 * 365)
DEVICE_LIFE: Final = timedelta(days=2 * 365)
_COMMON_NAME_CHARS: Final = 64
BACKDATE: Final = timedelta(hours=1)
"""A certificate is valid from before it was made: clocks of hub and broker differ."""

_SIGNING: Final = x509.KeyUsage(
    digital_signature=True,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=False,
    crl_sign=False,
    encipher_only=False,
    decipher_only=False,
)
_CERTIFYING: Final = x509.KeyUsage(
    digital_signature=False,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=True,
    crl_sign=True,
    encipher_only=False,
    decipher_only=False,
)


class CsrRejected(Refused):
    """A certificate signing request that is malformed, or asks for another's name."""


@dataclass(frozen=True, kw_only=True)
class Authority:
    """A CA that can sign."""

    certificate: x509.Certificate
    key: PrivateKey

    def server(
        self, hosts: Sequence[str], key: ec.EllipticCurvePublicKey, *, now: datetime
    ) -> x509.Certificate:
        """A server's certificate for host names and addresses."""
        reached_by = x509.SubjectAlternativeName([_general_name(host) for host in hosts])
        usage = ExtendedKeyUsageOID.SERVER_AUTH
        leaf = self._leaf(hosts[0], key, usage=usage, now=now, life=SERVER_LIFE)
        return self._sign(leaf.add_extension(reached_by, critical=False))

    def hub(self, key: ec.EllipticCurvePublicKey, *, now: datetime) -> x509.Certificate:
        """The hub's own client certificate."""
        return self._client(names.HUB, key, now=now, life=SERVER_LIFE)

    def device(self, csr_der: bytes, device: str, *, now: datetime) -> x509.Certificate:
        """A device's client certificate from its PKCS#10 request. Errors: `CsrRejected`."""
        key = _requested_key(csr_der, names.device_id(device))
        return self._client(device, key, now=now, life=DEVICE_LIFE)

    def _client(
        self, name: str, key: ec.EllipticCurvePublicKey, *, now: datetime, life: timedelta
    ) -> x509.Certificate:
        usage = ExtendedKeyUsageOID.CLIENT_AUTH
        return self._sign(self._leaf(name, key, usage=usage, now=now, life=life))

    def _leaf(
        self,
        name: str,
        key: ec.EllipticCurvePublicKey,
        *,
        usage: x509.ObjectIdentifier,
        now: datetime,
        life: timedelta,
    ) -> x509.CertificateBuilder:
        not_after = min(now + life, self.certificate.not_valid_after_utc)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:_COMMON_NAME_CHARS])])
        return (
            _builder(subject, key, self.certificate, now=now, not_after=not_after)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_SIGNING, critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        )

    def _sign(self, builder: x509.CertificateBuilder) -> x509.Certificate:
        return builder.sign(self.key.private, hashes.SHA256())


def new_p256_key() -> PrivateKey:
    return PrivateKey(ec.generate_private_key(ec.SECP256R1()))


def new_root_authority(fleet: str, *, now: datetime) -> Authority:
    """A self-signed CA that may sign issuing CAs."""
    return _new_authority(f"{fleet} root CA", None, path_length=1, now=now, life=ROOT_LIFE)


def new_issuing_authority(fleet: str, root: Authority, *, now: datetime) -> Authority:
    """A CA below `root` that may sign leaves only."""
    return _new_authority(f"{fleet} issuing CA", root, path_length=0, now=now, life=ISSUING_LIFE)


def load_authority(certificate: Path, key: Path) -> Authority:
    """Read a CA whose key has no passphrase. Errors: those of `load_key`; `OSError`."""
    return Authority(
        certificate=x509.load_pem_x509_certificate(certificate.read_bytes()),
        key=load_key(key, None),
    )


def pem(*chain: x509.Certificate) -> bytes:
    return b"".join(c.public_bytes(serialization.Encoding.PEM) for c in chain)


def fingerprint(certificate: x509.Certificate) -> str:
    """SHA-256 of the DER certificate, in hex."""
    return certificate.fingerprint(hashes.SHA256()).hex()


def _new_authority(
    title: str, parent: Authority | None, *, path_length: int, now: datetime, life: timedelta
) -> Authority:
    key = new_p256_key()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, title[:_COMMON_NAME_CHARS])])
    issuer = parent.certificate if parent is not None else None
    builder = (
        _builder(name, public_key(key), issuer, now=now, not_after=now + life)
        .add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
        .add_extension(_CERTIFYING, critical=True)
    )
    signer = parent.key if parent is not None else key
    return Authority(certificate=builder.sign(signer.private, hashes.SHA256()), key=key)


def public_key(key: PrivateKey) -> ec.EllipticCurvePublicKey:
    """The public key of a P-256 private key."""
    public = key.private.public_key()
    if not isinstance(public, ec.EllipticCurvePublicKey):
        raise RuntimeError("certificates of a fleet are for P-256 keys")
    return public


def _builder(
    subject: x509.Name,
    key: ec.EllipticCurvePublicKey,
    issuer: x509.Certificate | None,
    *,
    now: datetime,
    not_after: datetime,
) -> x509.CertificateBuilder:
    if issuer is None:
        issuer_name, issuer_id = subject, x509.AuthorityKeyIdentifier.from_issuer_public_key(key)
    else:
        issuer_name = issuer.subject
        issuer_id = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(
            issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        )
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer_name)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATE)
        .not_valid_after(not_after)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(issuer_id, critical=False)
    )


def _requested_key(csr_der: bytes, device: str) -> ec.EllipticCurvePublicKey:
    try:
        csr = x509.load_der_x509_csr(csr_der)
        sound = csr.is_signature_valid
        key = csr.public_key()
        common_names = [
            name.value for name in csr.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        ]
    except (ValueError, UnsupportedAlgorithm) as error:
        raise CsrRejected("the request is not PKCS#10: send a DER request in base64.") from error
    if not sound:
        raise CsrRejected("the request is not signed by its own key: make it again.")
    if common_names != [device]:
        raise CsrRejected(f"the request must have the one common name {device}.")
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise CsrRejected("the request must be for a P-256 key.")
    return key


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
