"""Private keys on disk: PKCS#8 PEM at PATH, mode 0600, and the public key at PATH.pub.

Invariant: a key file appears whole or not at all, and never takes the place of another. Every
signature is deterministic (Ed25519, RFC 8032; ECDSA with RFC 6979 nonces), so that packing is.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, TypeAlias

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from edgekit.release.storage import write_file
from edgekit_contract import limits
from edgekit_contract.errors import Misused, Refused
from edgekit_contract.trust import PublicKey, load_public_key

__all__ = [
    "PASSPHRASE_VARIABLE",
    "KeyExists",
    "KeyUnreadable",
    "PassphraseNeeded",
    "PrivateKey",
    "WrongPassphrase",
    "find_passphrase",
    "load_key",
    "new_key",
    "open_key",
    "public_path",
    "read_public_key",
]

PASSPHRASE_VARIABLE: Final = "EDGEKIT_PASSPHRASE"

AnyPrivateKey: TypeAlias = ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey


class KeyExists(Refused):
    """There is a file where a new key would go."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"{path} exists and a key is never overwritten: choose another path.")
        self.path = path


class KeyUnreadable(Misused):
    """The file is absent, or holds no key of a kind that signs bundles."""

    def __init__(self, path: Path, detail: str) -> None:
        super().__init__(f"cannot use the key {path}: {detail}.")
        self.path, self.detail = path, detail


class PassphraseNeeded(Misused):
    """A passphrase is needed and there is nobody to ask."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what} needs a passphrase: set {PASSPHRASE_VARIABLE} (empty: none).")


class WrongPassphrase(Refused):
    """The passphrase does not open the key."""

    def __init__(self, path: Path) -> None:
        super().__init__(
            f"the passphrase does not open {path}: check {PASSPHRASE_VARIABLE} or type it again."
        )
        self.path = path


class PrivateKey:
    """An Ed25519 or ECDSA P-256 (SHA-256) private key."""

    def __init__(self, private: AnyPrivateKey) -> None:
        self.private = private
        """The key itself, for those who make certificates or TUF metadata with it."""

    @property
    def public(self) -> PublicKey:
        return PublicKey(self.private.public_key())

    @property
    def keyid(self) -> str:
        """SHA-256 of the public key's DER SubjectPublicKeyInfo, as `PublicKey.keyid`."""
        return self.public.keyid

    @property
    def public_pem(self) -> bytes:
        return self.public.pem

    def sign(self, data: bytes) -> bytes:
        """The raw signature: 64 bytes for Ed25519, a DER sequence for ECDSA."""
        if isinstance(self.private, ed25519.Ed25519PrivateKey):
            return self.private.sign(data)
        return self.private.sign(data, ec.ECDSA(hashes.SHA256(), deterministic_signing=True))

    def private_pem(self, passphrase: bytes | None) -> bytes:
        """PKCS#8, encrypted where there is a passphrase."""
        return self.private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(passphrase)
            if passphrase
            else serialization.NoEncryption(),
        )


def public_path(path: Path) -> Path:
    """Where the public key of the private key at `path` is: `PATH.pub`."""
    return path.with_name(path.name + ".pub")


def new_key(path: Path, passphrase: bytes | None) -> PrivateKey:
    """Make an Ed25519 key at `path`, mode 0600, and its public key at `PATH.pub`; both or none.

    Errors: `KeyExists`, `KeyUnreadable` where the directory cannot be written.
    """
    key = PrivateKey(ed25519.Ed25519PrivateKey.generate())
    _create(path, key.private_pem(passphrase), mode=0o600)
    try:
        _create(public_path(path), key.public_pem, mode=0o644)
    except BaseException:
        path.unlink()
        raise
    return key


def load_key(path: Path, passphrase: bytes | None) -> PrivateKey:
    """Read a private key; the passphrase of one that is not encrypted is not looked at.

    Errors: `KeyUnreadable`, `PassphraseNeeded`, `WrongPassphrase`.
    """
    pem = _read(path)
    if not _is_encrypted(path, pem):
        passphrase = None
    elif not passphrase:
        raise PassphraseNeeded(str(path))
    return _parse(path, pem, passphrase)


def open_key(path: Path, find: Callable[[str], bytes | None]) -> PrivateKey:
    """Read a private key, asking `find` (given what for) only where it is encrypted.

    Errors: as `load_key`, and those of `find`.
    """
    encrypted = _is_encrypted(path, _read(path))
    return load_key(path, find(str(path)) if encrypted else None)


def read_public_key(path: Path) -> PublicKey:
    """Read a `.pub` file. Errors: `KeyUnreadable`, `Misused` where it is another kind of key."""
    return load_public_key(_read(path), source=str(path))


def find_passphrase(
    what: str,
    *,
    environ: Mapping[str, str],
    ask: Callable[[str], str] | None,
    warn: Callable[[str], None],
) -> bytes | None:
    """The passphrase of `what`: from `EDGEKIT_PASSPHRASE`, else from `ask`; None means none.

    `ask` takes the text of the prompt; it is None where there is no terminal.
    Errors: `PassphraseNeeded`.
    """
    given = environ.get(PASSPHRASE_VARIABLE)
    if given is None:
        if ask is None:
            raise PassphraseNeeded(what)
        given = ask(f"Passphrase of {what}")
    if not given:
        warn(f"{what} has no passphrase: whoever reads the file can sign with it.")
        return None
    return given.encode()


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            pem = stream.read(limits.MAX_KEY_BYTES + 1)
    except OSError as error:
        raise KeyUnreadable(path, f"{error.strerror}; check the path") from error
    if len(pem) > limits.MAX_KEY_BYTES:
        raise KeyUnreadable(path, "it is too long to be a key; check the path")
    return pem


def _is_encrypted(path: Path, pem: bytes) -> bool:
    try:
        serialization.load_pem_private_key(pem, password=None)
    except TypeError:  # how cryptography says that a password is needed
        return True
    except (ValueError, UnsupportedAlgorithm) as error:
        raise KeyUnreadable(
            path, "it is not a PEM private key; `edgekit keys new` makes one"
        ) from error
    return False


def _parse(path: Path, pem: bytes, passphrase: bytes | None) -> PrivateKey:
    try:
        private = serialization.load_pem_private_key(pem, password=passphrase)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise WrongPassphrase(path) from error
    if isinstance(private, ed25519.Ed25519PrivateKey):
        return PrivateKey(private)
    if isinstance(private, ec.EllipticCurvePrivateKey) and isinstance(private.curve, ec.SECP256R1):
        return PrivateKey(private)
    raise KeyUnreadable(path, "it is another kind of key; use Ed25519 or ECDSA P-256")


def _create(path: Path, data: bytes, *, mode: int) -> None:
    """Write a file that was not there: O_EXCL reserves the name, a rename fills it at once."""
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode))
    except FileExistsError as error:
        raise KeyExists(path) from error
    except OSError as error:
        raise KeyUnreadable(path, f"{error.strerror}; choose another path") from error
    try:
        write_file(path, data, mode=mode)
    except BaseException as error:
        path.unlink()
        if isinstance(error, OSError):
            raise KeyUnreadable(path, f"{error.strerror}; nothing was written") from error
        raise
