"""The only source of `VerifiedBundle`.

Two roots of trust, two ways in: `verify_archive` needs a signature by a trusted key over the
envelope; `verify_directory` needs the SHA-256 of the envelope, which TUF metadata have signed.
Either way every declared file is hashed before anybody may use it.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from edgekit_contract import limits
from edgekit_contract.archive import Archive, open_archive
from edgekit_contract.envelope import ENVELOPE_PATH, Envelope, decode
from edgekit_contract.errors import BundleRejected, Misused, Reason
from edgekit_contract.manifest import FileEntry, Manifest

__all__ = [
    "PublicKey",
    "UntrustedBundle",
    "VerifiedBundle",
    "load_public_key",
    "open_bundle",
    "verify_archive",
    "verify_directory",
    "verify_envelope",
]

_SEALED: Final = object()


class PublicKey:
    """An Ed25519 or ECDSA P-256 (SHA-256) public key that may vouch for bundles."""

    def __init__(self, key: ed25519.Ed25519PublicKey | ec.EllipticCurvePublicKey) -> None:
        self._key = key
        self.keyid = hashlib.sha256(self._spki(serialization.Encoding.DER)).hexdigest()
        self.algorithm = (
            "Ed25519" if isinstance(key, ed25519.Ed25519PublicKey) else "ECDSA P-256 with SHA-256"
        )

    @property
    def pem(self) -> bytes:
        return self._spki(serialization.Encoding.PEM)

    def _spki(self, encoding: serialization.Encoding) -> bytes:
        return self._key.public_bytes(encoding, serialization.PublicFormat.SubjectPublicKeyInfo)

    def verifies(self, signature: bytes, data: bytes) -> bool:
        try:
            if isinstance(self._key, ed25519.Ed25519PublicKey):
                self._key.verify(signature, data)
            else:
                self._key.verify(signature, data, ec.ECDSA(hashes.SHA256()))
        except InvalidSignature:
            return False
        return True


def load_public_key(pem: bytes, *, source: str) -> PublicKey:
    """Parse a PEM public key. Errors: `Misused` naming `source`."""
    try:
        key = serialization.load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise Misused(
            f"{source} is not a PEM public key: give the .pub file that `edgekit keys new` wrote."
        ) from error
    if isinstance(key, ed25519.Ed25519PublicKey) or (
        isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1)
    ):
        return PublicKey(key)
    raise Misused(f"{source} is of another kind of key: use Ed25519 or ECDSA P-256.")


class UntrustedBundle:
    """An archive with a sound envelope, from anybody. To look at, never to run."""

    def __init__(self, archive: Archive, envelope: Envelope) -> None:
        self.archive, self.envelope = archive, envelope

    @property
    def manifest(self) -> Manifest:
        return self.envelope.manifest


class VerifiedBundle:
    """A bundle whose envelope is trusted and whose every file matched its digest.

    Files are hashed again whenever they are read, since the medium may change below.
    """

    def __init__(
        self, seal: object, envelope: Envelope, pieces: Callable[[str], Iterable[bytes]]
    ) -> None:
        if seal is not _SEALED:
            raise RuntimeError("only edgekit_contract.trust makes a VerifiedBundle")
        self.envelope, self._pieces = envelope, pieces

    @property
    def manifest(self) -> Manifest:
        return self.envelope.manifest

    @property
    def digest(self) -> str:
        """SHA-256 of the envelope: the bundle's identity."""
        return hashlib.sha256(self.envelope.raw).hexdigest()

    def pieces(self, path: str) -> Iterator[bytes]:
        """A declared file's data, a block at a time, each checked before it is given out."""
        return checked_pieces(self.manifest.file(path), self._pieces(path))

    def read(self, path: str) -> bytes:
        return b"".join(self.pieces(path))


def open_bundle(path: Path) -> UntrustedBundle:
    """Read the structure of a bundle file: archive, envelope, manifest; no signature, no digests.

    Errors: `BundleRejected`; `Misused` where the file cannot be read.
    """
    try:
        archive = open_archive(path)
        envelope = decode(archive.read(ENVELOPE_PATH, limit_bytes=limits.MAX_ENVELOPE_BYTES))
    except BundleRejected as error:
        raise BundleRejected(error.reason, error.detail, bundle=path.name) from error
    except OSError as error:
        raise Misused(f"cannot read {path}: {error.strerror or error}; check the path.") from error
    declared = {ENVELOPE_PATH: len(envelope.raw)}
    declared |= {entry.path: entry.size for entry in envelope.manifest.files}
    held = {name: entry.size for name, entry in archive.entries.items()}
    if surplus := sorted(held.keys() - declared.keys()):
        raise BundleRejected(Reason.UNDECLARED_FILE, surplus[0], bundle=path.name)
    if missing := sorted(declared.keys() - held.keys()):
        raise BundleRejected(Reason.MISSING_FILE, missing[0], bundle=path.name)
    if list(held.items()) != list(declared.items()):
        raise BundleRejected(Reason.NOT_CANONICAL, "entries' order or size", bundle=path.name)
    return UntrustedBundle(archive, envelope)


