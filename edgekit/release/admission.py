"""Admitting a bundle to a fleet: every byte is hashed on its way from the archive to the blobs.

Invariant: `blobs/<sha256>` holds bytes of that digest or does not exist.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from edgekit.release.storage import write_pieces
from edgekit_contract.envelope import Envelope
from edgekit_contract.errors import BundleRejected, Reason
from edgekit_contract.manifest import FileEntry
from edgekit_contract.trust import (
    PublicKey,
    UntrustedBundle,
    checked_pieces,
    open_bundle,
    verify_envelope,
)

__all__ = ["admit", "look"]


def look(path: Path, trusted: Sequence[PublicKey]) -> UntrustedBundle:
    """Open a bundle and, where there are `trusted` keys, demand a signature by one of them.

    Errors: `BundleRejected`; `Misused` where the file cannot be read.
    """
    bundle = open_bundle(path)
    if trusted:
        verify_envelope(bundle.envelope, trusted, bundle=path.name)
    return bundle


def admit(bundle: UntrustedBundle, blobs: Path, *, made: list[Path]) -> Envelope:
    """Copy a bundle's files to `blobs`; those that were not there yet are added to `made`.

    Errors: `BundleRejected` where a file's bytes differ from its digest; `OSError`.
    """
    title = bundle.archive.title
    for entry in bundle.manifest.files:
        pieces = _hashed_pieces(bundle, entry, title)
        blob = blobs / entry.sha256
        if blob.exists():
            for _ in pieces:
                pass
        else:
            made.append(blob)
            write_pieces(blob, pieces)
    return bundle.envelope


def _hashed_pieces(bundle: UntrustedBundle, entry: FileEntry, title: str) -> Iterator[bytes]:
    whole = hashlib.sha256()
    try:
        for piece in checked_pieces(entry, bundle.archive.pieces(entry.path)):
            whole.update(piece)
            yield piece
    except BundleRejected as error:
        raise BundleRejected(error.reason, error.detail, bundle=title) from error
    if whole.hexdigest() != entry.sha256:
        raise BundleRejected(Reason.DIGEST_MISMATCH, entry.path, bundle=title)
