"""The manifest: all that a bundle says of itself. The predicate of its in-toto Statement.

Values only: nothing here reads a file. Unknown fields are ignored, so that a newer build can add
some; a field that changes what a device must do raises `FORMAT` instead.
"""

from __future__ import annotations

import enum
import math
from typing import Final, TypeAlias

import msgspec

from edgekit_contract import limits, names
from edgekit_contract.errors import BundleRejected, EdgekitError, Reason
from edgekit_contract.profile import Arch, RuntimeKind

__all__ = [
    "DTYPES",
    "FORMAT",
    "AudioPreprocess",
    "Color",
    "FileEntry",
    "Golden",
    "ImagePreprocess",
    "Layout",
    "Manifest",
    "Postprocess",
    "Preprocess",
    "Provenance",
    "Requires",
    "TensorSpec",
    "Tolerance",
    "check_format",
    "check_manifest",
]

FORMAT: Final = 1

DTYPES: Final = frozenset(
    "float16 float32 float64 int8 uint8 int16 uint16 int32 uint32 int64 uint64 bool".split()
)
"""Tensor types by numpy's names."""

GOLDEN_PATH: Final = "files/golden.npz"


class TensorSpec(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    dtype: str
    shape: tuple[int | str, ...]
    """Axis lengths; a string names an axis that may have any length."""
    meaning: str = ""


class Layout(enum.Enum):
    """Order of an image tensor's axes."""

    NCHW = "nchw"
    NHWC = "nhwc"


class Color(enum.Enum):
    """Order of an image tensor's channels."""

    RGB = "rgb"
    BGR = "bgr"
    GRAY = "gray"


class ImagePreprocess(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="image"):
    """Image to tensor: decode, resize (bilinear), scale `x * scale`, then `(x - mean) / std`.

    `mean` and `std` have one element, or one per channel.
    """

    input: str
    height: int
    width: int
    layout: Layout = Layout.NCHW
    color: Color = Color.RGB
    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)


class AudioPreprocess(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="audio"):
    """PCM to tensor: mono, resampled to `sample_rate_hz`, in windows of `window_samples`."""

    input: str
    sample_rate_hz: int
    window_samples: int


class Postprocess(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="classify"):
    """Scores to labels: the `top_k` greatest of `output`, named by the labels file."""

    output: str
    top_k: int = 1
    softmax: bool = False


Preprocess: TypeAlias = ImagePreprocess | AudioPreprocess


class Tolerance(msgspec.Struct, frozen=True, kw_only=True):
    """|got - want| <= absolute + relative * |want|, element by element."""

    absolute: float
    relative: float = 0.0


class Golden(msgspec.Struct, frozen=True, kw_only=True):
    """Sample inputs with the variant's outputs at build.

    The file holds arrays `NNN/in/NAME` and `NNN/out/NAME` for NNN in 000...count-1.
    """

    path: str = GOLDEN_PATH
    count: int
    tolerances: dict[str, Tolerance]
    """By output name."""
    top1: tuple[str, ...] = ()
    """Outputs whose greatest element must stay at its place (last axis)."""
    source: str
    """`validation`, or `generated` where there were no data."""


class Requires(msgspec.Struct, frozen=True, kw_only=True):
    """What a device must be and have."""

    arch: tuple[Arch, ...] = ()
    """Empty: any."""
    features: tuple[str, ...] = ()
    runtime: RuntimeKind
    min_runtime_version: str
    ir: int | None = None
    opset: int | None = None
    unpacked_bytes: int
    peak_ram_bytes: int
    """Measured at build: growth of resident memory by loading and running the variant."""


class Provenance(msgspec.Struct, frozen=True, kw_only=True):
    source_name: str
    source_sha256: str
    recipe: str
    calibration_sha256: str | None = None
    git_commit: str | None = None
    tools: dict[str, str] = {}
    """Package name to version, of what made the variant."""


class FileEntry(msgspec.Struct, frozen=True, kw_only=True):
    path: str
    size: int
    sha256: str
    blocks: tuple[str, ...]
    """SHA-256 of each `limits.BLOCK_BYTES` block; the last may be short."""


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    format: int = FORMAT
    name: str
    version: str
    profile: str
    runtime: RuntimeKind
    threads: int
    providers: tuple[str, ...] = ()
    model: str
    """Path of the model file."""
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    preprocess: tuple[Preprocess, ...] = ()
    postprocess: tuple[Postprocess, ...] = ()
    labels: str | None = None
    golden: Golden
    requires: Requires
    provenance: Provenance
    files: tuple[FileEntry, ...]

    @property
    def title(self) -> str:
        """`NAME@VERSION for PROFILE`, for messages."""
        return f"{self.name}@{self.version} for {self.profile}"

    def file(self, path: str) -> FileEntry:
        """The entry of a declared path. Errors: `RuntimeError`."""
        for entry in self.files:
            if entry.path == path:
                return entry
        raise RuntimeError(f"{path} is not declared by {self.title}")


def check_format(number: int) -> None:
    """Raise `BundleRejected` unless `number` is the format that this edgekit reads."""
    if number != FORMAT:
        raise BundleRejected(
            Reason.UNKNOWN_FORMAT, f"format {number}, this edgekit reads {FORMAT}: update edgekit"
        )


