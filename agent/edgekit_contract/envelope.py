"""The signed envelope of a bundle: DSSE over an in-toto Statement v1.

Invariants: signatures are over the raw DSSE bytes (no JSON canonicalisation); an envelope has one
encoding, and any other bytes are rejected. Sources: DSSE v1.0.2 protocol.md ("PAE"); in-toto
attestation framework v1.0, spec/v1/statement.md.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable
from typing import Final

import msgspec

from edgekit_contract import limits
from edgekit_contract.errors import BundleRejected, Reason
from edgekit_contract.manifest import Manifest, check_format, check_manifest

__all__ = ["ENVELOPE_PATH", "Envelope", "Signature", "decode", "encode", "pae", "sign"]

ENVELOPE_PATH: Final = "bundle.dsse.json"
PAYLOAD_TYPE: Final = "application/vnd.in-toto+json"
STATEMENT_TYPE: Final = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE: Final = "https://edgekit.dev/bundle/v1"


class Signature(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    keyid: str
    sig: str
    """Base64 of the raw signature."""


class _Wire(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    payload: str
    payload_type: str
    signatures: tuple[Signature, ...]


class _Subject(msgspec.Struct, frozen=True):
    name: str
    digest: dict[str, str]


class _Statement(msgspec.Struct, frozen=True, rename="camel"):
    type: str = msgspec.field(name="_type")
    subject: tuple[_Subject, ...]
    predicate_type: str
    predicate: Manifest


class _Format(msgspec.Struct, frozen=True):
    format: int


class _AnyStatement(msgspec.Struct, frozen=True):
    """What a statement of any format has."""

    predicate: _Format


class Envelope(msgspec.Struct, frozen=True):
    """A decoded envelope: sound, but of unknown origin until `trust` has seen it."""

    raw: bytes
    payload: bytes
    signatures: tuple[Signature, ...]
    manifest: Manifest

    @property
    def signed_bytes(self) -> bytes:
        return pae(self.payload)


def pae(payload: bytes) -> bytes:
    """DSSE pre-authentication encoding of an in-toto payload: the bytes that are signed."""
    kind = PAYLOAD_TYPE.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def encode(manifest: Manifest, signatures: Iterable[Signature] = ()) -> bytes:
    """The one encoding of an envelope over this manifest."""
    return _encode_wire(_payload(check_manifest(manifest)), tuple(signatures))


def sign(manifest: Manifest, signers: Iterable[tuple[str, Callable[[bytes], bytes]]]) -> bytes:
    """An envelope with one signature per (key id, signing function)."""
    payload = _payload(check_manifest(manifest))
    return _encode_wire(
        payload,
        tuple(
            Signature(keyid=keyid, sig=base64.b64encode(signer(pae(payload))).decode())
            for keyid, signer in signers
        ),
    )


def decode(raw: bytes) -> Envelope:
    """Parse an envelope of at most `limits.MAX_ENVELOPE_BYTES`. Errors: `BundleRejected`."""
    if len(raw) > limits.MAX_ENVELOPE_BYTES:
        raise BundleRejected(Reason.TOO_LARGE, f"an envelope of {len(raw)} bytes")
    try:
        wire = msgspec.json.decode(raw, type=_Wire)
        payload = base64.b64decode(wire.payload, validate=True)
        check_format(msgspec.json.decode(payload, type=_AnyStatement).predicate.format)
        statement = msgspec.json.decode(payload, type=_Statement)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise BundleRejected(Reason.BAD_ENVELOPE, str(error)) from error
    if (wire.payload_type, statement.type, statement.predicate_type) != (
        PAYLOAD_TYPE,
        STATEMENT_TYPE,
        PREDICATE_TYPE,
    ):
        raise BundleRejected(Reason.UNKNOWN_FORMAT, "the envelope is not that of a bundle")
    if len(wire.signatures) > limits.MAX_SIGNATURES:
        raise BundleRejected(Reason.TOO_LARGE, f"{len(wire.signatures)} signatures")
    if _encode_wire(payload, wire.signatures) != raw:
        raise BundleRejected(Reason.BAD_ENVELOPE, "not in its one encoding")
    manifest = check_manifest(statement.predicate)
    if statement.subject != _subjects(manifest):
        raise BundleRejected(Reason.BAD_MANIFEST, "subjects and files differ")
    return Envelope(raw=raw, payload=payload, signatures=wire.signatures, manifest=manifest)


def _payload(manifest: Manifest) -> bytes:
    return msgspec.json.encode(
        _Statement(
            type=STATEMENT_TYPE,
            subject=_subjects(manifest),
            predicate_type=PREDICATE_TYPE,
            predicate=manifest,
        ),
        order="deterministic",
    )


def _subjects(manifest: Manifest) -> tuple[_Subject, ...]:
    return tuple(_Subject(name=f.path, digest={"sha256": f.sha256}) for f in manifest.files)


def _encode_wire(payload: bytes, signatures: tuple[Signature, ...]) -> bytes:
    return msgspec.json.encode(
        _Wire(
            payload=base64.b64encode(payload).decode(),
            payload_type=PAYLOAD_TYPE,
            signatures=signatures,
        )
    )
