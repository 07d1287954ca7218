"""Pack chosen variants into bundles: manifest, envelope, archive, atomic writes.

Invariant: the same contents and key give the same bytes; a bundle is in the output directory whole
or not at all, what was there before stays until it is, and no bundle takes its place before the
disk has taken all of them.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import re
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import BinaryIO, Final

import msgspec

from edgekit.build.sbom import SBOM_PATH, sbom_bytes
from edgekit.release.keys import PrivateKey
from edgekit.release.storage import TEMPORARY_PREFIX, sync_directory, write_temporary
from edgekit_contract import limits, names
from edgekit_contract.archive import write_archive
from edgekit_contract.envelope import ENVELOPE_PATH, decode, sign
from edgekit_contract.errors import Misused, Refused
from edgekit_contract.manifest import (
    FileEntry,
    Golden,
    Manifest,
    Postprocess,
    Preprocess,
    Provenance,
    Requires,
)
from edgekit_contract.profile import Profile, Runtime, RuntimeKind
from edgekit_converters import external
from edgekit_converters.proof import Signature

__all__ = [
    "Contents",
    "OverBudget",
    "Packed",
    "Sealed",
    "open_output",
    "report_bytes",
    "seal",
    "signed",
    "write",
]

_MODEL_PATHS: Final = {
    RuntimeKind.ONNXRUNTIME: "files/model.onnx",
    RuntimeKind.LITERT: "files/model.tflite",
}
_SUFFIX: Final = re.compile(r"\.[A-Za-z0-9]{1,16}\Z")
_LABELS_PATH: Final = "files/labels.txt"
_REPORT_PATH: Final = "files/report.json"
_OUTPUT_HINT: Final = "choose another with -o"


class OverBudget(Refused):
    """The bundle is larger than its profile allows."""

    def __init__(self, profile: Profile, what: str, have_bytes: int, most_mib: int) -> None:
        super().__init__(
            f"{profile.name} allows {most_mib} MiB of {what}, this bundle needs "
            f"{have_bytes / limits.MIB:.1f}: choose a smaller model or another profile."
        )
        self.have_bytes, self.most_mib = have_bytes, most_mib


@dataclass(frozen=True, kw_only=True)
class Contents:
    """All that goes into a bundle."""

    name: str
    version: str
    profile: Profile
    runtime: Runtime
    model: Path
    signature: Signature
    golden: Golden
    golden_data: bytes
    labels: tuple[str, ...]
    preprocess: tuple[Preprocess, ...]
    postprocess: tuple[Postprocess, ...]
    report: bytes
    min_runtime_version: str
    features: tuple[str, ...]
    """What the variant's arithmetic relies on, such as a dot product that cannot saturate."""
    ir: int | None
    opset: int | None
    peak_ram_bytes: int
    provenance: Provenance
    beside: Mapping[str, bytes] = field(default_factory=dict)
    """Further files, by their names: for whoever takes the bundle apart."""


@dataclass(frozen=True, kw_only=True)
class Packed:
    path: Path
    size_bytes: int
    digest: str
    """SHA-256 of the envelope: the bundle's identity."""
    signed: bool


@contextlib.contextmanager
def open_output(directory: Path) -> Iterator[None]:
    """Make the output directory and prove that it can be written to. Errors: `Misused`.

    Where the block raises, what was made here goes, unless there is something in it by then.
    """
    above = [directory, *directory.parents]
    made = list(itertools.takewhile(lambda path: not path.exists(), above))
    probe = directory / f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}"
    try:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            probe.touch(exist_ok=False)
            probe.unlink()
        except OSError as error:
            raise Misused(
                f"the output directory {directory} cannot be written to ({error.strerror}): "
                f"{_OUTPUT_HINT}."
            ) from error
        yield
    except BaseException:
        with contextlib.suppress(OSError):  # there is something in it
            for path in made:
                path.rmdir()
        raise


@dataclass(frozen=True, kw_only=True)
class Sealed:
    """A bundle that fits its profile, signed and ready to be written."""

    filename: str
    envelope: bytes
    members: tuple[tuple[str, Path | bytes], ...]
    """Entries in their order, the envelope first; what is a path is read when it is written."""
    signed: bool


def seal(contents: Contents, key: PrivateKey | None) -> Sealed:
    """Make the manifest and its envelope; without a key the envelope has no signature.

    Errors: `OverBudget`; `BundleRejected` where a limit of the format is broken.
    """
    members = _members(contents)
    files = [_entry(path, source) for path, source in members.items()]
    members[SBOM_PATH] = _sbom(contents, files)
    files.append(_entry(SBOM_PATH, members[SBOM_PATH]))
    manifest = _manifest(contents, tuple(sorted(files, key=lambda file: file.path)))
    _check_budget(contents, manifest)
    envelope = sign(manifest, [(key.keyid, key.sign)] if key else [])
    return Sealed(
        filename=names.bundle_filename(contents.name, contents.version, contents.profile.name),
        envelope=envelope,
        members=((ENVELOPE_PATH, envelope), *((e.path, members[e.path]) for e in manifest.files)),
        signed=key is not None,
    )


def signed(sealed: Sealed, key: PrivateKey | None, *, git_commit: str | None) -> Sealed:
    """The same bundle by this key, of a model of this commit; without a key it has no signature."""
    manifest = decode(sealed.envelope).manifest
    provenance = msgspec.structs.replace(manifest.provenance, git_commit=git_commit)
    envelope = sign(
        msgspec.structs.replace(manifest, provenance=provenance),
        [(key.keyid, key.sign)] if key else [],
    )
    return replace(
        sealed,
        envelope=envelope,
        members=((ENVELOPE_PATH, envelope), *sealed.members[1:]),
        signed=key is not None,
    )


