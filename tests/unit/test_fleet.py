"""`fleet init`: what it makes, and that it makes it whole or not at all."""

from __future__ import annotations

import os
import ssl
import subprocess
from pathlib import Path

import pytest
from command_line import edgekit
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from fleets import make_fleet, utc_now
from hypothesis import given
from hypothesis import strategies as st
from parts import need

from edgekit.hub import authority, broker, fleet
from edgekit.hub.depot import Depot
from edgekit.hub.fleet import FleetExists, FleetSettings, init_fleet, open_fleet
from edgekit.release.keys import WrongPassphrase, load_key
from edgekit_contract import limits
from edgekit_contract.errors import EdgekitError, Misused
from edgekit_contract.messages import ChunkStatus, Fetch

HERE = FleetSettings(name="lab", hosts=("localhost",))


def test_settings_are_read_back_as_they_were_given(tmp_path: Path) -> None:
    settings = FleetSettings(
        name="lab", hosts=("hub.example", "10.0.0.1"), mqtt_port=1, https_port=2, web_port=3
    )
    init_fleet(tmp_path / "f", settings, passphrase=lambda: None, now=utc_now())
    assert open_fleet(tmp_path / "f").settings == settings


def test_an_existing_directory_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "mine").write_text("mine")
    with pytest.raises(FleetExists):
        make_fleet(tmp_path / "f")
    assert [path.name for path in tmp_path.rglob("*")] == ["f", "mine"]


def test_a_failure_halfway_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fleet, "init_repository", full)
    with pytest.raises(Misused, match="No space left"):
        make_fleet(tmp_path / "f")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "settings",
    [
        FleetSettings(name="Lab", hosts=("localhost",)),
        FleetSettings(name="lab", hosts=()),
        FleetSettings(name="lab", hosts=("a b",)),
        FleetSettings(name="lab", hosts=("x\nlistener 1",)),
        FleetSettings(name="lab", hosts=("https://x",)),
        FleetSettings(name="lab", hosts=("x",), mqtt_port=0),
        FleetSettings(name="lab", hosts=("x",), mqtt_port=70000),
        FleetSettings(name="lab", hosts=("x",), mqtt_port=5, web_port=5),
    ],
    ids=str,
)
def test_settings_that_cannot_be_are_misused(tmp_path: Path, settings: FleetSettings) -> None:
    with pytest.raises(EdgekitError):
        init_fleet(tmp_path / "f", settings, passphrase=lambda: None, now=utc_now())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["", "name = 1", "name = 'x'\nhosts = []", "\xff", "[", "x = 1"])
def test_a_broken_fleet_toml_is_one_sentence(tmp_path: Path, text: str) -> None:
    made = make_fleet(tmp_path / "f")
    (made.directory / "fleet.toml").write_bytes(text.encode("latin-1"))
    with pytest.raises(Misused):
        open_fleet(made.directory)


@pytest.mark.parametrize(("user", "warned"), [(0, True), (1, False)])
def test_a_fleet_that_root_makes_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, user: int, warned: bool
) -> None:
    monkeypatch.setenv("EDGEKIT_PASSPHRASE", "")
    monkeypatch.setattr(os, "geteuid", lambda: user)
    done = edgekit("fleet", "init", tmp_path / "f", "--host", "localhost")
    assert done.code == 0
    assert ("belongs to root" in done.err) == warned


@pytest.mark.parametrize("key", ["none.pub", "long.pub"])
def test_a_build_key_that_cannot_be_used_is_named_with_its_setting(
    tmp_path: Path, key: str
) -> None:
    made = make_fleet(tmp_path / "f")
    (made.directory / "long.pub").write_bytes(b"x" * (limits.MAX_KEY_BYTES + 1))
    settings = made.directory / "fleet.toml"
    settings.write_text(settings.read_text().replace("build_keys = []", f"build_keys = ['{key}']"))
    with pytest.raises(Misused, match=f"{key}.*build_keys in fleet.toml"):
        open_fleet(made.directory).build_keys()


def test_only_loopback_hosts_listen_on_loopback() -> None:
    assert FleetSettings(name="f", hosts=("localhost", "::1")).address == "127.0.0.1"
    assert FleetSettings(name="f", hosts=("localhost", "pi.local")).address is None


def test_offline_keys_are_encrypted_and_every_private_key_is_its_owners_alone(
    tmp_path: Path,
) -> None:
    made = init_fleet(tmp_path / "f", HERE, passphrase=lambda: b"secret", now=utc_now())
    for path in (made.root_ca_key, made.tuf_root_key, made.tuf_targets_key):
        with pytest.raises(WrongPassphrase):
            load_key(path, b"wrong")
        load_key(path, b"secret")
    private = list(made.directory.rglob("*.key"))
    assert len(private) == 8
    for path in private:
        assert path.stat().st_mode & 0o777 == 0o600
    assert made.directory.stat().st_mode & 0o777 == 0o700


