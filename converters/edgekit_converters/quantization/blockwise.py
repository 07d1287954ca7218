"""Weights as small integers with a step per block: what 4- to 8-bit formats store. Pure numpy.

A matrix `[K, N]` is cut into blocks of rows; each block of each column has a step and a zero point
(Dettmers et al., "LLM.int8()", arXiv 2208.07339, section 2; Dettmers and Zettlemoyer, "The case
for 4-bit precision", arXiv 2212.09720). The range of a block is clipped where that lowers the
mean squared error.

Invariant: steps are numbers of float16 unless that is too narrow for one of them; codes beyond the
matrix's rows, where the last block is longer than what is left, stand for zero.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from edgekit_converters.conditioning.moments import Moments, damped

__all__ = ["Blocks", "Inverse", "channelwise", "compensate", "fitted_grid", "quantized", "read_by"]

_SHRINKS: Final = (1.0, 0.95, 0.9, 0.85, 0.8)
"""Parts of a block's range that are tried."""
_NARROWEST: Final = float(np.finfo(np.float32).tiny)
_COLUMNS: Final = 1024
"""Columns at a time: each stands alone."""
_CHUNK: Final = 64
"""Rows whose errors are handed on to all behind them together, as one product."""


Inverse = tuple[np.ndarray, np.ndarray]
"""Rows by falling importance, and the upper Cholesky factor of the inverse of their second moments
in that order."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Blocks:
    """What stands for a matrix [rows, columns]."""

    codes: np.ndarray
    """uint8 [blocks, block, columns]"""
    steps: np.ndarray
    """float32 [blocks, columns]"""
    zeros: np.ndarray
    """uint8 [blocks, columns]: the code of zero"""
    rows: int

    @property
    def stored_steps(self) -> np.ndarray:
        """As float16 where that holds them all."""
        with np.errstate(over="ignore"):
            half = self.steps.astype(np.float16)
        return half if np.array_equal(half, self.steps) else self.steps

    @property
    def values(self) -> np.ndarray:
        """float32 [rows, columns]"""
        centred = self.codes.astype(np.float32) - self.zeros[:, None].astype(np.float32)
        wide: np.ndarray = centred * self.steps[:, None]
        return wide.reshape(-1, wide.shape[-1])[: self.rows]


def channelwise(
    weight: np.ndarray, axes: tuple[int, ...], *, levels: int
) -> tuple[np.ndarray, np.ndarray]:
    """Codes in `[-levels, levels]` (int8) and float32 steps, one for all elements along `axes`."""
    largest = np.max(np.abs(weight), axis=axes, keepdims=True, initial=0)
    steps = (largest / np.float32(levels)).astype(np.float32)
    steps = np.where(steps < np.finfo(np.float32).tiny, np.float32(1), steps)
    return np.rint(weight / steps).clip(-levels, levels).astype(np.int8), steps


def quantized(
    matrix: np.ndarray,
    *,
    bits: int,
    block: int,
    symmetric: bool,
    moments: Moments | None = None,
) -> Blocks:
    """Quantize `[K, N]` in blocks of `block` rows.

    With the moments of the rows that the matrix multiplies, what rounding one row of weights adds
    to the output is taken back by those not yet rounded (Frantar et al., "GPTQ", arXiv 2210.17323),
    else each weight goes to the nearest code.
    """
    rows, columns = matrix.shape
    count = -(-rows // block)
    importance = np.zeros(count * block)
    importance[:rows], inverse = read_by(moments, rows)
    blocks = Blocks(
        codes=np.empty((count, block, columns), np.uint8),
        steps=np.empty((count, columns), np.float32),
        zeros=np.empty((count, columns), np.uint8),
        rows=rows,
    )
    for start in range(0, columns, _COLUMNS):
        part = slice(start, start + _COLUMNS)
        wide = np.zeros((count * block, matrix[:, part].shape[1]))
        wide[:rows] = matrix[:, part]
        split = wide.reshape(count, block, -1)
        steps, zeros = fitted_grid(split, importance.reshape(count, block, 1), bits, symmetric)
        codes = _codes(split, steps[:, None], zeros[:, None], bits)
        if inverse is not None:
            compensate(wide, inverse, _into(codes, steps, zeros, bits))
        blocks.codes[..., part], blocks.steps[:, part] = codes, steps
        blocks.zeros[:, part] = zeros
    return blocks


def _into(
    codes: np.ndarray, steps: np.ndarray, zeros: np.ndarray, bits: int
) -> Callable[[int, np.ndarray], np.ndarray]:
    """What rounds one row, and keeps its codes."""

    def nearest(row: int, values: np.ndarray) -> np.ndarray:
        at, within = divmod(row, codes.shape[1])
        held = codes[at, within] = _codes(values, steps[at], zeros[at], bits)
        became: np.ndarray = (held - zeros[at]) * steps[at]
        return became

    return nearest


def _codes(values: np.ndarray, steps: np.ndarray, zeros: np.ndarray, bits: int) -> np.ndarray:
    codes: np.ndarray = np.rint(values / steps + zeros).clip(0, 2**bits - 1)
    return codes


def fitted_grid(
    split: np.ndarray, importance: np.ndarray, bits: int, symmetric: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Step and zero point of each block and column of [block, row, column], those of the least
    squared error weighted by [block, row, 1]."""
    top = 2**bits - 1
    low = np.minimum(split.min(axis=1), 0)
    high = np.maximum(split.max(axis=1), 0)
    # the sign of the step puts the larger extreme at the end that has one code more
    signed = np.where(-low > high, -low, -high)
    best = np.full(low.shape, np.inf)
    chosen_steps, chosen_zeros = np.ones(low.shape), np.zeros(low.shape)
    for shrink in _SHRINKS:
        if symmetric:
            steps = _storable(signed * (shrink / 2 ** (bits - 1)))
            zeros = np.full(low.shape, 2.0 ** (bits - 1))
        else:
            steps = _storable((high - low) * (shrink / top))
            zeros = np.rint(-low * shrink / steps).clip(0, top)
        codes = _codes(split, steps[:, None], zeros[:, None], bits)
        error = ((codes - zeros[:, None]) * steps[:, None] - split) ** 2
        total = np.sum(error * importance, axis=1)
        better = total < best
        best = np.where(better, total, best)
        chosen_steps = np.where(better, steps, chosen_steps)
        chosen_zeros = np.where(better, zeros, chosen_zeros)
    return chosen_steps, chosen_zeros