def write(
    bundles: Sequence[Sealed], directory: Path, *, advance: Callable[[int], None]
) -> tuple[Packed, ...]:
    """Write a `NAME-VERSION-PROFILE.ekb` of each; `advance` hears one step per bundle.

    Errors: `Refused` where the disk is full or fails; it says what was written.
    """
    temporaries: dict[Path, Path] = {}
    written: list[Path] = []
    try:
        for sealed in bundles:
            path = directory / sealed.filename
            temporaries[path] = write_temporary(path, partial(_archive, sealed))
            advance(1)
        for path, temporary in temporaries.items():
            temporary.replace(path)
            written.append(path)
        sync_directory(directory)
    except OSError as error:
        raise _not_written(path, error, written) from error
    finally:
        for temporary in temporaries.values():
            temporary.unlink(missing_ok=True)
    return tuple(
        Packed(
            path=path,
            size_bytes=path.stat().st_size,
            digest=hashlib.sha256(sealed.envelope).hexdigest(),
            signed=sealed.signed,
        )
        for sealed, path in zip(bundles, written, strict=True)
    )


def _archive(sealed: Sealed, out: BinaryIO) -> None:
    write_archive(out, sealed.members)


def _not_written(path: Path, error: OSError, written: Sequence[Path]) -> Refused:
    names_of = " and ".join(done.name for done in written)
    told = f"only {names_of} {'was' if len(written) == 1 else 'were'}" if written else "nothing was"
    return Refused(
        f"cannot write {path} ({error.strerror}); {told} written: make room, or {_OUTPUT_HINT}."
    )


def _members(contents: Contents) -> dict[str, Path | bytes]:
    members: dict[str, Path | bytes] = {
        _model_path(contents): contents.model,
        contents.golden.path: contents.golden_data,
        _REPORT_PATH: contents.report,
    }
    if contents.runtime.kind is RuntimeKind.ONNXRUNTIME:
        beside = contents.model.parent.resolve()
        for data in external.files(contents.model)[1:]:
            members[f"files/{data.relative_to(beside).as_posix()}"] = data
    members |= {f"files/{name}": data for name, data in contents.beside.items()}
    if contents.labels:
        members[_LABELS_PATH] = "".join(f"{label}\n" for label in contents.labels).encode()
    return members


def _model_path(contents: Contents) -> str:
    """A vendor's runtime may go by the name: it keeps its ending."""
    suffix = contents.model.suffix
    plain = suffix if _SUFFIX.match(suffix) else ".bin"
    return _MODEL_PATHS.get(contents.runtime.kind, f"files/model{plain}")


def _sbom(contents: Contents, files: Sequence[FileEntry]) -> bytes:
    return sbom_bytes(
        name=contents.name,
        version=contents.version,
        profile=contents.profile.name,
        runtime=contents.runtime.kind,
        min_runtime_version=contents.min_runtime_version,
        model=_model_path(contents),
        # the report tells of the search, of which no two runs are the same
        files=[file for file in files if file.path != _REPORT_PATH],
        provenance=contents.provenance,
    )


def _manifest(contents: Contents, files: tuple[FileEntry, ...]) -> Manifest:
    profile, runtime = contents.profile, contents.runtime
    return Manifest(
        name=contents.name,
        version=contents.version,
        profile=profile.name,
        runtime=runtime.kind,
        threads=runtime.threads,
        providers=runtime.providers if runtime.kind is RuntimeKind.ONNXRUNTIME else (),
        model=_model_path(contents),
        inputs=contents.signature.inputs,
        outputs=contents.signature.outputs,
        preprocess=contents.preprocess,
        postprocess=contents.postprocess,
        labels=_LABELS_PATH if contents.labels else None,
        golden=contents.golden,
        requires=Requires(
            arch=(profile.cpu.arch,),
            features=contents.features,
            runtime=runtime.kind,
            min_runtime_version=contents.min_runtime_version,
            ir=contents.ir,
            opset=contents.opset,
            unpacked_bytes=sum(entry.size for entry in files),
            peak_ram_bytes=contents.peak_ram_bytes,
        ),
        provenance=contents.provenance,
        files=files,
    )


def _check_budget(contents: Contents, manifest: Manifest) -> None:
    profile, requires = contents.profile, manifest.requires
    if requires.unpacked_bytes > profile.budget.bundle_mib * limits.MIB:
        raise OverBudget(profile, "bundle", requires.unpacked_bytes, profile.budget.bundle_mib)
    if requires.peak_ram_bytes > profile.budget.ram_mib * limits.MIB:
        raise OverBudget(profile, "memory", requires.peak_ram_bytes, profile.budget.ram_mib)


def _entry(path: str, source: Path | bytes) -> FileEntry:
    whole = hashlib.sha256()
    blocks = []
    size = 0
    for block in _blocks(source):
        whole.update(block)
        blocks.append(hashlib.sha256(block).hexdigest())
        size += len(block)
    return FileEntry(path=path, size=size, sha256=whole.hexdigest(), blocks=tuple(blocks))


def _blocks(source: Path | bytes) -> Iterator[bytes]:
    if isinstance(source, bytes):
        for start in range(0, len(source), limits.BLOCK_BYTES):
            yield source[start : start + limits.BLOCK_BYTES]
        return
    with source.open("rb") as stream:
        while block := stream.read(limits.BLOCK_BYTES):
            yield block


def report_bytes(report: msgspec.Struct) -> bytes:
    """A report as it goes into a bundle."""
    return msgspec.json.format(msgspec.json.encode(report, order="deterministic"), indent=1)