def test_openssl_verifies_the_chains(tmp_path: Path) -> None:
    openssl = need("openssl")
    made = make_fleet(tmp_path / "f")
    for purpose, certificate in (("sslserver", made.server), ("sslclient", made.hub)):
        done = subprocess.run(
            [openssl, "verify", "-x509_strict", "-purpose", purpose, "-CAfile", made.root_ca,
             "-untrusted", certificate, certificate],
            check=False, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    wrong = subprocess.run(
        [openssl, "verify", "-purpose", "sslserver", "-CAfile", made.root_ca,
         "-untrusted", made.hub, made.hub],
        check=False, capture_output=True,
    )  # fmt: skip
    assert wrong.returncode != 0


def test_an_issuing_authority_cannot_make_authorities(tmp_path: Path) -> None:
    made = make_fleet(tmp_path / "f")
    certificate = x509.load_pem_x509_certificate(made.issuing_ca.read_bytes())
    constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical
    assert constraints.value.path_length == 0


def test_the_servers_certificate_names_its_hosts_and_loopback(tmp_path: Path) -> None:
    settings = FleetSettings(name="lab", hosts=("hub.example", "10.0.0.1", "fe80::1"))
    made = init_fleet(tmp_path / "f", settings, passphrase=lambda: None, now=utc_now())
    certificate = x509.load_pem_x509_certificate(made.server.read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["hub.example", "localhost"]
    addresses = {str(a) for a in names.get_values_for_type(x509.IPAddress)}
    assert addresses == {"10.0.0.1", "fe80::1", "127.0.0.1", "::1"}
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.SERVER_AUTH]
    ssl.create_default_context().load_cert_chain(made.server, made.server_key)


def test_a_device_certificate_does_not_outlive_its_authority(tmp_path: Path) -> None:
    from datetime import timedelta

    from fleets import csr

    made = make_fleet(tmp_path / "f")
    issuing = made.issuing_authority()
    late = issuing.certificate.not_valid_after_utc - timedelta(days=3)
    certificate = issuing.device(csr("pi", authority.new_p256_key()), "pi", now=late)
    assert certificate.not_valid_after_utc == issuing.certificate.not_valid_after_utc


def test_the_access_list_has_no_topic_that_both_sides_may_use() -> None:
    lines = [line for line in broker.acl("lab").splitlines() if line and line[0] != "#"]
    assert not any("readwrite" in line or "#" in line for line in lines)
    devices = [line.split() for line in lines if line.startswith("pattern")]
    assert all(topic.count("%u") == 1 and "+" not in topic for _, _, topic in devices)
    assert len({topic for _, _, topic in devices}) == len(devices)


@pytest.fixture(scope="module")
def depot(tmp_path_factory: pytest.TempPathFactory) -> Depot:
    return Depot(make_fleet(tmp_path_factory.mktemp("depot") / "f").directory)


@pytest.mark.parametrize(
    "resource",
    [
        "metadata/../online/snapshot.key",
        "metadata/..%2fonline",
        "metadata/",
        "metadata/01.root.json",
        "metadata/0.root.json",
        "metadata/root.json",
        "metadata/timestamp.json\n",
        "metadata/timestamp.json\0",
        "targets/../../offline/tuf-root.key",
        "targets/a/../" + "0" * 64 + ".b.dsse.json",
        "blobs/../hub.db",
        "blobs/" + "0" * 63,
        "blobs/" + "A" * 64,
        "blobs/" + "0" * 64,
        "fleet.toml",
        "/etc/passwd",
        "",
    ],
)
def test_the_depot_finds_only_what_is_published(depot: Depot, resource: str) -> None:
    assert depot.read(Fetch(resource=resource)).status is ChunkStatus.NOT_FOUND


@given(st.text(max_size=200))
def test_the_depot_answers_any_name(depot: Depot, resource: str) -> None:
    for prefix in ("", "metadata/", "targets/", "blobs/"):
        assert depot.read(Fetch(resource=prefix + resource)).status in ChunkStatus


@given(offset=st.integers(0, 10_000), length=st.integers(0, limits.MAX_JSON_INTEGER))
def test_the_depot_gives_the_range_asked_for_and_no_more(
    depot: Depot, offset: int, length: int
) -> None:
    whole = depot.read(Fetch(resource="metadata/1.root.json"))
    assert whole.total == len(whole.data)
    chunk = depot.read(Fetch(resource="metadata/1.root.json", offset=offset, length=length))
    assert chunk.status is ChunkStatus.OK
    assert chunk.total == whole.total
    wanted = whole.data[offset : offset + min(length, limits.MAX_CHUNK_BYTES)]
    assert chunk.data == wanted
    assert chunk.offset + len(chunk.data) <= chunk.total
