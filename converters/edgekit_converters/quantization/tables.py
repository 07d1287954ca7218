"""Tables that Gather reads rows of, such as embeddings, as small integers: rows are put together
again while the model runs, so that neither the file nor memory ever holds the wide table.

Invariant: only tables of the form [rows, columns] read by their first axis are taken, and only
where that saves bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto

from edgekit_converters import graph
from edgekit_converters.conditioning.grid import FULL_LEVELS
from edgekit_converters.quantization.blockwise import channelwise
from edgekit_converters.quantization.draft import Place, attributes
from edgekit_converters.quantization.packing import WHOLE, PackedRows

__all__ = ["kept_tables", "table_of", "take_rows"]

_NODE_BYTES: Final = 2048
"""What the nodes that put rows together take, about."""
_BLOCKS: Final = (64, 32, 16)
"""Elements that share a step in tables of 4 bits: the first that divides a row."""
_SHRINKS: Final = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)
"""Parts of a grid's range that are tried."""
_BYTE: Final = 256
_MOST_ZEROS: Final = 0.01
"""Of a table, in rows that are not all zero: codes below 8 bits have none for zero, and a mask has
many."""
_LARGEST: Final = 1e30
"""Beyond it what a grid is computed with may be too large for float32."""


def table_of(place: Place, node: NodeProto, kept: frozenset[str]) -> np.ndarray | None:
    """The float32 table that a Gather reads rows of, if it is one that can be taken and is not
    `kept`."""
    if node.op_type != "Gather" or _narrowed_input(node) != 0 or node.input[0] in kept:
        return None
    table = place.floats(node.input[0])
    if table is None or table.ndim != 2:
        return None
    is_held = np.isfinite(table).all() and np.abs(table).max(initial=0) < _LARGEST
    return table if is_held and table.nbytes // 4 > _NODE_BYTES else None


def kept_tables(model: ModelProto, floating: frozenset[str]) -> frozenset[str]:
    """Names of values that something reads as they are: an output, one of the `floating` nodes, or
    a node that neither takes rows nor multiplies. To narrow such a table for others adds bytes."""
    kept: set[str] = set()
    for current in graph.graphs(model.graph):
        kept.update(value.name for value in current.output)
        for node in current.node:
            at = None if node.name in floating else _narrowed_input(node)
            kept.update(name for i, name in enumerate(node.input) if i != at)
    return frozenset(kept)


def _narrowed_input(node: NodeProto) -> int | None:
    if node.domain not in graph.ONNX_DOMAINS:
        return None
    if node.op_type == "Gather":
        return 0 if attributes(node).get("axis", 0) == 0 else None
    return 1 if node.op_type in ("Gemm", "MatMul") else None


def take_rows(place: Place, node: NodeProto, table: np.ndarray, *, bits: int) -> None:
    """Add what stands for `node`: 4-bit tables with a step and a zero point per block, wider ones
    with a step per row; masks and the like in 8 bits whatever `bits` is. All that read a table
    share its codes."""
    holder = place.holder(node.input[0])
    assert holder is not None
    bits = bits if _is_packable(table) else 8
    key = ("table", node.input[0], bits)
    if key not in holder.memory:
        holder.memory[key] = _stored(holder, table) if bits == 8 else _packed(holder, table, bits)
    ids, columns = node.input[1], table.shape[1]
    rows = place.add("Reshape", [ids, place.constant(np.array([-1], np.int64), "shape")], "rows")
    values = holder.memory[key](place, rows)
    width = place.constant(np.array([columns], np.int64), "shape")
    shape = place.add("Concat", [place.add("Shape", [ids], "shape"), width], "shape", axis=0)
    place.add("Reshape", [values, shape], "rows", outputs=node.output)


_Rows = Callable[[Place, str], str]
"""Adds nodes that give the rows of a table by the name of an index; the name of what they give."""


def _is_packable(table: np.ndarray) -> bool:
    """Whether fewer than 8 bits may do."""
    zeros = np.count_nonzero(table[table.any(axis=1)] == 0)
    return bool(zeros <= _MOST_ZEROS * table.size)


def _stored(holder: Place, table: np.ndarray) -> _Rows:
    codes, steps = channelwise(table, (1,), levels=FULL_LEVELS)
    of_codes, of_steps = holder.constant(codes, "codes"), holder.constant(steps, "steps")

    def add(place: Place, rows: str) -> str:
        values = place.add("Gather", [of_codes, rows], "codes")
        values = place.add("Cast", [values], "codes", to=TensorProto.FLOAT)
        return place.add("Mul", [values, place.add("Gather", [of_steps, rows], "steps")], "rows")

    return add


