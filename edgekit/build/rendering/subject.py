"""What a report is rendered from: the report in a bundle and what the bundle says of itself.

Invariant: reading is bounded, and nothing is believed: a rendering says that it is not verified.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from edgekit.build.report import Report
from edgekit_contract import limits
from edgekit_contract.errors import Refused
from edgekit_contract.manifest import Manifest
from edgekit_contract.trust import open_bundle

__all__ = ["Subject", "open_subject"]

_PATH: Final = "files/report.json"


@dataclass(frozen=True, kw_only=True)
class Subject:
    report: Report
    manifest: Manifest
    digest: str
    """SHA-256 of the envelope."""
    signers: tuple[str, ...]
    """Ids of the keys that are said to have signed."""


def open_subject(path: Path) -> Subject:
    """Read a bundle's report. Errors: `BundleRejected`, `Refused`; `Misused` for a wrong path."""
    bundle = open_bundle(path)
    if not any(file.path == _PATH for file in bundle.manifest.files):
        raise Refused(f"{path.name} holds no report: make it with edgekit build.")
    raw = bundle.archive.read(_PATH, limit_bytes=limits.MAX_REPORT_BYTES)
    try:
        report = msgspec.json.decode(raw, type=Report)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Refused(
            f"the report in {path.name} cannot be read ({error}): build the bundle again."
        ) from error
    return Subject(
        report=report,
        manifest=bundle.manifest,
        digest=hashlib.sha256(bundle.envelope.raw).hexdigest(),
        signers=tuple(signature.keyid for signature in bundle.envelope.signatures),
    )
