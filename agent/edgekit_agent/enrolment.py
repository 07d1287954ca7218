"""Enrolment: from a one-time token to an identity of the device's own.

Invariants: the key is made here and never leaves; nothing but the root CA that the token names is
trusted, and the rest follows from it; a device directory is enrolled exactly when it has a
`device.toml`, which is written last. Source: RFC 7030 (EST) sections 4.1 and 4.2; RFC 2986.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import http.client
import ssl
import urllib.parse
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import pkcs7
from cryptography.x509.oid import NameOID

from edgekit_agent import storage
from edgekit_agent.clock import Clock, latest
from edgekit_agent.config import DeviceConfig, render
from edgekit_agent.record import Record, RecordFile
from edgekit_agent.tls import client_context, demand_valid
from edgekit_contract import limits, names
from edgekit_contract.errors import EdgekitError, Misused, Refused
from edgekit_contract.messages import cut
from edgekit_contract.profile import parse_profile

__all__ = ["Token", "enrol", "parse_token"]

_PREFIX: Final = "ek1."
_MAX_TOKEN_CHARS: Final = 4096
_MAX_ANSWER_BYTES: Final = limits.MAX_METADATA_BYTES
_TIMEOUT_S: Final = 30.0
_WORK: Final = ".enrolling"

S = TypeVar("S")


class Token(msgspec.Struct, frozen=True, kw_only=True):
    """What the operator carries from `edgekit devices invite` to the device."""

    url: str
    id: str
    secret: str
    ca: str
    """SHA-256 of the root CA's certificate in DER."""
    root: str
    """SHA-256 of the first TUF root metadata."""


class _Terms(msgspec.Struct, frozen=True, kw_only=True):
    fleet: str
    mqtt_host: str
    mqtt_port: int
    profile_toml: str
    root_json: str


def parse_token(text: str) -> Token:
    """Errors: `Misused`."""
    try:
        if not text.startswith(_PREFIX) or len(text) > _MAX_TOKEN_CHARS:
            raise ValueError("it does not begin with ek1.")
        body = text.removeprefix(_PREFIX)
        token = msgspec.json.decode(
            base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)), type=Token
        )
        names.device_id(token.id)
        if urllib.parse.urlsplit(token.url).scheme != "https":
            raise ValueError("its address is not https")
    except (ValueError, msgspec.DecodeError, EdgekitError) as error:
        raise Misused(
            f"that is not a token ({error}): paste all that `edgekit devices invite` printed."
        ) from error
    return token


def enrol(
    token_text: str, directory: Path, *, profile: Path | None = None, clock: Clock
) -> DeviceConfig:
    """Enrol this device into `directory`; a failure leaves it as it was.

    `profile`: a TOML file to use instead of the profile that the invitation names.
    Errors: `Misused`, `Refused`.
    """
    token = parse_token(token_text)
    if (directory / "device.toml").exists():
        raise Misused(f"{directory} holds an enrolled device: give another --dir.")
    own_profile = None if profile is None else _read_profile(profile)
    created = not directory.exists()
    try:
        storage.create_directory(directory)
        work = directory / _WORK
        storage.remove(work)
        storage.create_directory(work)
        try:
            config = _enrol(token, work, own_profile=own_profile, clock=clock)
            for name in ("tuf", "identity"):
                storage.remove(directory / name)  # of an enrolment that was cut short
            for path in sorted(work.iterdir(), key=lambda p: p.name == "device.toml"):
                storage.move(path, directory / path.name)
        finally:
            storage.remove(work)
    except OSError as error:
        raise Misused(
            f"cannot write {error.filename or directory}: {error.strerror}; check --dir."
        ) from error
    finally:
        if created and directory.is_dir() and not any(directory.iterdir()):
            directory.rmdir()
    return config


def _read_profile(path: Path) -> bytes:
    try:
        text = path.read_bytes()
    except OSError as error:
        raise Misused(
            f"cannot read {path}: {error.strerror}; give --profile a profile's TOML file."
        ) from error
    parse_profile(text, source=str(path))
    return text


def _enrol(token: Token, work: Path, *, own_profile: bytes | None, clock: Clock) -> DeviceConfig:
    authorities = _authorities(token)
    identity = work / "identity"
    storage.create_directory(identity)
    storage.write(identity / "root-ca.pem", _pem(authorities.root))
    hub = _Hub(token, client_context(root=identity / "root-ca.pem"), clock)

    terms = _parsed(hub.get("/.well-known/edgekit/enrolment"), _Terms)
    root_json = terms.root_json.encode()
    if hashlib.sha256(root_json).hexdigest() != token.root:
        raise Refused("the hub gave other TUF root metadata than the token names: do not enrol.")
    profile_toml = own_profile or terms.profile_toml.encode()
    parsed = parse_profile(profile_toml, source="the invitation's profile")

    key = ec.generate_private_key(ec.SECP256R1())
    chain = _certificate(token, key, authorities, hub)
    storage.write(
        identity / "device.key",
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
    )
    storage.write(identity / "device.pem", b"".join(_pem(part) for part in chain))
    config = DeviceConfig(
        id=token.id,
        fleet=names.fleet_name(terms.fleet),
        profile=parsed.name,
        hub_url=token.url,
        mqtt_host=terms.mqtt_host,
        mqtt_port=terms.mqtt_port,
    )
    storage.create_directory(work / "tuf")
    storage.write(work / "tuf" / "root.json", root_json)
    storage.write(work / "profile.toml", profile_toml)
    # the authority has signed this time: a clock that stands before it is wrong
    RecordFile(work).save(Record(time_floor=latest(chain[0].not_valid_before_utc)))
    storage.write(work / "device.toml", render(config).encode())
    return config


