"""Codes of 4 to 6 bits in bytes, and the nodes that take them out again.

A code is split into planes, its high four bits and what is left, and a plane is packed into bytes,
lowest bits first. Neither needs 4-bit tensors, which runtimes before ONNX opset 21 do not know, nor
operators of one runtime; nodes that depend on constants only are folded while a model loads.

Invariant: what the nodes compute is what was packed, exactly.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from onnx import TensorProto

from edgekit_converters.draft import Place

__all__ = ["folded", "unpacked"]

_HIGH: Final = 4


def unpacked(
    place: Place, codes: np.ndarray, bits: int, shape: tuple[int, ...], *, rows: str | None = None
) -> str:
    """Name of the float32 tensor of a matrix of codes, reshaped to `shape`.

    With `rows` (the name of an index) only those rows are unpacked, while the model runs; else all,
    at the front of the graph.
    """
    front = rows is None
    total = ""
    for packed, width in _planes(codes, bits):
        tensor = place.constant(packed, "codes")
        if rows is not None:
            tensor = place.add("Gather", [tensor, rows], "codes")
        if width < 8:
            tensor = _unfolded(place, tensor, width, codes.shape[-1], front=front)
        tensor = place.add("Cast", [tensor], "codes", front=front, to=TensorProto.FLOAT)
        if total:
            radix = place.constant(np.array(2**width, np.float32), "radix")
            total = place.add("Mul", [total, radix], "codes", front=front)
            total = place.add("Add", [total, tensor], "codes", front=front)
        else:
            total = tensor
    wanted = place.constant(np.array(shape, np.int64), "shape")
    return place.add("Reshape", [total, wanted], "codes", front=front)


def _planes(codes: np.ndarray, bits: int) -> list[tuple[np.ndarray, int]]:
    """Bytes that hold codes below `2 ** bits`, and how many bits of each code: highest first."""
    if bits == 8:
        return [(codes, 8)]
    low = bits - _HIGH
    if not low:
        return [(folded(codes, _HIGH), _HIGH)]
    return [(folded(codes >> low, _HIGH), _HIGH), (folded(codes & (2**low - 1), low), low)]


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


def _unfolded(place: Place, folded: str, width: int, length: int, *, front: bool) -> str:
    """Back to [rows, length]."""
    per = 8 // width
    shift = place.constant(np.arange(per, dtype=np.uint8) * np.uint8(width), "shift")
    radix = place.constant(np.array(2**width, np.uint8), "radix")
    tensor = place.add("BitShift", [folded, shift], "codes", front=front, direction="RIGHT")
    tensor = place.add("Mod", [tensor, radix], "codes", front=front)
    whole = -(-length // per) * per
    flat = place.constant(np.array([-1, whole], np.int64), "shape")
    tensor = place.add("Reshape", [tensor, flat], "codes", front=front)
    if whole == length:
        return tensor
    bounds = [place.constant(np.array([n], np.int64), "bound") for n in (0, length, 1)]
    return place.add("Slice", [tensor, *bounds], "codes", front=front)
