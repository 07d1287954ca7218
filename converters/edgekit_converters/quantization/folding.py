"""8-bit weights stored in 4 to 6 bits, and nodes that make them 8-bit again while a model loads.

Runtimes compute once what depends on constants only, so the file is small and the products are
those of 8 bits, at their speed. What that takes is memory while loading: a folded value stays until
all are. So the nodes work on bytes but for one step: 9 bytes a weight in 4 bits, 11 in 5 or 6,
where float arithmetic on codes takes 40.

Codes share bytes with those of the next rows, plane by plane (`bits`). Of a byte and what is left
of it after shifts, codes are linear combinations: one product gives them all. A block is every
n-th row of a matrix, not n rows in turn: then QuantizeLinear makes levels of codes along one axis.
Neither needs operators of one runtime.

Invariant: `Packed.weights` are what the nodes compute, exactly; none is beyond the levels that were
asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from onnx import TensorProto

from edgekit_converters.conditioning.moments import Moments
from edgekit_converters.quantization.bits import HIGH, planes, share, shifts
from edgekit_converters.quantization.blockwise import Inverse, compensate, fitted_grid, read_by
from edgekit_converters.quantization.draft import Place

__all__ = ["Packed", "pack", "unfold"]

_MIDDLE: Final = 128
_ALIGNMENT: Final = 8
"""Rows of a block are a multiple of this, so that codes of any width fill bytes."""
_COLUMNS: Final = 1024
"""At a time: each stands alone."""
_DIVISORS: Final = (2.0**-14, 2.0**15)
"""What float16 holds in full precision; levels of codes with a greater divisor are zero anyway."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Packed:
    """What stands for 8-bit weights [rows, columns]; row k is of block k modulo their number."""

    bits: int
    codes: np.ndarray
    """uint8 [row of the block, block, column]"""
    divisors: np.ndarray
    """float16 [block, column]: codes to a level"""
    zeros: np.ndarray
    """int8 [block, column]: the level of code 0"""
    steps: np.ndarray
    """float32 [column]: what a level is worth"""
    rows: int

    @property
    def weights(self) -> np.ndarray:
        """int8 [rows, columns]"""
        levels = _levels(self.codes, self.divisors, self.zeros).clip(-128, 127).astype(np.int8)
        return levels.reshape(-1, levels.shape[-1])[: self.rows]


