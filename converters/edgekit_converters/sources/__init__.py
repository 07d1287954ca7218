"""Doors in: each kind of model file, closed into one model that its runtime loads.

Invariant: a source is only read; what comes out has loaded in the runtime, in a child process.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from edgekit_contract import limits
from edgekit_contract.errors import Misused, Refused
from edgekit_contract.profile import RuntimeKind
from edgekit_converters import isolation
from edgekit_converters.external import MAX_EMBEDDED_BYTES
from edgekit_converters.proof import Signature

__all__ = ["Source", "open_source", "sha256_of"]

_TFLITE_MAGIC: Final = b"TFL3"
_LITERT_SUFFIXES: Final = (".tflite", ".lite")
_ONNX_FILE: Final = "edgekit_converters.sources.onnx_file"
_HASH_BYTES: Final = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Source:
    """A model as it was given, closed, and loaded once."""

    origin: Path
    """The user's file."""
    sha256: str
    """Of the user's file."""
    data: tuple[tuple[Path, str], ...]
    """The user's files that hold weights of it, and their SHA-256."""
    kind: RuntimeKind
    path: Path
    """Copy that needs nothing outside its directory, or the origin itself where it is that."""
    signature: Signature
    remarks: tuple[str, ...] = ()
    """What the model gives otherwise than the user's file, a sentence each."""

    @property
    def size_bytes(self) -> int:
        """With the data beside the file."""
        return sum(path.stat().st_size for path in (self.origin, *(path for path, _ in self.data)))

    def check_unchanged(self) -> None:
        """Demand that the user's files are what they were. Errors: `Refused`."""
        for path, digest in ((self.origin, self.sha256), *self.data):
            try:
                same = sha256_of(path) == digest
            except OSError:
                same = False
            if not same:
                raise Refused(f"{path} changed while it was built: build again.")


def open_source(
    origin: Path,
    *,
    scratch: Path,
    run: isolation.Run = isolation.run,
    embedded_bytes: int = MAX_EMBEDDED_BYTES,
) -> Source:
    """Recognize a model file by its first bytes, close it, and load it in a child process.

    An ONNX model with more data than `embedded_bytes` keeps them in a file beside the copy.
    Errors: `Misused` where it cannot be read, `Refused` where it is no model that can be built.
    """
    try:
        size = origin.stat().st_size
        _check_size(origin.name, size)
        with origin.open("rb") as stream:
            head = stream.read(8)
        digest = sha256_of(origin)
    except OSError as error:
        raise Misused(f"cannot read {origin}: {error.strerror}; check the path.") from error
    kind = RuntimeKind.LITERT if head[4:8] == _TFLITE_MAGIC else RuntimeKind.ONNXRUNTIME
    if kind is not RuntimeKind.LITERT and origin.suffix.lower() in _LITERT_SUFFIXES:
        raise Refused(
            f"{origin.name} is not a LiteRT model (it does not begin as one): export or download "
            "it again."
        )
    step = f"reading {origin.name}"
    bounds = isolation.limits_for(size)
    try:
        if kind is RuntimeKind.LITERT:
            path, data, remarks = origin.resolve(), [], ()
            words = {"path": str(origin.resolve()), "kind": kind.value, "name": origin.name}
            signature = run(step, "edgekit_converters.proof:load", words, bounds)
        else:
            path = scratch / "given.onnx"
            words = {"source": str(origin.resolve())}
            bounds = isolation.limits_for(run(step, f"{_ONNX_FILE}:weigh", words, bounds))
            more = {"out": str(path), "embedded_bytes": embedded_bytes}
            found = run(step, f"{_ONNX_FILE}:close", words | more, bounds)
            signature, data = found["signature"], [Path(name) for name in found["data"]]
            remarks = tuple(found["remarks"])
    except isolation.StepFailed as error:
        raise Refused(
            f"{origin.name} could not be read: {error.detail}; export or download it again."
        ) from error
    return Source(
        origin=origin,
        sha256=digest,
        data=tuple((file, sha256_of(file)) for file in data),
        kind=kind,
        path=path,
        signature=msgspec.convert(signature, Signature),
        remarks=remarks,
    )


def _check_size(name: str, size_bytes: int) -> None:
    """Before a byte is read. Errors: `Refused`."""
    if not size_bytes:
        raise Refused(f"{name} is empty: export or download it again.")
    if size_bytes > limits.MAX_BUNDLE_BYTES:
        raise Refused(
            f"{name} has {size_bytes >> 20} MiB, a bundle holds at most 4 GiB: "
            "choose a smaller model."
        )
    if size_bytes > MAX_EMBEDDED_BYTES:
        raise Refused(
            f"{name} has {size_bytes >> 20} MiB, and a model file ends at 2 GiB: save it with its "
            "weights in a data file beside it (onnx.save_model with save_as_external_data)."
        )


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(_HASH_BYTES):
            digest.update(piece)
    return digest.hexdigest()
