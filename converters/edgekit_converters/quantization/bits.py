"""Codes of fewer than 8 bits in bytes. Pure numpy.

A code is split into planes, its high four bits and what is left, and codes of a plane share bytes,
lowest bits first. This needs neither 4-bit tensors, which runtimes before ONNX opset 21 do not
know, nor operators of one runtime.

Invariant: no bit is lost; what is added to fill the last bytes is zero.
"""

from __future__ import annotations

from typing import Final

import numpy as np

__all__ = ["HIGH", "planes", "share", "shifts"]

HIGH: Final = 4
"""Bits of a code's first plane, unless it is whole."""


def planes(codes: np.ndarray, bits: int) -> list[tuple[int, np.ndarray]]:
    """How many bits each plane has, which divides 8, and these bits of each code; highest first."""
    if bits in (HIGH, 8):
        return [(bits, codes)]
    low = bits - HIGH
    return [(HIGH, codes >> low), (low, codes & (2**low - 1))]


def share(codes: np.ndarray, width: int, axis: int = -1) -> np.ndarray:
    """Bytes of codes below `2 ** width`: those next to each other along an axis share one."""
    turned = np.moveaxis(codes.astype(np.uint8), axis, -1)
    per = 8 // width
    padded = np.pad(turned, [*[(0, 0)] * (turned.ndim - 1), (0, -turned.shape[-1] % per)])
    split = padded.reshape(*turned.shape[:-1], -1, per) << shifts(width)
    shared: np.ndarray = np.bitwise_or.reduce(split, axis=-1)
    return np.moveaxis(shared, -1, axis)


def shifts(width: int) -> np.ndarray:
    """How far right the codes of a byte are to be shifted."""
    by: np.ndarray = np.arange(0, 8, width, dtype=np.uint8)
    return by
