"""Tables that Gather reads rows of, such as embeddings, as small integers: rows are put together
again while the model runs, so that neither the file nor memory ever holds the wide table.

Invariant: only tables of the form [rows, columns] read by their first axis are taken, and only
where that saves bytes.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from onnx import NodeProto, TensorProto

from edgekit_converters import graph
from edgekit_converters.conditioning.grid import FULL_LEVELS
from edgekit_converters.quantization.blockwise import channelwise, quantized
from edgekit_converters.quantization.draft import Place, attributes
from edgekit_converters.quantization.packing import unpacked

__all__ = ["table_of", "take_rows"]

_NODE_BYTES: Final = 2048
"""What the nodes that put rows together take, about."""
_BLOCKS: Final = (64, 32, 16)
"""Elements that share a step in tables of 4 bits: the first that divides a row."""


def table_of(place: Place, node: NodeProto) -> np.ndarray | None:
    """The float32 table that a Gather reads rows of, if it is one that can be taken."""
    if node.op_type != "Gather" or node.domain not in graph.ONNX_DOMAINS:
        return None
    table = place.floats(node.input[0])
    if table is None or table.ndim != 2 or attributes(node).get("axis", 0) != 0:
        return None
    is_worth = table.nbytes // 4 > _NODE_BYTES and np.isfinite(table).all()
    return table if is_worth else None


def take_rows(place: Place, node: NodeProto, table: np.ndarray, *, bits: int) -> None:
    """Add what stands for `node`: 4-bit tables with a step and a zero point per block, wider ones
    with a step per row."""
    ids, columns = node.input[1], table.shape[1]
    rows = place.add("Reshape", [ids, place.constant(np.array([-1], np.int64), "shape")], "rows")
    if bits == 8:
        codes, steps = channelwise(table, (1,), levels=FULL_LEVELS)
        values = place.add("Gather", [place.constant(codes, "codes"), rows], "codes")
        values = place.add("Cast", [values], "codes", to=TensorProto.FLOAT)
    else:
        values, steps = _packed_rows(place, table, bits, rows)
    kept = place.add("Gather", [place.constant(steps, "steps"), rows], "steps")
    if steps.dtype != np.float32:
        kept = place.add("Cast", [kept], "steps", to=TensorProto.FLOAT)
    values = place.add("Mul", [values, kept], "rows")
    width = place.constant(np.array([columns], np.int64), "shape")
    shape = place.add("Concat", [place.add("Shape", [ids], "shape"), width], "shape", axis=0)
    place.add("Reshape", [values, shape], "rows", outputs=node.output)


def _packed_rows(place: Place, table: np.ndarray, bits: int, rows: str) -> tuple[str, np.ndarray]:
    """Name of the codes about zero [rows, count, block] and the steps of all rows."""
    columns = table.shape[1]
    fitting = (block for block in _BLOCKS if bits == 4 and columns % block == 0)
    block = next(fitting, columns)
    is_whole = block == columns
    blocks = quantized(table.T, bits=bits, block=block, symmetric=is_whole)
    codes = blocks.codes.reshape(columns, -1).T
    count = columns // block
    values = unpacked(place, codes, bits, (-1, count, block), rows=rows)
    if is_whole:
        zeros = place.constant(np.array(2 ** (bits - 1), np.float32), "zero")
    else:
        zeros = unpacked(place, blocks.zeros.T, bits, (-1, count, 1), rows=rows)
    values = place.add("Sub", [values, zeros], "codes")
    return values, blocks.stored_steps.T[:, :, None]