def _storable(steps: np.ndarray) -> np.ndarray:
    """As float16 holds them, or float32 where it does not hold all; never zero."""
    size = np.abs(steps)
    size = np.where(size < _NARROWEST, 1, size)
    half = np.finfo(np.float16)
    kind = np.float16 if half.tiny <= size.min() and size.max() <= half.max else np.float32
    rounded = size.astype(kind).astype(np.float64)
    return np.where(steps < 0, -rounded, rounded)


def read_by(moments: Moments | None, rows: int) -> tuple[np.ndarray, Inverse | None]:
    """How much each row of a matrix matters to what it multiplies, and what `compensate` needs:
    ones and None where there are no moments of it, or they have no inverse."""
    unknown = np.ones(rows), None
    if moments is None or moments.gram.shape != (1, rows, rows):
        return unknown
    known = damped(moments.gram, moments.rows)[0]
    diagonal = np.diag(known)
    order = np.argsort(-diagonal, kind="stable")
    backwards = order[::-1]
    try:
        # known = upper @ upper.T in that order, and its inverse therefore factor.T @ factor
        upper = np.linalg.cholesky(known[np.ix_(backwards, backwards)])[::-1, ::-1]
        factor = _inverse(upper)
    except np.linalg.LinAlgError:
        return unknown
    return (diagonal, (order, factor)) if np.isfinite(factor).all() else unknown


def _inverse(upper: np.ndarray) -> np.ndarray:
    """Of an upper triangular matrix, by halves: numpy's own takes no heed of the zeros."""
    size = len(upper)
    if size <= _CHUNK:
        return np.linalg.inv(upper)
    half = size // 2
    found = np.zeros_like(upper)
    found[:half, :half], found[half:, half:] = (
        _inverse(upper[:half, :half]),
        _inverse(upper[half:, half:]),
    )
    found[:half, half:] = -found[:half, :half] @ upper[:half, half:] @ found[half:, half:]
    return found


def compensate(
    matrix: np.ndarray, inverse: Inverse, nearest: Callable[[int, np.ndarray], np.ndarray]
) -> None:
    """Round a matrix row by row: `nearest` gets a row's number and what it should be, so that it
    takes back what rounding the rows before did, and returns what it becomes."""
    order, factor = inverse
    left = matrix[order]
    for start in range(0, len(order), _CHUNK):
        stop = min(start + _CHUNK, len(order))
        errors = np.empty((stop - start, matrix.shape[1]))
        for at in range(start, stop):
            lost = left[at] - nearest(int(order[at]), left[at])
            errors[at - start] = lost / factor[at, at]
            left[at + 1 : stop] -= np.outer(factor[at, at + 1 : stop], errors[at - start])
        left[stop:] -= factor[start:stop, stop:].T @ errors
