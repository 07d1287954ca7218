"""Rows of a matrix as codes that share 32-bit words, and the nodes that take rows out again.

The codes of a word lie one above the other, four to eight of them. One shift to the left brings a
code to the top of its word. What is then below it are the codes that were below it anyway, and
they are not cleared away, which would take a second operation: together they are a fraction of the
code's step that is known when it is chosen, so it is chosen with them. A value is off by half a
step at most, as with codes that stand alone, but for those within half a step of an end or beyond.

Invariant: what the nodes compute is `unpacked`, exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from onnx import TensorProto

from edgekit_converters.quantization.draft import Place

__all__ = ["WHOLE", "PackedRows", "pack", "unpacked"]

_BITS: Final = 32
WHOLE: Final = 2.0**_BITS
"""One more than the largest word: values are given and come out as parts of it."""
_ROWS: Final = 4096
"""Packed at a time: each stands alone."""


@dataclass(frozen=True, kw_only=True)
class PackedRows:
    """A matrix whose words are a constant of a graph."""

    words: str
    """Name of uint32 [rows, 1, words]."""
    bits: int
    columns: int

    @classmethod
    def stored(cls, holder: Place, values: np.ndarray, bits: int) -> PackedRows:
        """Add the words of a matrix of parts of a word; what is not in `[0, 1)` goes to an end."""
        words = holder.constant(pack(values, bits)[:, None], "words")
        return cls(words=words, bits=bits, columns=values.shape[1])

    def rows(self, place: Place, rows: str) -> str:
        """Name of float32 [row, column] in `[0, WHOLE]`; `rows` is the name of an index."""
        words = place.add("Gather", [self.words, rows], "words")
        shifts = place.constant(_shifts(self.bits)[:, None], "shift")
        values = place.add("BitShift", [words, shifts], "codes", direction="LEFT")
        values = place.add("Cast", [values], "codes", to=TensorProto.FLOAT)
        whole = -(-self.columns // len(_widths(self.bits))) * len(_widths(self.bits))
        flat = place.constant(np.array([-1, whole], np.int64), "shape")
        values = place.add("Reshape", [values, flat], "codes")
        if whole == self.columns:
            return values
        bounds = [place.constant(np.array([n], np.int64), "bound") for n in (0, self.columns, 1)]
        return place.add("Slice", [values, *bounds], "codes")


def pack(values: np.ndarray, bits: int) -> np.ndarray:
    """Words [row, word] of values [row, column], cut to `[0, 1)`, with codes of at least `bits`
    bits: as many as a word has room for, and what is left over widens the topmost."""
    widths = _widths(bits)
    count = -(-values.shape[1] // len(widths))
    words = np.zeros((len(values), count), np.uint32)
    for start in range(0, len(values), _ROWS):
        part = slice(start, start + _ROWS)
        padded = np.zeros((len(values[part]), len(widths) * count))
        padded[:, : values.shape[1]] = values[part]
        below, at = np.zeros((len(padded), count)), 0
        # a code's columns lie far apart: runtimes shift long rows faster than short ones
        for wanted, width in zip(np.split(padded, len(widths), axis=1), widths, strict=True):
            codes = np.rint(wanted * 2**width - below).clip(0, 2**width - 1)
            words[part] |= codes.astype(np.uint32) << np.uint32(at)
            below, at = (codes + below) / 2**width, at + width
    return words


def unpacked(words: np.ndarray, bits: int, columns: int) -> np.ndarray:
    """float32 [row, column] in `[0, WHOLE]` of words [row, word]."""
    values = (words[:, None] << _shifts(bits)[:, None]).astype(np.float32)
    flat: np.ndarray = values.reshape(len(words), -1)[:, :columns]
    return flat


def _widths(bits: int) -> Sequence[int]:
    """Of the codes of a word, lowest first."""
    count = _BITS // bits
    width, over = divmod(_BITS, count)
    return [width] * (count - over) + [width + 1] * over


def _shifts(bits: int) -> np.ndarray:
    """How far left each code is to be shifted."""
    return (_BITS - np.cumsum(_widths(bits))).astype(np.uint32)