def pack(
    matrix: np.ndarray, *, bits: int, block: int, levels: int, moments: Moments | None = None
) -> Packed:
    """Pack `[rows, columns]` for 8-bit weights up to `levels`, with a step and a zero point for
    about `block` rows of each column; with `moments` of the rows that it multiplies, rounding minds
    them. It knows of the second rounding, to levels, and takes that back, too."""
    rows, columns = matrix.shape
    blocks = -(-rows // block)
    length = -(-rows // (blocks * _ALIGNMENT)) * _ALIGNMENT
    largest = np.max(np.abs(matrix), axis=0, initial=0).astype(np.float32)
    steps = largest / np.float32(levels)
    steps = np.where(steps < np.finfo(np.float32).tiny, np.float32(1), steps)
    importance = np.zeros((length * blocks, 1))
    importance[:rows, 0], inverse = read_by(moments, rows)
    packed = Packed(
        bits=bits,
        codes=np.empty((length, blocks, columns), np.uint8),
        divisors=np.empty((blocks, columns), np.float16),
        zeros=np.empty((blocks, columns), np.int8),
        steps=steps,
        rows=rows,
    )
    for start in range(0, columns, _COLUMNS):
        part = slice(start, start + _COLUMNS)
        wide = np.zeros((length * blocks, len(steps[part])))
        wide[:rows] = matrix[:, part] / steps[part].astype(np.float64)
        scale = _Scale.fitted(
            wide.reshape(length, blocks, -1),
            importance.reshape(length, blocks, 1),
            bits=bits,
            levels=levels,
        )
        packed.codes[..., part] = scale.codes(wide, inverse)
        packed.divisors[:, part], packed.zeros[:, part] = scale.divisors, scale.zeros
    return packed


@dataclass(frozen=True, kw_only=True, eq=False)
class _Scale:
    """What codes of blocks stand for."""

    divisors: np.ndarray
    zeros: np.ndarray
    least: np.ndarray
    """uint8 [block, column]: the code of the lowest level that is within bounds"""
    most: np.ndarray

    @classmethod
    def fitted(cls, split: np.ndarray, importance: np.ndarray, *, bits: int, levels: int) -> _Scale:
        """For what is [row of the block, block, column] in levels."""
        found, zero = fitted_grid(split.swapaxes(0, 1), importance.swapaxes(0, 1), bits, False)
        divisors = (1 / found).clip(*_DIVISORS).astype(np.float16)
        zeros = -np.rint(zero / divisors.astype(np.float32)).clip(-levels, levels).astype(np.int8)
        every = np.arange(2**bits, dtype=np.uint8).reshape(-1, 1, 1)
        within = np.abs(_levels(every, divisors, zeros)) <= levels
        most = 2**bits - 1 - np.argmax(within[::-1], axis=0)
        return cls(divisors=divisors, zeros=zeros, least=np.argmax(within, axis=0), most=most)

    def codes(self, wide: np.ndarray, inverse: Inverse | None) -> np.ndarray:
        """[row of the block, block, column] of rows of levels."""
        blocks = len(self.divisors)
        codes = self._nearest(wide.reshape(-1, *self.divisors.shape), slice(None))

        def nearest(row: int, values: np.ndarray) -> np.ndarray:
            at = row % blocks
            held = codes[row // blocks, at] = self._nearest(values, at)
            return _levels(held, self.divisors[at], self.zeros[at])

        if inverse is not None:
            compensate(wide, inverse, nearest)
        return codes

    def _nearest(self, values: np.ndarray, at: int | slice) -> np.ndarray:
        """uint8 codes of the levels that are nearest."""
        divisors, zeros = self.divisors[at], self.zeros[at]
        below = np.floor((values - zeros) * divisors.astype(np.float64))
        below = below.clip(self.least[at], self.most[at])
        above = np.minimum(below + 1, self.most[at])
        is_nearer = np.abs(_levels(above, divisors, zeros) - values) < np.abs(
            _levels(below, divisors, zeros) - values
        )
        codes: np.ndarray = np.where(is_nearer, above, below).astype(np.uint8)
        return codes


def _levels(codes: np.ndarray, divisors: np.ndarray, zeros: np.ndarray) -> np.ndarray:
    """As QuantizeLinear computes them, before they saturate."""
    levels: np.ndarray = np.rint(codes.astype(np.float32) / divisors.astype(np.float32)) + zeros
    return levels


def unfold(place: Place, packed: Packed) -> str:
    """Name of the int8 tensor [rows, columns], which nodes at the front of the graph make."""
    length, blocks, columns = packed.codes.shape
    codes = _unpacked(place, packed.codes.reshape(length, -1), packed.bits)
    codes = place.add("Cast", [codes], "codes", front=True, to=TensorProto.FLOAT)
    divisors = place.constant(packed.divisors.reshape(-1), "divisors")
    divisors = place.add("Cast", [divisors], "divisors", front=True, to=TensorProto.FLOAT)
    zeros = place.constant(packed.zeros.reshape(-1), "zeros")
    levels = place.add("QuantizeLinear", [codes, divisors, zeros], "levels", front=True, axis=2)
    shape = place.constant(np.array([length * blocks, columns], np.int64), "shape")
    levels = place.add("Reshape", [levels, shape], "weights", front=True)
    if length * blocks == packed.rows:
        return levels
    ends = [place.constant(np.array([n], np.int64), "end") for n in (0, packed.rows, 0)]
    return place.add("Slice", [levels, *ends], "weights", front=True)


def _unpacked(place: Place, codes: np.ndarray, width: int) -> str:
    """Name of codes [group, row of the group, column]; the rows of a group share bytes."""
    (_, high), *rest = planes(codes, width)
    per = 8 // (rest[0][0] if rest else HIGH)
    first = place.constant(_grouped(high, HIGH, per), "high")
    shifted = [first, _shifted(place, first, np.array(HIGH, np.uint8))]
    whole = np.eye(per // 2)
    # the even rows are the lower halves of bytes: what is left when the upper ones are taken away
    even, odd = np.kron(whole, [[1], [0]]), np.kron(whole, [[-(2**HIGH)], [1]])
    radix = 2 ** (width - HIGH)
    factors = [radix * even, radix * odd]
    for low, plane in rest:
        second = place.constant(_grouped(plane, low, per), "low")
        shifted.append(_shifted(place, second, shifts(low).reshape(1, per, 1)))
        factors.append(np.eye(per) - radix * np.eye(per, k=1))
    stacked = place.add("Concat", shifted, "codes", front=True, axis=1)
    # QLinearMatMul takes bytes about a zero point, and multiplies them by steps of 1
    product = np.concatenate(factors, axis=1) + _MIDDLE
    one = place.constant(np.array(1, np.float32), "one")
    middle, none = (place.constant(np.array(n, np.uint8), "zero") for n in (_MIDDLE, 0))
    left = [place.constant(product.astype(np.uint8), "factors"), one, middle]
    return place.add("QLinearMatMul", [*left, stacked, one, none, one, none], "codes", front=True)


def _grouped(codes: np.ndarray, width: int, rows: int) -> np.ndarray:
    """Bytes [group, byte, column] of codes [row, column], so many rows to a group."""
    return share(codes.reshape(-1, rows, codes.shape[-1]), width, axis=1)


def _shifted(place: Place, name: str, shifts: np.ndarray) -> str:
    by = place.constant(shifts, "shift")
    return place.add("BitShift", [name, by], "codes", front=True, direction="RIGHT")
