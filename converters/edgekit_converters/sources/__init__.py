"""Doors in: each kind of model file, closed into one self-contained file that its runtime loads.

Invariant: a source is only read; what comes out has loaded in the runtime, in a child process.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from edgekit_contract.errors import Misused, Refused
from edgekit_contract.profile import RuntimeKind
from edgekit_converters import isolation
from edgekit_converters.proof import Signature

__all__ = ["Source", "open_source", "sha256_of"]

_TFLITE_MAGIC: Final = b"TFL3"
_HASH_BYTES: Final = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Source:
    """A model as it was given, in one file that loads."""

    origin: Path
    """The user's file."""
    sha256: str
    """Of the user's file."""
    kind: RuntimeKind
    path: Path
    """Self-contained copy, or the origin itself where it is that already."""
    signature: Signature


def open_source(origin: Path, *, scratch: Path) -> Source:
    """Recognize a model file by its first bytes, close it, and load it in a child process.

    Errors: `Misused` where it cannot be read, `Refused` where it is no model that can be built.
    """
    try:
        size = origin.stat().st_size
        with origin.open("rb") as stream:
            head = stream.read(8)
        digest = sha256_of(origin)
    except OSError as error:
        raise Misused(f"cannot read {origin}: {error.strerror}; check the path.") from error
    if not size:
        raise Refused(f"{origin.name} is empty: export or download it again.")
    kind = RuntimeKind.LITERT if head[4:8] == _TFLITE_MAGIC else RuntimeKind.ONNXRUNTIME
    path, signature = _DOORS[kind](origin, scratch, isolation.limits_for(size))
    return Source(
        origin=origin,
        sha256=digest,
        kind=kind,
        path=path,
        signature=msgspec.convert(signature, Signature),
    )


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(_HASH_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def _onnx(origin: Path, scratch: Path, bounds: isolation.Limits) -> tuple[Path, Any]:
    closed = scratch / "given.onnx"
    arguments = {"source": str(origin.resolve()), "out": str(closed)}
    step = f"reading {origin.name}"
    target = "edgekit_converters.sources.onnx_file:close"
    return closed, isolation.run(step, target, arguments, bounds)


def _tflite(origin: Path, scratch: Path, bounds: isolation.Limits) -> tuple[Path, Any]:
    arguments = {
        "path": str(origin.resolve()),
        "kind": RuntimeKind.LITERT.value,
        "name": origin.name,
    }
    step = f"reading {origin.name}"
    return origin, isolation.run(step, "edgekit_converters.proof:load", arguments, bounds)


_DOORS: Final[dict[RuntimeKind, Callable[[Path, Path, isolation.Limits], tuple[Path, Any]]]] = {
    RuntimeKind.ONNXRUNTIME: _onnx,
    RuntimeKind.LITERT: _tflite,
}