def _packed(holder: Place, table: np.ndarray, bits: int) -> _Rows:
    columns = table.shape[1]
    block = next((n for n in _BLOCKS if bits == 4 and columns % n == 0), columns)
    split = table.reshape(len(table), -1, block)
    if block == columns:
        return _with_step(holder, split, bits)
    return _in_blocks(holder, split, bits)


def _with_step(holder: Place, split: np.ndarray, bits: int) -> _Rows:
    """Codes with a step per row, about the middle of a word."""
    _, high = _ends(split, bits, symmetric=True)
    steps = (high * (2 / WHOLE * 2**bits / (2**bits - 1)))[:, 0].astype(np.float32)
    parts = split[:, 0] / (_positive(steps) * WHOLE) + 0.5
    words, of_steps = PackedRows.stored(holder, parts, bits), holder.constant(steps, "steps")

    def add(place: Place, rows: str) -> str:
        middle = place.constant(np.array(WHOLE / 2, np.float32), "middle")
        values = place.add("Sub", [words.rows(place, rows), middle], "codes")
        return place.add("Mul", [values, place.add("Gather", [of_steps, rows], "steps")], "rows")

    return add


def _in_blocks(holder: Place, split: np.ndarray, bits: int) -> _Rows:
    """Codes with a step and a zero point per block, both in units of a word's highest byte."""
    low, high = _ends(split, bits, symmetric=False)
    step = (high - low) / (2**bits - 1)
    steps = _narrowed(step * 2**bits / _BYTE)
    # codes stand for the middle of what they have room for
    zeros = np.rint((0.5 - low / _positive(step)) * (_BYTE / 2**bits)).clip(0, _BYTE - 1)
    parts = (split / _positive(steps) + zeros) / _BYTE
    words = PackedRows.stored(holder, parts.reshape(len(split), -1), bits)
    of_steps = holder.constant(steps, "steps")
    of_zeros = holder.constant(zeros.astype(np.uint8), "zeros")
    shape = np.array([-1, *split.shape[1:]], np.int64)

    def add(place: Place, rows: str) -> str:
        values = words.rows(place, rows)
        values = place.add("Reshape", [values, place.constant(shape, "shape")], "codes")
        zero = _scaled(place, place.add("Gather", [of_zeros, rows], "zeros"), WHOLE / _BYTE)
        unit = _scaled(place, place.add("Gather", [of_steps, rows], "steps"), _BYTE / WHOLE)
        return place.add("Mul", [place.add("Sub", [values, zero], "codes"), unit], "rows")

    return add


def _scaled(place: Place, narrow: str, factor: float) -> str:
    wide = place.add("Cast", [narrow], "wide", to=TensorProto.FLOAT)
    by = place.constant(np.array(factor, np.float32), "factor")
    return place.add("Mul", [wide, by], "wide")


def _ends(split: np.ndarray, bits: int, *, symmetric: bool) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest [row, block, 1] of the grids for a table [row, block, column]: of those
    tried the ones of the least squared error."""
    low = np.minimum(split.min(axis=2, keepdims=True), 0)
    high = np.maximum(split.max(axis=2, keepdims=True), 0)
    if symmetric:
        high = np.maximum(-low, high)
        low = -high
    least, kept = np.full(low.shape, np.inf), np.ones_like(low)
    for shrink in _SHRINKS:
        start, step = low * shrink, _positive((high - low) * (shrink / (2**bits - 1)))
        codes = np.rint((split - start) / step).clip(0, 2**bits - 1)
        error = np.sum((codes * step + start - split) ** 2, axis=2, keepdims=True)
        kept = np.where(error < least, np.float32(shrink), kept)
        least = np.minimum(least, error)
    return low * kept, high * kept


def _positive(steps: np.ndarray) -> np.ndarray:
    """1 where all is zero, to divide by."""
    return np.where(steps > 0, steps.astype(np.float32), np.float32(1))


def _narrowed(steps: np.ndarray) -> np.ndarray:
    """As float16, where that holds them all."""
    half, some = np.finfo(np.float16), steps[steps > 0]
    is_fit = not some.size or (half.tiny <= some.min() and some.max() <= half.max)
    narrowed: np.ndarray = steps.astype(np.float16 if is_fit else np.float32)
    return narrowed