def check_manifest(manifest: Manifest) -> Manifest:
    """Return `manifest` if it holds together within `limits`, else raise `BundleRejected`."""
    check_format(manifest.format)
    try:
        names.bundle_filename(manifest.name, manifest.version, manifest.profile)
        for entry in manifest.files:
            names.file_path(entry.path)
    except EdgekitError as error:
        raise BundleRejected(Reason.BAD_PATH, str(error)) from error
    if manifest.requires.runtime is not manifest.runtime:
        raise _malformed("runtime and requires.runtime differ")
    _check_files(manifest)
    _check_tensors(manifest.inputs)
    _check_tensors(manifest.outputs)
    _check_golden(manifest)
    _check_processing(manifest)
    _check_needs(manifest)
    return manifest


def _malformed(detail: str) -> BundleRejected:
    return BundleRejected(Reason.BAD_MANIFEST, detail)


def _check_files(manifest: Manifest) -> None:
    paths = [entry.path for entry in manifest.files]
    if not 1 <= len(paths) <= limits.MAX_BUNDLE_FILES:
        raise BundleRejected(Reason.TOO_LARGE, f"{len(paths)} files")
    if not all(p.startswith("files/") for p in paths):
        raise BundleRejected(Reason.BAD_PATH, "a file outside files/")
    if len({p.casefold() for p in paths}) != len(paths) or paths != sorted(paths):
        raise _malformed("files must be sorted by path, each once")
    for entry in manifest.files:
        if not 0 <= entry.size <= limits.MAX_BUNDLE_BYTES:
            raise BundleRejected(Reason.TOO_LARGE, f"{entry.path} of {entry.size} bytes")
        if len(entry.blocks) != -(-entry.size // limits.BLOCK_BYTES):
            raise _malformed(
                f"{entry.path} lists {len(entry.blocks)} blocks for {entry.size} bytes"
            )
        if not all(_is_sha256(digest) for digest in (entry.sha256, *entry.blocks)):
            raise _malformed(f"{entry.path} has a digest that is not SHA-256")
    if sum(entry.size for entry in manifest.files) != manifest.requires.unpacked_bytes:
        raise _malformed("requires.unpacked_bytes is not the sum of the files")
    for needed in (manifest.model, manifest.golden.path, manifest.labels):
        if needed is not None and needed not in paths:
            raise BundleRejected(Reason.MISSING_FILE, f"{needed} is not among the files")


def _check_golden(manifest: Manifest) -> None:
    golden = manifest.golden
    if not 1 <= golden.count <= limits.MAX_GOLDEN_VECTORS:
        raise _malformed(f"{golden.count} golden vectors")
    if manifest.file(golden.path).size > limits.MAX_GOLDEN_BYTES:
        raise BundleRejected(Reason.TOO_LARGE, "golden vectors")
    if set(golden.tolerances) != {tensor.name for tensor in manifest.outputs}:
        raise _malformed("golden.tolerances must name each output")
    for tolerance in golden.tolerances.values():
        if not (0 <= tolerance.absolute < math.inf and 0 <= tolerance.relative < math.inf):
            raise _malformed("a golden tolerance that is not a finite number >= 0")


def _check_processing(manifest: Manifest) -> None:
    inputs = {tensor.name for tensor in manifest.inputs}
    outputs = {tensor.name for tensor in manifest.outputs}
    if not {step.input for step in manifest.preprocess} <= inputs:
        raise _malformed("preprocess of an input that the model does not have")
    if not {step.output for step in manifest.postprocess} | set(manifest.golden.top1) <= outputs:
        raise _malformed("postprocess or top1 of an output that the model does not have")
    for step in manifest.preprocess:
        if isinstance(step, ImagePreprocess):
            lengths = {len(step.mean), len(step.std)}
            sound = (
                min(step.height, step.width) >= 1
                and max(step.height, step.width) <= limits.MAX_IMAGE_SIDE
                and lengths <= {1, 1 if step.color is Color.GRAY else 3}
                and all(map(math.isfinite, (step.scale, *step.mean, *step.std)))
                and 0 not in step.std
            )
        else:
            sound = 1 <= step.sample_rate_hz <= limits.MAX_SAMPLE_RATE_HZ and (
                1 <= step.window_samples <= limits.MAX_WINDOW_SAMPLES
            )
        if not sound:
            raise _malformed(f"preprocess of {step.input!r} is out of bounds")
    if any(step.top_k < 1 for step in manifest.postprocess):
        raise _malformed("postprocess with top_k below 1")


def _check_needs(manifest: Manifest) -> None:
    if not 1 <= manifest.threads <= limits.MAX_THREADS:
        raise _malformed(f"{manifest.threads} threads")
    if not 0 <= manifest.requires.peak_ram_bytes <= limits.MAX_JSON_INTEGER:
        raise _malformed(f"{manifest.requires.peak_ram_bytes} bytes of RAM")


def _check_tensors(tensors: tuple[TensorSpec, ...]) -> None:
    if not 1 <= len(tensors) <= limits.MAX_TENSORS:
        raise BundleRejected(Reason.BAD_MANIFEST, f"{len(tensors)} tensors")
    if len({t.name for t in tensors}) != len(tensors):
        raise BundleRejected(Reason.BAD_MANIFEST, "a tensor name twice")
    for tensor in tensors:
        if tensor.dtype not in DTYPES or len(tensor.shape) > limits.MAX_RANK:
            raise BundleRejected(
                Reason.BAD_MANIFEST, f"tensor {tensor.name!r} of {tensor.dtype} {tensor.shape}"
            )
        if any(isinstance(axis, int) and not 0 <= axis <= limits.MAX_AXIS for axis in tensor.shape):
            raise BundleRejected(Reason.BAD_MANIFEST, f"tensor {tensor.name!r} of {tensor.shape}")


def _is_sha256(digest: str) -> bool:
    return len(digest) == 64 and not set(digest) - set("0123456789abcdef")
