"""Weights alone in fewer bits; the arithmetic is that of float32, or nearly.

Invariant: a weight is taken only where that saves bytes; one that is not finite, or that the narrow
format does not hold, stays as it was.

Two ways: stored, where nodes at the front of the graph widen a weight again, which the runtime
folds while it loads, so that a model is smaller on disk and as fast as before; and in blocks,
where onnxruntime's MatMulNBits computes with the narrow weights themselves, so that memory stays
small, too (Frantar et al., "GPTQ", arXiv 2210.17323, for what rounding may do about it).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto

from edgekit_contract.errors import Refused
from edgekit_converters import graph
from edgekit_converters.conditioning.grid import FULL_LEVELS, Grid
from edgekit_converters.conditioning.layers import LAYER_OPERATORS, layers
from edgekit_converters.conditioning.moments import Moments
from edgekit_converters.conditioning.rounding import reconstruct
from edgekit_converters.quantization.bits import share
from edgekit_converters.quantization.blockwise import channelwise, quantized
from edgekit_converters.quantization.draft import CONTRIB, Draft, Place, attributes, gemm_bias
from edgekit_converters.quantization.tables import kept_tables, table_of, take_rows

__all__ = ["Products", "halve_weights", "narrow_weights", "reconstruct_stored", "stored_weights"]

_NODE_BYTES: Final = 512
"""What the nodes that widen a weight take, about."""
_RECURRENT: Final = frozenset({"GRU", "LSTM", "RNN"})


@dataclass(frozen=True, kw_only=True)
class Products:
    """How MatMulNBits keeps and multiplies weights."""

    bits: int
    block: int
    symmetric: bool = True
    integer: bool = False
    """Quantize activations, too, in blocks, and multiply in 8 bits."""


def narrow_weights(
    source: Path,
    out: Path,
    *,
    products: Products | None,
    spared: frozenset[str] = frozenset(),
    moments: Mapping[str, Moments] | None = None,
) -> None:
    """Write `source` with its weights stored in 8 bits, those of MatMul and Gemm as `products` say.

    `spared` nodes stay float32, or have their weights stored in 8 bits where the others have
    fewer. Errors: `Refused` where no weight is worth it.
    """
    model = onnx.load_model(source)
    if moments and products is None:
        reconstruct_stored(model, moments, spared=spared)
    is_packed = products is not None and products.bits < 8
    rewriting = _Narrowing(
        products=products,
        spared=spared,
        moments=moments or {},
        kept=kept_tables(model, frozenset() if is_packed else spared),
    )
    draft = Draft(model)
    if not draft.replace(rewriting.change) or (products and not rewriting.multiplied):
        raise Refused("no weight is large enough to be worth storing in fewer bits.")
    draft.save(out)


def halve_weights(source: Path, out: Path) -> None:
    """Write `source` with its float32 constants stored in float16. Errors: `Refused`."""
    draft = Draft(onnx.load_model(source))
    if not draft.replace(_halved):
        raise Refused("no constant is large enough to be worth storing in float16.")
    draft.save(out)


def _halved(place: Place, node: NodeProto) -> bool:
    """Take all constants of a node; a table's rows are widened while the model runs."""
    if node.domain not in graph.ONNX_DOMAINS:
        return False
    taken = {}
    for name in node.input:
        holder = place.holder(name)
        values = place.floats(name)
        if holder is None or values is None or not _fits_half(values):
            continue
        narrow = holder.memory.get(("half", name))
        if narrow is None:
            narrow = holder.constant(values.astype(np.float16), f"{name}_float16")
            holder.memory["half", name] = narrow
        if node.op_type == "Gather" and name == node.input[0]:
            rows = place.fresh("rows")
            place.again(node, {name: narrow}, outputs=[rows])
            place.add("Cast", [rows], "rows", outputs=node.output, to=TensorProto.FLOAT)
            return True
        wide = holder.memory.get(("wide", name))
        if wide is None:
            wide = holder.add("Cast", [narrow], f"{name}_wide", front=True, to=TensorProto.FLOAT)
            holder.memory["wide", name] = wide
        taken[name] = wide
    if taken:
        place.again(node, taken)
    return bool(taken)


def _fits_half(values: np.ndarray) -> bool:
    half = np.finfo(np.float16)
    largest = float(np.max(np.abs(values), initial=0))
    return values.nbytes // 2 > _NODE_BYTES and float(half.tiny) < largest < float(half.max)


