"""Golden vectors: read, write and compare. A device reproduces them before it switches.

The file is a stored ZIP, laid out as a bundle is, of `.npy` members (format 1.0), named
`NNN/in/NAME.npy` and `NNN/out/NAME.npy`, little-endian, C order, f4/i4/i8/u1/i1; wider or other
types are stored in the nearest of these and compared as such. Its bytes follow from the vectors
alone, and reading it takes no more memory than it is long.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote

import numpy as np

from edgekit_contract import limits
from edgekit_contract.archive import Archive, open_archive_bytes, write_archive
from edgekit_contract.errors import BundleRejected, Reason
from edgekit_contract.manifest import Golden, TensorSpec
from edgekit_runtime.session import InferenceFailed, InputRejected, Session

__all__ = ["GoldenVector", "Mismatch", "check_golden", "compare", "golden_bytes", "read_golden"]

_STORED: Final = {
    "float16": "<f4", "float32": "<f4", "float64": "<f4",
    "int8": "|i1", "uint8": "|u1", "bool": "|u1",
    "int16": "<i4", "uint16": "<i4", "int32": "<i4",
    "uint32": "<i8", "int64": "<i8", "uint64": "<i8",
}  # fmt: skip


_MAGIC: Final = b"\x93NUMPY\x01\x00"
_HEADER: Final = re.compile(
    rb"\{'descr': '([<|][fiu][148])', 'fortran_order': False, 'shape': \(([0-9, ]*)\), \} *\n"
)
"""As numpy writes it (NEP 1). Nothing is evaluated: the general form is a Python literal."""
_ALIGN: Final = 64


@dataclass(frozen=True, kw_only=True)
class GoldenVector:
    """One sample: tensors by name, in the stored types."""

    inputs: dict[str, np.ndarray]
    outputs: dict[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Mismatch:
    """Where a device's output left the tolerance."""

    vector: int
    output: str
    detail: str

    def __str__(self) -> str:
        return f"golden vector {self.vector}, output {self.output!r}: {self.detail}"


def stored(array: np.ndarray) -> np.ndarray:
    """`array` in the type that golden vectors store it in."""
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite on both sides
        return np.ascontiguousarray(array).astype(_STORED[array.dtype.name]).reshape(array.shape)


def golden_bytes(vectors: Sequence[GoldenVector]) -> bytes:
    """The file of these vectors. Errors: `BundleRejected` over `limits.MAX_GOLDEN_BYTES`."""
    tensors = [t for v in vectors for side in (v.inputs, v.outputs) for t in side.values()]
    total = sum(t.size * np.dtype(_STORED[t.dtype.name]).itemsize for t in tensors)
    if total > limits.MAX_GOLDEN_BYTES:
        raise BundleRejected(Reason.TOO_LARGE, f"golden vectors of {total} bytes")
    members = []
    for index, vector in enumerate(vectors):
        for side, named in (("in", vector.inputs), ("out", vector.outputs)):
            for name, array in sorted(named.items()):
                members.append((_member_name(index, side, name), _npy(stored(array))))
    out = io.BytesIO()
    write_archive(out, members)
    if out.tell() > limits.MAX_GOLDEN_BYTES:
        raise BundleRejected(Reason.TOO_LARGE, f"golden vectors of {out.tell()} bytes")
    return out.getvalue()


def read_golden(
    data: bytes, golden: Golden, inputs: Iterable[TensorSpec], outputs: Iterable[TensorSpec]
) -> list[GoldenVector]:
    """Parse the file of a manifest's golden vectors; inputs come back in the model's dtypes.

    Errors: `BundleRejected`.
    """
    inputs, outputs = tuple(inputs), tuple(outputs)
    archive = open_archive_bytes(
        data,
        title=golden.path,
        max_entries=limits.MAX_GOLDEN_VECTORS * 2 * limits.MAX_TENSORS,
    )
    return [
        GoldenVector(
            inputs={s.name: _member(archive, index, "in", s).astype(s.dtype) for s in inputs},
            outputs={s.name: _member(archive, index, "out", s) for s in outputs},
        )
        for index in range(golden.count)
    ]


