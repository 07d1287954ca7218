"""Matrices of 4- to 8-bit codes as constants, and the nodes that take rows of them out again.

Invariant: what the nodes compute is what was packed, exactly.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from edgekit_converters.quantization import bits
from edgekit_converters.quantization.draft import Place

__all__ = ["PackedRows"]


@dataclass(frozen=True, kw_only=True)
class PackedRows:
    """A matrix of codes."""

    planes: tuple[tuple[int, str], ...]
    """Bits and name of each plane (`bits.planes`)."""
    columns: int

    @classmethod
    def stored(cls, holder: Place, codes: np.ndarray, width: int) -> PackedRows:
        """Add a matrix of codes of `width` bits to the constants of a graph."""
        planes = [
            (
                part,
                holder.constant(
                    plane.astype(np.uint8) if part == 8 else _apart(plane, part), "codes"
                ),
            )
            for part, plane in bits.planes(codes, width)
        ]
        return cls(planes=tuple(planes), columns=codes.shape[1])

    def rows(self, place: Place, rows: str, shape: tuple[int, ...]) -> str:
        """Name of the float32 tensor of those rows, reshaped; `rows` is the name of an index."""
        total = ""
        for width, name in self.planes:
            tensor = place.add("Gather", [name, rows], "codes")
            if width < 8:
                tensor = _unfolded(place, tensor, width, self.columns)
            tensor = place.add("Cast", [tensor], "codes", to=TensorProto.FLOAT)
            if total:
                radix = place.constant(np.array(2**width, np.float32), "radix")
                total = place.add("Mul", [total, radix], "codes")
                total = place.add("Add", [total, tensor], "codes")
            else:
                total = tensor
        wanted = place.constant(np.array(shape, np.int64), "shape")
        return place.add("Reshape", [total, wanted], "codes")


def _apart(codes: np.ndarray, width: int) -> np.ndarray:
    """Bytes [rows, 1, bytes] of codes that lie far apart: what a byte unfolds into is on the middle
    axis, and runtimes shift long rows."""
    per = 8 // width
    padded = np.pad(codes, [(0, 0), (0, -codes.shape[1] % per)])
    return bits.share(padded.reshape(len(codes), per, -1), width, axis=1)


def _unfolded(place: Place, packed: str, width: int, length: int) -> str:
    """Back to [rows, length]."""
    per, rest = 8 // width, 8 - width
    # what is above a code is pushed out of its byte: runtimes shift many times faster than Mod
    up = place.constant((rest - bits.shifts(width)).astype(np.uint8).reshape(per, 1), "shift")
    down = place.constant(np.array(rest, np.uint8), "shift")
    tensor = place.add("BitShift", [packed, up], "codes", direction="LEFT")
    tensor = place.add("BitShift", [tensor, down], "codes", direction="RIGHT")
    whole = -(-length // per) * per
    flat = place.constant(np.array([-1, whole], np.int64), "shape")
    tensor = place.add("Reshape", [tensor, flat], "codes")
    if whole == length:
        return tensor
    bounds = [place.constant(np.array([n], np.int64), "bound") for n in (0, length, 1)]
    return place.add("Slice", [tensor, *bounds], "codes")