def verify_envelope(envelope: Envelope, keys: Sequence[PublicKey], *, bundle: str) -> PublicKey:
    """Demand a signature by one of `keys` over the envelope; that key.

    A signature counts only under its key's own id and in its one Base64 form: neither is signed.
    Errors: `BundleRejected`.
    """
    trusted = {key.keyid: key for key in keys}
    for signature in envelope.signatures:
        key = trusted.get(signature.keyid)
        try:
            raw = base64.b64decode(signature.sig, validate=True)
        except ValueError:  # not Base64, or not even ASCII
            continue
        if (
            key is not None
            and base64.b64encode(raw).decode() == signature.sig
            and key.verifies(raw, envelope.signed_bytes)
        ):
            return key
    raise BundleRejected(
        Reason.UNTRUSTED_SIGNATURE,
        "it is signed by " + (", ".join(s.keyid[:16] for s in envelope.signatures) or "nobody"),
        bundle=bundle,
    )


def verify_archive(path: Path, keys: Sequence[PublicKey]) -> VerifiedBundle:
    """Verify a bundle file: signature first, then every file. Errors: `BundleRejected`."""
    bundle = open_bundle(path)
    verify_envelope(bundle.envelope, keys, bundle=path.name)
    return _hashed(bundle.envelope, bundle.archive.pieces, path.name)


def verify_directory(directory: Path, *, envelope_sha256: str) -> VerifiedBundle:
    """Verify an unpacked bundle against the envelope digest that TUF metadata signed.

    Undeclared files are not looked at: nothing reads a bundle but through its manifest.
    Errors: `BundleRejected`.
    """
    title = directory.name
    try:
        with (directory / ENVELOPE_PATH).open("rb") as stream:
            raw = stream.read(limits.MAX_ENVELOPE_BYTES + 1)
    except OSError as error:
        raise BundleRejected(Reason.MISSING_FILE, ENVELOPE_PATH, bundle=title) from error
    if hashlib.sha256(raw).hexdigest() != envelope_sha256:
        raise BundleRejected(Reason.DIGEST_MISMATCH, ENVELOPE_PATH, bundle=title)

    def pieces(path: str) -> Iterator[bytes]:
        try:
            with (directory / path).open("rb") as stream:
                while piece := stream.read(limits.BLOCK_BYTES):
                    yield piece
        except OSError as error:
            raise BundleRejected(Reason.MISSING_FILE, path, bundle=title) from error

    return _hashed(decode(raw), pieces, title)


def checked_pieces(entry: FileEntry, pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Give out `limits.BLOCK_BYTES` pieces of a file, each only after its block hash matched.

    Errors: `BundleRejected` at the first piece that is wrong, missing or too many.
    """
    seen = 0
    for index, piece in enumerate(pieces):
        if (
            index >= len(entry.blocks)
            or hashlib.sha256(piece).hexdigest() != entry.blocks[index]
            or (index + 1 < len(entry.blocks) and len(piece) != limits.BLOCK_BYTES)
        ):
            raise BundleRejected(Reason.DIGEST_MISMATCH, entry.path)
        seen += len(piece)
        yield piece
    if seen != entry.size:
        raise BundleRejected(Reason.DIGEST_MISMATCH, entry.path)


def _hashed(
    envelope: Envelope, pieces: Callable[[str], Iterable[bytes]], title: str
) -> VerifiedBundle:
    for entry in envelope.manifest.files:
        whole = hashlib.sha256()
        try:
            for piece in checked_pieces(entry, pieces(entry.path)):
                whole.update(piece)
        except BundleRejected as error:
            raise BundleRejected(error.reason, error.detail, bundle=title) from error
        if whole.hexdigest() != entry.sha256:
            raise BundleRejected(Reason.DIGEST_MISMATCH, entry.path, bundle=title)
    return VerifiedBundle(_SEALED, envelope, pieces)