@dataclass(frozen=True, kw_only=True)
class _Authorities:
    root: x509.Certificate
    issuing: tuple[x509.Certificate, ...]


def _authorities(token: Token) -> _Authorities:
    """The fleet's CA certificates; the connection is not trusted, the token's digest is."""
    unverified = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    unverified.check_hostname, unverified.verify_mode = False, ssl.CERT_NONE
    found = _certificates(
        _Hub(token, unverified, None).get("/.well-known/est/cacerts", secret=False)
    )
    for certificate in found:
        if certificate.fingerprint(hashes.SHA256()).hex() == token.ca:
            rest = tuple(c for c in found if c != certificate)
            return _Authorities(root=certificate, issuing=rest)
    raise Refused(
        f"whoever answers at {token.url} is not the hub that made the token: "
        "check the address and ask for a new invitation."
    )


def _certificate(
    token: Token, key: ec.EllipticCurvePrivateKey, authorities: _Authorities, hub: _Hub
) -> list[x509.Certificate]:
    """The device's certificate and the one that issued it."""
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, token.id)]))
        .sign(key, hashes.SHA256())
    )
    der = request.public_bytes(serialization.Encoding.DER)
    answer = hub.post(
        "/.well-known/est/simpleenroll", base64.encodebytes(der), "application/pkcs10"
    )
    ours = next((c for c in _certificates(answer) if c.public_key() == key.public_key()), None)
    names_found = ours.subject.get_attributes_for_oid(NameOID.COMMON_NAME) if ours else []
    if ours is None or [name.value for name in names_found] != [token.id]:
        raise Refused("the hub answered with a certificate that is not this device's.")
    for issuer in (*authorities.issuing, authorities.root):
        if _issued(ours, issuer) and (
            issuer == authorities.root or _issued(issuer, authorities.root)
        ):
            return [ours] if issuer == authorities.root else [ours, issuer]
    raise Refused("the hub's certificate does not come from the fleet's root: do not enrol.")


def _issued(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


class _Hub:
    """The hub's HTTPS side. `clock` None: its certificate is not looked at."""

    def __init__(self, token: Token, context: ssl.SSLContext, clock: Clock | None) -> None:
        self._token, self._context, self._clock = token, context, clock

    def get(self, path: str, *, secret: bool = True) -> bytes:
        return self._ask("GET", path, None, {}, secret=secret)

    def post(self, path: str, body: bytes, content_type: str) -> bytes:
        headers = {"Content-Type": content_type, "Content-Transfer-Encoding": "base64"}
        return self._ask("POST", path, body, headers, secret=True)

    def _ask(
        self, method: str, path: str, body: bytes | None, headers: dict[str, str], *, secret: bool
    ) -> bytes:
        url = urllib.parse.urlsplit(self._token.url)
        if secret:
            credentials = f"{self._token.id}:{self._token.secret}".encode()
            headers["Authorization"] = "Basic " + base64.b64encode(credentials).decode()
        connection = http.client.HTTPSConnection(
            url.hostname or "", url.port, timeout=_TIMEOUT_S, context=self._context
        )
        try:
            connection.connect()
            if self._clock is not None and isinstance(connection.sock, ssl.SSLSocket):
                demand_valid(connection.sock, now=latest(self._clock.now()))
            connection.request(method, url.path.rstrip("/") + path, body, headers)
            response = connection.getresponse()
            answer = response.read(_MAX_ANSWER_BYTES + 1)
        except ssl.SSLError as error:
            raise Refused(
                f"{self._token.url} cannot prove that it is this fleet's hub: {error}."
            ) from error
        except (OSError, http.client.HTTPException) as error:
            raise Refused(
                f"the hub at {self._token.url} does not answer ({error}): "
                "is it running, and can this device reach it?"
            ) from error
        finally:
            connection.close()
        if response.status == http.HTTPStatus.UNAUTHORIZED:
            raise Refused(
                "the hub does not know this token (any more): "
                "ask for a new one with `edgekit devices invite`."
            )
        if response.status != http.HTTPStatus.OK or len(answer) > _MAX_ANSWER_BYTES:
            detail = cut(answer[: limits.KIB].decode(errors="replace").strip())
            raise Refused(f"the hub answered {response.status} to enrolment: {detail}")
        return answer


def _parsed(answer: bytes, kind: type[S]) -> S:
    try:
        return msgspec.json.decode(answer, type=kind)
    except msgspec.DecodeError as error:
        raise Refused(f"the hub's answer cannot be read ({error}): update this agent.") from error


def _certificates(answer: bytes) -> list[x509.Certificate]:
    """Of a base64 certs-only PKCS#7 message."""
    try:
        return pkcs7.load_der_pkcs7_certificates(base64.b64decode(b"".join(answer.split())))
    except (ValueError, binascii.Error) as error:
        raise Refused(f"the hub's certificates cannot be read: {error}.") from error


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)
