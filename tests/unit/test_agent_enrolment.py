"""Enrolment against a hub that tells the truth, and against ones that do not; TLS in 1970."""

from __future__ import annotations

import base64
import hashlib
import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.serialization import pkcs7
from fleets import csr, make_fleet

import edgekit_profiles
from edgekit.hub import authority
from edgekit.hub.authority import Authority
from edgekit.hub.fleet import Fleet
from edgekit_agent import config
from edgekit_agent.__main__ import main
from edgekit_agent.clock import SystemClock
from edgekit_agent.enrolment import enrol, parse_token
from edgekit_agent.record import RecordFile
from edgekit_agent.tls import CertificateEnded, client_context, demand_valid
from edgekit_contract.errors import Misused, Refused

SECRET = "s3cret"


class Wrong:
    """What a hub may lie about."""

    def __init__(self) -> None:
        self.cacerts: list[x509.Certificate] | None = None
        self.root_json: str | None = None
        self.profile_toml: str | None = None
        self.issue: Callable[[bytes], x509.Certificate] | None = None
        self.status = 200
        self.body: bytes | None = None


class Hub:
    """The three requests of enrolment, on loopback."""

    def __init__(self, fleet: Fleet, *, certificate: Path, key: Path) -> None:
        self.fleet, self.wrong = fleet, Wrong()
        self.root = x509.load_pem_x509_certificate(fleet.root_ca.read_bytes())
        self.issuing = fleet.issuing_authority()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub.answer(self, None)

            def do_POST(self) -> None:
                hub.answer(self, self.rfile.read(int(self.headers["Content-Length"])))

            def log_message(self, *arguments: Any) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.server.handle_error = lambda *_: None  # type: ignore[method-assign]
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def token(self, **fields: str) -> str:
        root_json = self.fleet.repository.first_root()
        body = {
            "url": f"https://localhost:{self.server.server_port}",
            "id": "d1",
            "secret": SECRET,
            "ca": self.root.fingerprint(hashes.SHA256()).hex(),
            "root": hashlib.sha256(root_json).hexdigest(),
        } | fields
        return "ek1." + base64.urlsafe_b64encode(json.dumps(body).encode()).decode()

    def answer(self, request: BaseHTTPRequestHandler, body: bytes | None) -> None:
        basic = "Basic " + base64.b64encode(f"d1:{SECRET}".encode()).decode()
        if request.path.endswith("/cacerts"):
            self.send(
                request, 200, _certs(self.wrong.cacerts or [self.issuing.certificate, self.root])
            )
        elif request.headers.get("Authorization") != basic:
            self.send(request, 401, b"no")
        elif self.wrong.status != 200:
            self.send(request, self.wrong.status, b"out of order")
        elif body is None:
            terms = {
                "fleet": "lab",
                "mqtt_host": "localhost",
                "mqtt_port": 8883,
                "profile_toml": self.wrong.profile_toml
                or edgekit_profiles.text("raspberry-pi-5").decode(),
                "root_json": self.wrong.root_json or self.fleet.repository.first_root().decode(),
            }
            self.send(request, 200, self.wrong.body or json.dumps(terms).encode())
        else:
            issue = self.wrong.issue or self.issue
            self.send(request, 200, _certs([issue(base64.b64decode(body))]))

    def issue(self, der: bytes) -> x509.Certificate:
        return self.issuing.device(der, "d1", now=datetime.now(timezone.utc))

    @staticmethod
    def send(request: BaseHTTPRequestHandler, status: int, body: bytes) -> None:
        request.send_response(status)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)


def _certs(certificates: list[x509.Certificate]) -> bytes:
    der = pkcs7.serialize_certificates(certificates, serialization.Encoding.DER)
    return base64.encodebytes(der)


@pytest.fixture
def lab(tmp_path: Path) -> Fleet:
    return make_fleet(tmp_path / "fleet")


@pytest.fixture
def hub(lab: Fleet) -> Iterator[Hub]:
    running = Hub(lab, certificate=lab.server, key=lab.server_key)
    yield running
    running.close()


