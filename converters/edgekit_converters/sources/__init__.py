"""Doors in: each kind of model, closed into one model that its runtime loads.

Invariant: a source is only read; what comes out has loaded in the runtime, in a child process.
"""

from __future__ import annotations

import contextlib
import hashlib
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from edgekit_contract import limits
from edgekit_contract.errors import Misused, Refused
from edgekit_contract.profile import RuntimeKind
from edgekit_converters import isolation
from edgekit_converters.callables import is_callable_name
from edgekit_converters.external import MAX_EMBEDDED_BYTES
from edgekit_converters.proof import Signature
from edgekit_converters.sources import conversion, doors, pickles
from edgekit_converters.sources.conversion import CONVERSION_S, Conversion
from edgekit_converters.sources.doors.door import Door

__all__ = ["CONVERSION_S", "Source", "model_named", "open_source", "sha256_of"]

_TFLITE_MAGIC: Final = b"TFL3"
_LITERT_SUFFIXES: Final = (".tflite", ".lite")
_ONNX_FILE: Final = "edgekit_converters.sources.onnx_file"
_HASH_BYTES: Final = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Source:
    """A model as it was given, closed, and loaded once."""

    title: str
    """What messages call it."""
    origin: Path | None
    """The user's file or directory; of a callable the file that it is in, where there is one."""
    sha256: str
    """Of the user's file; of a directory, of the names and digests of all files that were read; of
    a callable, of the ONNX file that it became."""
    files: tuple[tuple[Path, str], ...]
    """All of the user's files that were read, and their SHA-256."""
    kind: RuntimeKind
    path: Path
    """Copy that needs nothing outside its directory, or the origin itself where it is that."""
    signature: Signature
    remarks: tuple[str, ...] = ()
    """What the model gives otherwise than the user's file, a sentence each."""
    conversion: Conversion | None = None
    """Where it is of another framework."""

    @property
    def data(self) -> tuple[tuple[Path, str], ...]:
        """Of `files` those beside the origin: weights of it."""
        return tuple(entry for entry in self.files if entry[0] != self.origin)

    @property
    def versions(self) -> dict[str, str]:
        """Of the packages that converted it."""
        return {} if self.conversion is None else dict(self.conversion.converted.versions)

    @property
    def size_bytes(self) -> int:
        """Of all files, or of what they became where that is more."""
        read = sum(path.stat().st_size for path, _ in self.files)
        return max(read, self.path.stat().st_size)

    def check_unchanged(self) -> None:
        """Demand that the user's files are what they were. Errors: `Refused`."""
        for path, digest in self.files:
            try:
                same = sha256_of(path) == digest
            except OSError:
                same = False
            if not same:
                raise Refused(f"{path} changed while it was built: build again.")


def model_named(name: str) -> Path | str:
    """MODEL as the user wrote it: a path, or `package.module:callable` where nothing is there."""
    return name if is_callable_name(name) and not Path(name).exists() else Path(name)


def open_source(
    model: Path | str,
    *,
    scratch: Path,
    run: isolation.Run = isolation.run,
    embedded_bytes: int = MAX_EMBEDDED_BYTES,
    conversion_s: float = CONVERSION_S,
) -> Source:
    """Recognize a model by its content, convert it where it is of another framework, close it, and
    load it in a child process.

    A text is a `package.module:callable`. An ONNX model with more data than `embedded_bytes` keeps
    them in a file beside the copy. Errors: `Misused` where it cannot be read, `Refused` where it
    is no model that can be built.
    """
    if isinstance(model, str):
        given = conversion.given_callable(model)
        made = conversion.convert(
            given, size_bytes=0, scratch=scratch, run=run, conversion_s=conversion_s
        )
        return _of_conversion(made, (), scratch, run, embedded_bytes)
    try:
        if (door := _door(model)) is not None:
            files = _hashed(model, door.files(model) if model.is_dir() else [model])
            total = sum(path.stat().st_size for path, _ in files)
            given = conversion.given_path(model, door)
            made = conversion.convert(
                given, size_bytes=total, scratch=scratch, run=run, conversion_s=conversion_s
            )
            return _of_conversion(made, files, scratch, run, embedded_bytes, origin=model)
        if model.is_dir():
            raise Refused(
                f"{model.name} is a directory of no kind that edgekit knows: give a Hugging Face "
                "directory (config.json beside model.safetensors) or a file (docs/sources.md)."
            )
        files = _hashed(model, [model])
        with model.open("rb") as stream:
            head = stream.read(8)
    except OSError as error:
        raise Misused(f"cannot read {model}: {error.strerror}; check the path.") from error
    if head[4:8] == _TFLITE_MAGIC:
        return _of_litert(model, files, run)
    if model.suffix.lower() in _LITERT_SUFFIXES:
        raise Refused(
            f"{model.name} is not a LiteRT model (it does not begin as one): export or download "
            "it again."
        )
    return _of_onnx(model, files, scratch, run, embedded_bytes)


