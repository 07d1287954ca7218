"""Private keys on disk: whole or not at all, never over another, and each error says what to do."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from parts import need

from edgekit.release.keys import (
    PASSPHRASE_VARIABLE,
    KeyExists,
    KeyUnreadable,
    PassphraseNeeded,
    PrivateKey,
    WrongPassphrase,
    find_passphrase,
    load_key,
    new_key,
    open_key,
    public_path,
    read_public_key,
)
from edgekit_contract.errors import Misused


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "release.key"


@pytest.mark.parametrize("passphrase", [None, b"correct horse", "pässwörd 🐎".encode()])
def test_key_comes_back_with_its_passphrase(path: Path, passphrase: bytes | None) -> None:
    made = new_key(path, passphrase)
    loaded = load_key(path, passphrase)
    assert loaded.keyid == made.keyid == read_public_key(public_path(path)).keyid
    assert read_public_key(public_path(path)).verifies(loaded.sign(b"data"), b"data")


def test_private_key_is_for_its_owner_alone(path: Path) -> None:
    old = os.umask(0)
    try:
        new_key(path, None)
    finally:
        os.umask(old)
    assert path.stat().st_mode & 0o777 == 0o600
    assert sorted(file.name for file in path.parent.iterdir()) == [path.name, path.name + ".pub"]


@pytest.mark.parametrize("taken", ["", ".pub"])
def test_no_file_is_overwritten_and_none_is_left_half_made(path: Path, taken: str) -> None:
    existing = path.with_name(path.name + taken)
    existing.write_bytes(b"precious")
    with pytest.raises(KeyExists):
        new_key(path, None)
    assert existing.read_bytes() == b"precious"
    assert list(path.parent.iterdir()) == [existing]


def test_directory_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(KeyUnreadable, match="No such file"):
        new_key(tmp_path / "none" / "release.key", None)


def test_dangling_link_is_not_followed(path: Path) -> None:
    path.symlink_to(path.with_name("elsewhere"))
    with pytest.raises(KeyExists):
        new_key(path, None)
    assert not path.with_name("elsewhere").exists()


def test_wrong_passphrase_is_refused(path: Path) -> None:
    new_key(path, b"right")
    with pytest.raises(WrongPassphrase, match=PASSPHRASE_VARIABLE):
        load_key(path, b"wrong")
    with pytest.raises(PassphraseNeeded):
        load_key(path, None)


def test_passphrase_of_an_open_key_is_not_looked_at(path: Path) -> None:
    made = new_key(path, None)
    assert load_key(path, b"whatever").keyid == made.keyid


@pytest.mark.parametrize("data", [b"", b"hello", b"-----BEGIN PRIVATE KEY-----\n", b"\0" * 10**6])
def test_what_is_no_key_is_refused(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    with pytest.raises(KeyUnreadable):
        load_key(path, None)
    with pytest.raises(Misused):
        read_public_key(path)


def test_public_key_is_no_private_key_and_the_other_way_round(path: Path) -> None:
    new_key(path, None)
    with pytest.raises(KeyUnreadable, match="not a PEM private key"):
        load_key(public_path(path), None)
    with pytest.raises(Misused, match="not a PEM public key"):
        read_public_key(path)


def test_key_of_another_kind_is_refused(path: Path) -> None:
    for other in (
        rsa.generate_private_key(65537, 2048),
        ec.generate_private_key(ec.SECP384R1()),
    ):
        path.write_bytes(
            other.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        with pytest.raises(KeyUnreadable, match="Ed25519 or ECDSA P-256"):
            load_key(path, None)


@pytest.mark.parametrize(
    "private",
    [ed25519.Ed25519PrivateKey.generate(), ec.generate_private_key(ec.SECP256R1())],
    ids=["ed25519", "ecdsa"],
)
def test_signing_twice_gives_the_same_bytes(
    private: ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey,
) -> None:
    key = PrivateKey(private)
    assert key.sign(b"data") == key.sign(b"data") != key.sign(b"other")
    assert key.public.verifies(key.sign(b"data"), b"data")
    assert not key.public.verifies(key.sign(b"data"), b"other")
    assert not key.public.verifies(b"", b"data")


def test_keys_of_openssl_are_read(path: Path) -> None:
    """One with scrypt as well, which is stronger than what is written by default."""
    openssl = need("openssl")
    plain = path.with_name("plain.pem")
    subprocess.run([openssl, "genpkey", "-algorithm", "ed25519", "-out", plain], check=True)
    made = load_key(plain, None)
    command = [openssl, "pkcs8", "-topk8", "-scrypt", "-in", plain, "-out", path]
    subprocess.run([*command, "-passout", "pass:strong"], check=True, capture_output=True)
    assert load_key(path, b"strong").keyid == made.keyid
    with pytest.raises(WrongPassphrase):
        load_key(path, b"weak")


class Terminal:
    """Answers a prompt once and remembers what was said."""

    def __init__(self, answer: str) -> None:
        self.answer, self.asked, self.warned = answer, [], []  # type: ignore[var-annotated]

    def ask(self, text: str) -> str:
        self.asked.append(text)
        return self.answer


def test_passphrase_comes_from_the_environment_first() -> None:
    terminal = Terminal("typed")
    found = find_passphrase(
        "k", environ={PASSPHRASE_VARIABLE: "set"}, ask=terminal.ask, warn=terminal.warned.append
    )
    assert found == b"set"
    assert terminal.asked == terminal.warned == []


@pytest.mark.parametrize("environ", [{PASSPHRASE_VARIABLE: ""}, {}])
def test_empty_passphrase_means_none_and_warns(environ: dict[str, str]) -> None:
    terminal = Terminal("")
    found = find_passphrase("k", environ=environ, ask=terminal.ask, warn=terminal.warned.append)
    assert found is None
    assert len(terminal.warned) == 1


def test_passphrase_is_asked_where_there_is_a_terminal() -> None:
    terminal = Terminal("typed")
    found = find_passphrase("k", environ={}, ask=terminal.ask, warn=terminal.warned.append)
    assert found == b"typed"
    assert terminal.asked == ["Passphrase of k"]


def test_passphrase_is_an_error_where_nobody_can_be_asked() -> None:
    with pytest.raises(PassphraseNeeded, match=PASSPHRASE_VARIABLE):
        find_passphrase("k", environ={}, ask=None, warn=print)


def test_passphrase_is_asked_only_for_an_encrypted_key(path: Path) -> None:
    new_key(path, None)
    terminal = Terminal("secret")
    assert open_key(path, lambda what: terminal.ask(what).encode())
    assert terminal.asked == []
    locked = path.with_name("locked.key")
    made = new_key(locked, b"secret")
    assert open_key(locked, lambda what: terminal.ask(what).encode()).keyid == made.keyid
    assert terminal.asked == [str(locked)]