def join(token: str, directory: Path, **rest: Any) -> config.DeviceConfig:
    return enrol(token, directory, clock=SystemClock(), **rest)


def test_an_enrolled_device_has_an_identity_of_its_own(hub: Hub, tmp_path: Path) -> None:
    device = tmp_path / "var" / "device"
    enrolled = join(hub.token(), device)
    assert (enrolled.id, enrolled.fleet, enrolled.profile) == ("d1", "lab", "raspberry-pi-5")
    assert config.load(device)[0] == enrolled
    chain = x509.load_pem_x509_certificates((device / "identity/device.pem").read_bytes())
    assert chain[1] == hub.issuing.certificate
    key = serialization.load_pem_private_key((device / "identity/device.key").read_bytes(), None)
    assert key.public_key() == chain[0].public_key()
    assert (device / "identity/device.key").stat().st_mode & 0o777 == 0o600
    assert (device / "tuf/root.json").read_bytes() == hub.fleet.repository.first_root()
    assert RecordFile(device).value.time_floor >= chain[0].not_valid_before_utc
    assert not (device / ".enrolling").exists()


def test_a_program_is_told_of_the_enrolment_as_json(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    device = tmp_path / "device"
    assert main(["enroll", hub.token(), "--dir", str(device), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "id": "d1",
        "fleet": "lab",
        "profile": "raspberry-pi-5",
        "dir": str(device),
    }


def test_a_profile_of_ones_own_may_be_given(hub: Hub, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(edgekit_profiles.text("demo-small"))
    assert join(hub.token(), tmp_path / "device", profile=path).profile == "demo-small"


def test_a_profile_that_is_not_there_is_said_before_the_hub_is_asked(
    hub: Hub, tmp_path: Path
) -> None:
    missing = tmp_path / "no.toml"
    with pytest.raises(Misused, match=r"cannot read .*no\.toml.*--profile"):
        join(hub.token(url="https://localhost:1"), tmp_path / "device", profile=missing)
    assert not (tmp_path / "device").exists()


def lie_about_the_root(hub: Hub) -> None:
    hub.wrong.root_json = hub.fleet.repository.first_root().decode() + " "


def lie_about_the_authority(hub: Hub) -> None:
    stranger = authority.new_root_authority("lab", now=datetime.now(timezone.utc))
    hub.wrong.cacerts = [stranger.certificate]


def lie_about_the_profile(hub: Hub) -> None:
    hub.wrong.profile_toml = "name = 3"


def issue_for_another_key(hub: Hub) -> None:
    other = csr("d1", authority.new_p256_key())
    hub.wrong.issue = lambda der: hub.issue(other)


def issue_by_a_stranger(hub: Hub) -> None:
    now = datetime.now(timezone.utc)
    root = authority.new_root_authority("lab", now=now)
    stranger: Authority = authority.new_issuing_authority("lab", root, now=now)
    hub.wrong.issue = lambda der: stranger.device(der, "d1", now=now)


def be_out_of_order(hub: Hub) -> None:
    hub.wrong.status = 503


def talk_nonsense(hub: Hub) -> None:
    hub.wrong.body = b'{"fleet": 3}'


@pytest.mark.parametrize(
    ("lie", "says"),
    [
        (lie_about_the_root, "other TUF root metadata"),
        (lie_about_the_authority, "is not the hub that made the token"),
        (lie_about_the_profile, "is not a profile"),
        (issue_for_another_key, "not this device's"),
        (issue_by_a_stranger, "does not come from the fleet's root"),
        (be_out_of_order, "503"),
        (talk_nonsense, "cannot be read"),
    ],
)
@pytest.mark.parametrize("existing", [False, True])
def test_a_failed_enrolment_says_why_and_leaves_nothing(
    hub: Hub, tmp_path: Path, lie: Callable[[Hub], None], says: str, existing: bool
) -> None:
    device = tmp_path / "device"
    if existing:
        device.mkdir()
    lie(hub)
    with pytest.raises((Refused, Misused), match=says):
        join(hub.token(), device)
    assert device.exists() is existing
    assert not existing or not list(device.iterdir())
    hub.wrong = Wrong()
    join(hub.token(), device)


def test_a_token_that_is_not_known_is_said(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(Refused, match="ask for a new one"):
        join(hub.token(secret="other"), tmp_path / "device")


def test_the_secret_is_not_sent_to_whoever_is_not_the_hub(
    hub: Hub, lab: Fleet, tmp_path: Path
) -> None:
    """The token's fingerprint is checked before anything secret goes out."""
    heard: list[str] = []
    answer = hub.answer

    def listening(request: BaseHTTPRequestHandler, body: bytes | None) -> None:
        heard.append(str(request.headers.get("Authorization")))
        answer(request, body)

    hub.answer = listening  # type: ignore[method-assign]
    with pytest.raises(Refused):
        join(hub.token(ca="00" * 32), tmp_path / "device")
    assert heard == ["None"]


def test_a_hub_that_is_not_there_is_said(tmp_path: Path, hub: Hub) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(Refused, match="does not answer"):
        join(hub.token(url=f"https://localhost:{port}"), tmp_path / "device")


@pytest.mark.parametrize(
    "token",
    ["", "ek1.", "ek1.!!!", "ek2.e30", "ek1.e30", "ek1." + "A" * 10_000],
)
def test_what_is_no_token_is_said(token: str, tmp_path: Path) -> None:
    with pytest.raises(Misused, match="that is not a token"):
        join(token, tmp_path / "device")
    assert not (tmp_path / "device").exists()


def test_a_token_over_plain_http_is_refused(hub: Hub) -> None:
    with pytest.raises(Misused, match="not https"):
        parse_token(hub.token(url="http://localhost:1"))


# --- TLS


def served_by(lab: Fleet, tmp_path: Path, *, now: datetime) -> Hub:
    """A hub whose server certificate was issued at `now`."""
    key = authority.new_p256_key()
    certificate = lab.issuing_authority().server(["localhost"], authority.public_key(key), now=now)
    chain = authority.pem(certificate, lab.issuing_authority().certificate)
    (tmp_path / "server.pem").write_bytes(chain)
    (tmp_path / "server.key").write_bytes(key.private_pem(None))
    return Hub(lab, certificate=tmp_path / "server.pem", key=tmp_path / "server.key")


def connect(hub: Hub, context: ssl.SSLContext, *, now: datetime) -> None:
    port = hub.server.server_port
    with (
        socket.create_connection(("localhost", port), 10) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as sock,
    ):
        demand_valid(sock, now=now)


def test_a_certificate_that_has_ended_is_refused(lab: Fleet, tmp_path: Path) -> None:
    now = datetime.now(timezone.utc)
    hub = served_by(lab, tmp_path, now=now - timedelta(days=3650))
    with pytest.raises(CertificateEnded):
        connect(hub, client_context(root=lab.root_ca), now=now)
    hub.close()


def test_a_certificate_that_begins_later_shows_that_the_clock_is_behind(
    lab: Fleet, tmp_path: Path
) -> None:
    now = datetime.now(timezone.utc)
    hub = served_by(lab, tmp_path, now=now + timedelta(days=30))
    connect(hub, client_context(root=lab.root_ca), now=now)
    hub.close()


def test_another_fleets_root_is_not_trusted(lab: Fleet, hub: Hub, tmp_path: Path) -> None:
    stranger = authority.new_root_authority("lab", now=datetime.now(timezone.utc))
    (tmp_path / "stranger.pem").write_bytes(authority.pem(stranger.certificate))
    context = client_context(root=tmp_path / "stranger.pem")
    with pytest.raises(ssl.SSLCertVerificationError):
        connect(hub, context, now=datetime.now(timezone.utc))


def test_the_host_name_is_looked_at(lab: Fleet, hub: Hub) -> None:
    context = client_context(root=lab.root_ca)
    port = hub.server.server_port
    with (
        socket.create_connection(("localhost", port), 10) as plain,
        pytest.raises(ssl.SSLCertVerificationError, match=r"[Hh]ostname"),
    ):
        context.wrap_socket(plain, server_hostname="other.example")