def _door(model: Path) -> Door | None:
    """Errors: `Refused` for what is no model, or none that may be opened, `OSError`."""
    if not model.is_dir():
        status = model.stat()
        if not stat.S_ISREG(status.st_mode):
            raise Misused(f"{model} is neither a file nor a directory: check the path.")
        _check_size(model.name, status.st_size)
        pickles.refuse_pickle(model)
    return doors.door_for_path(model)


def _hashed(model: Path, files: Sequence[Path]) -> tuple[tuple[Path, str], ...]:
    """Errors: `Refused`, `OSError`."""
    total = sum(path.stat().st_size for path in files)
    if total > limits.MAX_BUNDLE_BYTES:
        raise Refused(
            f"{model.name} has {total >> 20} MiB, a bundle holds at most 4 GiB: "
            "choose a smaller model."
        )
    return tuple((path, sha256_of(path)) for path in files)


def _of_litert(model: Path, files: tuple[tuple[Path, str], ...], run: isolation.Run) -> Source:
    words = {"path": str(model.resolve()), "kind": RuntimeKind.LITERT.value, "name": model.name}
    bounds = isolation.limits_for(model.stat().st_size)
    with _readable(model.name):
        signature = run(f"reading {model.name}", "edgekit_converters.proof:load", words, bounds)
    return Source(
        title=model.name,
        origin=model,
        sha256=files[0][1],
        files=files,
        kind=RuntimeKind.LITERT,
        path=model.resolve(),
        signature=msgspec.convert(signature, Signature),
    )


def _of_onnx(
    model: Path,
    files: tuple[tuple[Path, str], ...],
    scratch: Path,
    run: isolation.Run,
    embedded_bytes: int,
) -> Source:
    closed = _close(model, model.name, scratch, run, embedded_bytes)
    return Source(
        title=model.name,
        origin=model,
        sha256=files[0][1],
        files=(*files, *((path, sha256_of(path)) for path in closed.data)),
        kind=RuntimeKind.ONNXRUNTIME,
        path=closed.path,
        signature=closed.signature,
        remarks=closed.remarks,
    )


def _of_conversion(
    made: Conversion,
    files: tuple[tuple[Path, str], ...],
    scratch: Path,
    run: isolation.Run,
    embedded_bytes: int,
    *,
    origin: Path | None = None,
) -> Source:
    """`origin` is None for a callable."""
    title = made.given.title
    try:
        closed = _close(made.path, title, scratch, run, embedded_bytes)
    except isolation.StepRefused as error:
        raise Refused(
            f"what {title} was converted to is no model that can be built ({error}) Write that "
            "part of it otherwise, or convert it to ONNX yourself."
        ) from error
    if origin is None:
        digest = sha256_of(closed.path)
        if made.converted.module_file is not None:
            origin = Path(made.converted.module_file)
            files = _hashed(origin, [origin])
    elif origin.is_dir():
        listed = "".join(f"{file.relative_to(origin)} {digest}\n" for file, digest in files)
        digest = hashlib.sha256(listed.encode()).hexdigest()
    else:
        digest = files[0][1]
    return Source(
        title=title,
        origin=origin,
        sha256=digest,
        files=files,
        kind=RuntimeKind.ONNXRUNTIME,
        path=closed.path,
        signature=closed.signature,
        remarks=(*made.converted.remarks, *closed.remarks),
        conversion=made,
    )


@dataclass(frozen=True, kw_only=True)
class _Closed:
    path: Path
    data: tuple[Path, ...]
    signature: Signature
    remarks: tuple[str, ...]


def _close(
    model: Path, title: str, scratch: Path, run: isolation.Run, embedded_bytes: int
) -> _Closed:
    """An ONNX file, in the form in which the build takes it. Errors: `Refused`."""
    step, path = f"reading {title}", scratch / "given.onnx"
    words = {"source": str(model.resolve()), "name": title}
    bounds = isolation.limits_for(model.stat().st_size)
    with _readable(title):
        bounds = isolation.limits_for(run(step, f"{_ONNX_FILE}:weigh", words, bounds))
        more = {"out": str(path), "embedded_bytes": embedded_bytes}
        found = run(step, f"{_ONNX_FILE}:close", words | more, bounds)
    return _Closed(
        path=path,
        data=tuple(map(Path, found["data"])),
        signature=msgspec.convert(found["signature"], Signature),
        remarks=tuple(found["remarks"]),
    )


@contextlib.contextmanager
def _readable(title: str) -> Iterator[None]:
    """Errors: `Refused` where a child failed."""
    try:
        yield
    except isolation.StepFailed as error:
        raise Refused(
            f"{title} could not be read: {error.detail}; export or download it again."
        ) from error


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