def _member_name(index: int, side: str, tensor: str) -> str:
    return f"{index:03}/{side}/{quote(tensor, safe='')}.npy"


def _npy(array: np.ndarray) -> bytes:
    """`array` as a `.npy` file; numpy's own writer pads by its version."""
    shape = ", ".join(map(str, array.shape)) + ("," if array.ndim == 1 else "")
    header = f"{{'descr': '{array.dtype.str}', 'fortran_order': False, 'shape': ({shape}), }}"
    length = -(-(len(_MAGIC) + 2 + len(header) + 1) // _ALIGN) * _ALIGN - len(_MAGIC) - 2
    line = header.ljust(length - 1) + "\n"
    return _MAGIC + length.to_bytes(2, "little") + line.encode() + array.tobytes()


def _member(archive: Archive, index: int, side: str, spec: TensorSpec) -> np.ndarray:
    name = _member_name(index, side, spec.name)
    data = archive.read(name, limit_bytes=limits.MAX_GOLDEN_BYTES)
    start = len(_MAGIC) + 2
    end = start + int.from_bytes(data[len(_MAGIC) : start], "little")
    header = _HEADER.fullmatch(data[start:end])
    if not data.startswith(_MAGIC) or header is None or header[1].decode() != _STORED[spec.dtype]:
        raise BundleRejected(Reason.BAD_MANIFEST, f"{name} is no array of {spec.dtype}")
    dtype, body = np.dtype(_STORED[spec.dtype]), memoryview(data)[end:]
    axes = [axis.strip() for axis in header[2].decode().split(",")]
    shape = tuple(int(axis) for axis in axes if axis.isdigit() and len(axis) <= 10)
    if math.prod(shape) * dtype.itemsize != len(body) or len(shape) != len(spec.shape):
        raise BundleRejected(Reason.BAD_MANIFEST, f"{name} is not of the shape that it says")
    return np.frombuffer(body, dtype).reshape(shape)


def check_golden(
    session: Session, golden: Golden, vectors: Sequence[GoldenVector]
) -> Mismatch | None:
    """Run each vector; the first mismatch, or None if the device reproduces them all."""
    for index, vector in enumerate(vectors):
        try:
            got = session.run(vector.inputs)
        except (InputRejected, InferenceFailed) as error:
            return Mismatch(vector=index, output="*", detail=str(error))
        for name, want in vector.outputs.items():
            if name not in got:
                return Mismatch(vector=index, output=name, detail="the model has no such output")
            if detail := compare(golden, name, stored(got[name]), want):
                return Mismatch(vector=index, output=name, detail=detail)
    return None


def compare(golden: Golden, output: str, got: np.ndarray, want: np.ndarray) -> str | None:
    """What is wrong with `got`, or None. NaN equals NaN; top-1 is along the last axis."""
    if got.shape != want.shape:
        return f"shape {list(got.shape)}, not {list(want.shape)}"
    if got.size == 0:
        return None
    tolerance = golden.tolerances[output]
    wide_got, wide_want = got.astype(np.float64), want.astype(np.float64)
    with np.errstate(invalid="ignore"):
        off = np.abs(wide_got - wide_want)
        allowed = tolerance.absolute + tolerance.relative * np.abs(wide_want)
        # an infinite `want` would allow anything
        near = (off <= allowed) & np.isfinite(wide_want)
    wrong = ~(near | (wide_got == wide_want) | (np.isnan(wide_got) & np.isnan(wide_want)))
    if wrong.any():
        worst = float(np.nanmax(np.where(wrong, np.nan_to_num(off, nan=np.inf), 0)))
        return f"{int(wrong.sum())} of {got.size} elements differ, by up to {worst:.6g}"
    if output in golden.top1 and got.ndim and got.shape[-1] > 1:
        moved = np.argmax(got, axis=-1) != np.argmax(want, axis=-1)
        if moved.any():
            return f"top-1 moved in {int(moved.sum())} of {moved.size} rows"
    return None