@dataclass(kw_only=True)
class _Narrowing:
    products: Products | None
    spared: frozenset[str]
    moments: Mapping[str, Moments]
    kept: frozenset[str]
    """Tables that stay float32 whatever becomes of a node."""
    multiplied: int = 0
    """Nodes that became MatMulNBits."""

    def change(self, place: Place, node: NodeProto) -> bool:
        is_spared = node.name in self.spared
        is_packing = self.products is not None and self.products.bits < 8
        if node.domain not in graph.ONNX_DOMAINS or (is_spared and not is_packing):
            return False
        if (table := table_of(place, node, self.kept)) is not None:
            take_rows(place, node, table, bits=4 if is_packing and not is_spared else 8)
            return True
        if self.products is not None and not is_spared and self._in_blocks(place, node):
            return True
        if taken := stored_weights(place, node):
            place.again(node, taken)
        return bool(taken)

    def _in_blocks(self, place: Place, node: NodeProto) -> bool:
        products, values = self.products, attributes(node)
        assert products is not None
        if node.op_type not in ("MatMul", "Gemm") or values.get("transA"):
            return False
        weight = place.floats(node.input[1])
        if place.holder(node.input[0]) is not None or weight is None or weight.ndim != 2:
            return False
        if weight.nbytes * (32 - products.bits) // 32 <= 2 * _NODE_BYTES:
            return False
        if not np.isfinite(weight).all():
            return False
        matrix = (weight.T if values.get("transB") else weight) * np.float32(values.get("alpha", 1))
        holder = place.holder(node.input[1])
        assert holder is not None
        key = ("blocks", node.input[1], values.get("transB"), values.get("alpha"))
        if key not in holder.memory:
            holder.memory[key] = self._blocks(holder, node, matrix)
        names = holder.memory[key]
        rows, columns = matrix.shape
        bias = gemm_bias(place, node)
        product = place.add(
            "MatMulNBits",
            [node.input[0], *names],
            node.name,
            outputs=[] if bias else node.output,
            domain=CONTRIB,
            K=rows,
            N=columns,
            bits=products.bits,
            block_size=products.block,
            accuracy_level=4 if products.integer else 0,
        )
        if bias:
            place.add("Add", [product, bias], "sum", outputs=node.output)
        self.multiplied += 1
        return True

    def _blocks(self, holder: Place, node: NodeProto, matrix: np.ndarray) -> list[str]:
        """Names of codes [columns, blocks, bytes], steps, and zero points unless symmetric."""
        products = self.products
        assert products is not None
        bits = products.bits
        blocks = quantized(
            matrix,
            bits=bits,
            block=products.block,
            symmetric=products.symmetric,
            moments=self.moments.get(node.name),
        )
        codes = blocks.codes.transpose(2, 0, 1)
        packed = share(codes, bits)
        steps = holder.constant(blocks.stored_steps.T, "steps")
        if blocks.stored_steps.dtype != np.float32:
            steps = holder.add("Cast", [steps], "steps", front=True, to=TensorProto.FLOAT)
        names = [holder.constant(packed, "weights"), steps]
        if not products.symmetric:
            names.append(holder.constant(share(blocks.zeros.T, bits), "zeros"))
        return names


def reconstruct_stored(
    model: ModelProto,
    moments: Mapping[str, Moments],
    *,
    spared: frozenset[str],
    operators: Collection[str] = LAYER_OPERATORS,
) -> None:
    """Round what `stored_weights` takes of nodes that are not spared, on the grid that it uses."""
    nodes = [
        layer.name
        for layer in layers(model)
        if layer.operator in operators
        and layer.name not in spared
        and is_worth_storing(math.prod(layer.shape))
    ]
    reconstruct(model, moments, nodes=nodes, grid=Grid(per_channel=True))


def stored_weights(place: Place, node: NodeProto) -> dict[str, str]:
    """Store a node's weights as int8 with a step per output channel: what each one's name becomes.

    Empty where no weight is worth it.
    """
    taken: dict[str, str] = {}
    for name in stored_inputs(node):
        weight, holder = place.floats(name), place.holder(name)
        if weight is None or holder is None or not np.isfinite(weight).all():
            continue
        axes = sharing(node, weight.ndim)
        if axes is None or not is_worth_storing(weight.size):
            continue
        key = ("stored", name, axes)
        if key not in holder.memory:
            codes, steps = channelwise(weight, axes, levels=FULL_LEVELS)
            wide = holder.constant(codes, f"{name}_int8")
            wide = holder.add("Cast", [wide], f"{name}_wide", front=True, to=TensorProto.FLOAT)
            factors = holder.constant(steps, "steps")
            holder.memory[key] = holder.add("Mul", [wide, factors], f"{name}_wide", front=True)
        taken[name] = holder.memory[key]
    return taken


def stored_inputs(node: NodeProto) -> list[str]:
    """Names of the weights that `stored_weights` may take."""
    return list(node.input[1:3] if node.op_type in _RECURRENT else node.input[1:2])


def is_worth_storing(elements: int) -> bool:
    """Whether a weight of so many elements is smaller with the nodes that unpack it."""
    return 2 * elements > _NODE_BYTES


def sharing(node: NodeProto, rank: int) -> tuple[int, ...] | None:
    """Axes of a weight along which one step serves: all but those of output channels."""
    match node.op_type:
        case "Conv":
            return tuple(range(1, rank))
        case "ConvTranspose":
            return (0, *range(2, rank))
        case "MatMul":
            return (rank - 2,) if rank >= 2 else None
        case "Gemm":
            return (1,) if attributes(node).get("transB") else (0,)
        case operator if operator in _RECURRENT:
            return (2,)
    return None
