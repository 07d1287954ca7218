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
from edgekit_converters.quantization.blockwise import channelwise, quantized
from edgekit_converters.quantization.draft import Place, attributes
from edgekit_converters.quantization.packing import PackedRows

__all__ = ["kept_tables", "table_of", "take_rows"]

_NODE_BYTES: Final = 2048
"""What the nodes that put rows together take, about."""
_BLOCKS: Final = (64, 32, 16)
"""Elements that share a step in tables of 4 bits: the first that divides a row."""


def table_of(place: Place, node: NodeProto, kept: frozenset[str]) -> np.ndarray | None:
    """The float32 table that a Gather reads rows of, if it is one that can be taken and is not
    `kept`."""
    if node.op_type != "Gather" or _narrowed_input(node) != 0 or node.input[0] in kept:
        return None
    table = place.floats(node.input[0])
    if table is None or table.ndim != 2:
        return None
    is_worth = table.nbytes // 4 > _NODE_BYTES and np.isfinite(table).all()
    return table if is_worth else None


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
    with a step per row. All that read a table share its codes."""
    holder = place.holder(node.input[0])
    assert holder is not None
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
    fitting = (block for block in _BLOCKS if bits == 4 and columns % block == 0)
    block = next(fitting, columns)
    is_whole = block == columns
    blocks = quantized(table.T, bits=bits, block=block, symmetric=is_whole)
    codes = PackedRows.stored(holder, blocks.codes.reshape(columns, -1).T, bits)
    of_zeros = None if is_whole else PackedRows.stored(holder, blocks.zeros.T, bits)
    steps, count = blocks.stored_steps.T[:, :, None], columns // block
    of_steps = holder.constant(steps, "steps")

    def add(place: Place, rows: str) -> str:
        if of_zeros is None:
            zeros = place.constant(np.array(2 ** (bits - 1), np.float32), "zero")
        else:
            zeros = of_zeros.rows(place, rows, (-1, count, 1))
        values = codes.rows(place, rows, (-1, count, block))
        values = place.add("Sub", [values, zeros], "codes")
        kept = place.add("Gather", [of_steps, rows], "steps")
        if steps.dtype != np.float32:
            kept = place.add("Cast", [kept], "steps", to=TensorProto.FLOAT)
        return place.add("Mul", [values, kept], "rows")

    return add
