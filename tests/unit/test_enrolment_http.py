"""Enrolment as a device speaks it: raw HTTPS requests to the real application."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import http.client
import json
import sqlite3
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import pytest
import uvicorn
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from fleets import csr, make_fleet, utc_now

import edgekit_profiles
from edgekit.hub import authority, database, orders
from edgekit.hub.enrolment import MAX_CSR_BYTES, create_enrolment
from edgekit.hub.fleet import Fleet
from edgekit.hub.store import Store, open_store
from edgekit.release.keys import PrivateKey


class Lab(NamedTuple):
    fleet: Fleet
    store: Store
    clock: list[datetime]


class Answer(NamedTuple):
    status: int
    headers: http.client.HTTPMessage
    body: bytes


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    fleet = make_fleet(tmp_path_factory.mktemp("enrolment") / "fleet")
    store = open_store(fleet.database)
    clock = [utc_now()]
    with _served(fleet, store, clock):
        yield Lab(fleet, store, clock)
    store.close()


@contextmanager
def _served(fleet: Fleet, store: Store, clock: list[datetime]) -> Iterator[None]:
    config = uvicorn.Config(
        create_enrolment(fleet, store.registry, now=lambda: clock[0]),
        host="127.0.0.1",
        port=fleet.settings.https_port,
        ssl_certfile=str(fleet.server),
        ssl_keyfile=str(fleet.server_key),
        log_config=None,
        lifespan="off",
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()))
    thread.start()
    while not server.started:
        thread.join(0.02)
        assert thread.is_alive()
    yield
    server.should_exit = True
    thread.join(30)
    assert not thread.is_alive()


def ask(
    lab: Lab,
    method: str,
    path: str,
    *,
    login: str | None = None,
    authorization: str | None = None,
    body: bytes | None = None,
) -> Answer:
    context = ssl.create_default_context(cafile=str(lab.fleet.root_ca))
    port = lab.fleet.settings.https_port
    connection = http.client.HTTPSConnection("localhost", port, context=context, timeout=30)
    headers = {"Content-Type": "application/pkcs10"} if body is not None else {}
    if login is not None:
        authorization = "Basic " + base64.b64encode(login.encode()).decode()
    if authorization is not None:
        headers["Authorization"] = authorization
    try:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        return Answer(response.status, response.msg, response.read())
    finally:
        connection.close()


def invite(lab: Lab, device: str, *, life: timedelta = timedelta(hours=1)) -> dict[str, str]:
    invited = orders.invite(
        lab.fleet,
        lab.store,
        device=device,
        profile_toml=edgekit_profiles.text("demo-small"),
        life=life,
        now=lab.clock[0],
    )
    prefix, _, rest = invited.token.partition(".")
    assert prefix == "ek1"
    token: dict[str, str] = json.loads(base64.urlsafe_b64decode(rest))
    return token


def login_of(token: dict[str, str]) -> str:
    return f"{token['id']}:{token['secret']}"


def enroll(lab: Lab, login: str | None, request: bytes) -> Answer:
    body = base64.encodebytes(request)
    return ask(lab, "POST", "/.well-known/est/simpleenroll", login=login, body=body)


def certificates(answer: Answer) -> list[x509.Certificate]:
    assert answer.headers["Content-Type"] == "application/pkcs7-mime; smime-type=certs-only"
    assert answer.headers["Content-Transfer-Encoding"] == "base64"
    return pkcs7.load_der_pkcs7_certificates(base64.b64decode(answer.body))


def test_cacerts_holds_the_root_that_the_token_names(lab: Lab) -> None:
    token = invite(lab, "pi-ca")
    found = certificates(ask(lab, "GET", "/.well-known/est/cacerts"))
    prints = [hashlib.sha256(c.public_bytes(Encoding.DER)).hexdigest() for c in found]
    assert token["ca"] in prints
    assert len(found) == 2


def test_the_terms_are_what_the_token_promises(lab: Lab) -> None:
    token = invite(lab, "pi-terms")
    answer = ask(lab, "GET", "/.well-known/edgekit/enrolment", login=login_of(token))
    assert answer.status == 200
    terms = json.loads(answer.body)
    assert hashlib.sha256(terms["root_json"].encode()).hexdigest() == token["root"]
    assert terms["profile_toml"].encode() == edgekit_profiles.text("demo-small")
    settings = lab.fleet.settings
    assert (terms["fleet"], terms["mqtt_host"], terms["mqtt_port"]) == (
        "lab",
        "localhost",
        settings.mqtt_port,
    )


def test_a_token_gets_one_client_certificate_for_the_devices_own_key(lab: Lab) -> None:
    token, key = invite(lab, "pi-1"), authority.new_p256_key()
    answer = enroll(lab, login_of(token), csr("pi-1", key))
    assert answer.status == 200
    (certificate,) = certificates(answer)
    assert certificate.public_key() == key.private.public_key()
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    assert [name.value for name in names] == ["pi-1"]
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    basic = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    assert basic.critical
    assert not basic.value.ca
    certificate.verify_directly_issued_by(lab.fleet.issuing_authority().certificate)
    row = lab.store.registry.device("pi-1")
    assert row is not None
    assert row.profile == "demo-small"


def test_a_used_token_is_worth_nothing(lab: Lab) -> None:
    token = invite(lab, "pi-used")
    request = csr("pi-used", authority.new_p256_key())
    assert enroll(lab, login_of(token), request).status == 200
    assert enroll(lab, login_of(token), request).status == 401
    terms = ask(lab, "GET", "/.well-known/edgekit/enrolment", login=login_of(token))
    assert terms.status == 401


def test_of_many_at_once_one_token_serves_one(lab: Lab) -> None:
    token = invite(lab, "pi-race")
    answers: list[int] = []

    def race() -> None:
        answers.append(
            enroll(lab, login_of(token), csr("pi-race", authority.new_p256_key())).status
        )

    threads = [threading.Thread(target=race) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(answers) == [200] + [401] * 7


def test_an_expired_token_is_worth_nothing(lab: Lab) -> None:
    token = invite(lab, "pi-late", life=timedelta(minutes=5))
    lab.clock[0] += timedelta(minutes=6)
    assert enroll(lab, login_of(token), csr("pi-late", authority.new_p256_key())).status == 401
    assert lab.store.registry.device("pi-late") is None


def test_a_new_invitation_voids_the_one_before_and_lets_a_device_enrol_again(lab: Lab) -> None:
    first = invite(lab, "pi-again")
    second = invite(lab, "pi-again")
    request = csr("pi-again", authority.new_p256_key())
    assert enroll(lab, login_of(first), request).status == 401
    assert enroll(lab, login_of(second), request).status == 200
    third = invite(lab, "pi-again")
    assert enroll(lab, login_of(third), request).status == 200


@pytest.mark.parametrize(
    "login",
    [None, "pi-2:wrong", "unknown:secret", "", ":", "no colon", "pi-2:", "hub:x", "é:ü", "pi-2:\0"],
)
def test_who_has_no_token_is_told_nothing(lab: Lab, login: str | None) -> None:
    invite(lab, "pi-2")
    answer = ask(lab, "GET", "/.well-known/edgekit/enrolment", login=login)
    assert answer.status == 401
    assert answer.headers["WWW-Authenticate"].startswith("Basic")
    assert enroll(lab, login, csr("pi-2", authority.new_p256_key())).status == 401
    assert lab.store.registry.device("pi-2") is None


@pytest.mark.parametrize(
    "authorization",
    ["Basic", "Basic é", "Basic \xff\xfe", "Basic ====", "Basic cGk", "é", "Bearer x"],
)
def test_an_authorization_that_is_none_is_refused_like_a_wrong_one(
    lab: Lab, authorization: str
) -> None:
    terms = "/.well-known/edgekit/enrolment"
    assert ask(lab, "GET", terms, authorization=authorization).status == 401
    path = "/.well-known/est/simpleenroll"
    assert ask(lab, "POST", path, authorization=authorization, body=b"x").status == 401


def test_a_store_that_another_process_holds_is_told_as_unavailable(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(database, "BUSY_TIMEOUT_S", 0.05)
    fleet = make_fleet(tmp_path / "fleet")
    store = open_store(fleet.database)
    busy = Lab(fleet, store, [utc_now()])
    login, request = login_of(invite(busy, "pi-1")), csr("pi-1", authority.new_p256_key())
    other = sqlite3.connect(fleet.database)
    with _served(fleet, store, busy.clock):
        other.execute("BEGIN IMMEDIATE")
        assert enroll(busy, login, request).status == 503
        other.close()
        assert enroll(busy, login, request).status == 200
    store.close()


def test_a_token_of_one_device_is_not_anothers(lab: Lab) -> None:
    token = invite(lab, "pi-3")
    invite(lab, "pi-4")
    answer = enroll(lab, f"pi-4:{token['secret']}", csr("pi-4", authority.new_p256_key()))
    assert answer.status == 401


def _csr_with(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | None, *names: str) -> bytes:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name) for name in names])
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    if key is None:
        signed = builder.sign(ed25519.Ed25519PrivateKey.generate(), None)
    else:
        signed = builder.sign(key, hashes.SHA256())
    return signed.public_bytes(Encoding.DER)


P256 = ec.generate_private_key(ec.SECP256R1())


@pytest.mark.parametrize(
    "request_der",
    [
        b"",
        b"not a request",
        _csr_with(P256, "pi-other"),
        _csr_with(P256, "hub"),
        _csr_with(P256),
        _csr_with(P256, "pi-bad", "hub"),
        _csr_with(ec.generate_private_key(ec.SECP384R1()), "pi-bad"),
        _csr_with(rsa.generate_private_key(65537, 2048), "pi-bad"),
        _csr_with(None, "pi-bad"),
        csr("pi-bad", PrivateKey(P256))[:-8] + b"12345678",
        b"x" * (MAX_CSR_BYTES + 1),
    ],
    # keys are new each time, and processes side by side must agree on names
    ids="empty text another-device the-hub nobody two-names p384 rsa ed25519 unsigned long".split(),
)
def test_a_bad_request_issues_nothing_and_leaves_the_token_open(
    lab: Lab, request_der: bytes
) -> None:
    token = invite(lab, "pi-bad")
    answer = enroll(lab, login_of(token), request_der)
    assert answer.status == 400
    assert answer.body.endswith(b".\n")
    assert enroll(lab, login_of(token), csr("pi-bad", authority.new_p256_key())).status == 200


def test_what_is_not_base64_is_a_bad_request(lab: Lab) -> None:
    token = invite(lab, "pi-raw")
    body = csr("pi-raw", authority.new_p256_key())
    path = "/.well-known/est/simpleenroll"
    assert ask(lab, "POST", path, login=login_of(token), body=body).status == 400


def test_what_a_request_asks_for_beyond_its_key_is_ignored(lab: Lab) -> None:
    token = invite(lab, "pi-greedy")
    builder = x509.CertificateSigningRequestBuilder().subject_name(
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "pi-greedy")])
    )
    for extension in (
        x509.BasicConstraints(ca=True, path_length=None),
        x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]),
        x509.SubjectAlternativeName([x509.DNSName("localhost")]),
    ):
        builder = builder.add_extension(extension, critical=False)
    request = builder.sign(P256, hashes.SHA256()).public_bytes(Encoding.DER)
    (certificate,) = certificates(enroll(lab, login_of(token), request))
    extensions = certificate.extensions
    assert not extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert list(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [
        ExtendedKeyUsageOID.CLIENT_AUTH
    ]
    with pytest.raises(x509.ExtensionNotFound):
        extensions.get_extension_for_class(x509.SubjectAlternativeName)


def test_the_secret_is_not_in_the_store(lab: Lab, tmp_path: Path) -> None:
    token = invite(lab, "pi-secret")
    files = [lab.fleet.database, *lab.fleet.directory.glob("hub.db-*")]
    assert files
    assert not any(token["secret"].encode() in path.read_bytes() for path in files)


@pytest.mark.parametrize(("method", "path"), [("GET", "/"), ("GET", "/docs"), ("PUT", "/x")])
def test_there_is_nothing_else(lab: Lab, method: str, path: str) -> None:
    assert ask(lab, method, path).status == 404
