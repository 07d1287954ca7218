"""Codes of 4 to 6 bits in bytes, and the nodes that take rows of them out again.

A code is split into planes, its high four bits and what is left, and a plane is packed into bytes,
lowest bits first. This needs neither 4-bit tensors, which runtimes before ONNX opset 21 do not
know, nor operators of one runtime.

Invariant: what the nodes compute is what was packed, exactly.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from onnx import TensorProto

from edgekit_converters.quantization.draft import Place

__all__ = ["folded", "unpacked"]

_HIGH: Final = 4


def unpacked(
    place: Place, codes: np.ndarray, bits: int, shape: tuple[int, ...], *, rows: str
) -> str:
    """Name of the float32 tensor of those rows of a matrix of codes, reshaped to `shape`; `rows` is
    the name of an index."""
    total = ""
    for width, plane in _planes(codes, bits):
        packed = plane.astype(np.uint8) if width == 8 else _apart(plane, width)
        tensor = place.add("Gather", [place.constant(packed, "codes"), rows], "codes")
        if width < 8:
            tensor = _unfolded(place, tensor, width, codes.shape[-1])
        tensor = place.add("Cast", [tensor], "codes", to=TensorProto.FLOAT)
        if total:
            radix = place.constant(np.array(2**width, np.float32), "radix")
            total = place.add("Mul", [total, radix], "codes")
            total = place.add("Add", [total, tensor], "codes")
        else:
            total = tensor
    wanted = place.constant(np.array(shape, np.int64), "shape")
    return place.add("Reshape", [total, wanted], "codes")


def _planes(codes: np.ndarray, bits: int) -> list[tuple[int, np.ndarray]]:
    """Bits of each code, highest first, and how many they are."""
    if bits in (_HIGH, 8):
        return [(bits, codes)]
    low = bits - _HIGH
    return [(_HIGH, codes >> low), (low, codes & (2**low - 1))]


def _apart(codes: np.ndarray, width: int) -> np.ndarray:
    """Bytes [rows, 1, bytes] of codes that lie far apart: what a byte unfolds into is on the middle
    axis, and runtimes shift long rows."""
    per = 8 // width
    padded = np.pad(codes, [(0, 0), (0, -codes.shape[1] % per)])
    turned = padded.reshape(len(codes), per, -1).swapaxes(1, 2)
    apart: np.ndarray = folded(turned.reshape(len(codes), -1), width).swapaxes(1, 2)
    return apart


def folded(codes: np.ndarray, width: int) -> np.ndarray:
    """Bytes [rows, bytes, 1] of a matrix of codes below `2 ** width`, lowest bits first.

    `width` divides 8; the last axis is for what a byte unfolds into.
    """
    per = 8 // width
    padded = np.pad(codes.astype(np.uint8), [(0, 0), (0, -codes.shape[1] % per)])
    shifts = np.arange(per, dtype=np.uint8) * np.uint8(width)
    split = padded.reshape(len(codes), -1, per) << shifts
    packed: np.ndarray = np.bitwise_or.reduce(split, axis=-1, keepdims=True)
    return packed


def _unfolded(place: Place, packed: str, width: int, length: int) -> str:
    """Back to [rows, length]."""
    per = 8 // width
    shifts = (np.arange(per, dtype=np.uint8) * np.uint8(width)).reshape(per, 1)
    radix = place.constant(np.array(2**width, np.uint8), "radix")
    shifted = [packed, place.constant(shifts, "shift")]
    tensor = place.add("BitShift", shifted, "codes", direction="RIGHT")
    tensor = place.add("Mod", [tensor, radix], "codes")
    whole = -(-length // per) * per
    flat = place.constant(np.array([-1, whole], np.int64), "shape")
    tensor = place.add("Reshape", [tensor, flat], "codes")
    if whole == length:
        return tensor
    bounds = [place.constant(np.array([n], np.int64), "bound") for n in (0, length, 1)]
    return place.add("Slice", [tensor, *bounds], "codes")
