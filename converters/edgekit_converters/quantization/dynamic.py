"""Dynamic quantization: 8-bit products of weights quantized beforehand and of activations that are
quantized while the model runs.

Sources: ONNX operators DynamicQuantizeLinear and MatMulInteger; onnxruntime's DynamicQuantizeLSTM.
Not Conv: onnxruntime's ConvInteger is slower than its float32 Conv wherever it was measured; its
weights are stored in 8 bits all the same, and widened while the model loads.

Weights are symmetric, so that products need no correction by the sums of activations. They may be
stored in fewer bits, in blocks (`folding`); the arithmetic is that of 8 bits.

Invariant: a node that is not taken, and all that it reads, stays as it was.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import onnx
from onnx import NodeProto, TensorProto

from edgekit_contract.errors import Refused
from edgekit_converters import graph
from edgekit_converters.conditioning.grid import FULL_LEVELS, REDUCED_LEVELS, Grid
from edgekit_converters.conditioning.moments import Moments
from edgekit_converters.conditioning.rounding import reconstruct
from edgekit_converters.quantization.blockwise import channelwise
from edgekit_converters.quantization.draft import CONTRIB, Draft, Place, attributes, gemm_bias
from edgekit_converters.quantization.folding import pack, unfold
from edgekit_converters.quantization.merging import merge_products
from edgekit_converters.quantization.tables import kept_tables, table_of, take_rows
from edgekit_converters.quantization.weight_only import reconstruct_stored, stored_weights

__all__ = ["Storage", "quantize_dynamic"]

_PRODUCTS: Final = frozenset({"Gemm", "MatMul"})
_STORED: Final = frozenset({"Conv", "ConvTranspose", "GRU", "RNN"})
_NODE_BYTES: Final = 4096
"""What the nodes that widen packed weights take, about."""
_LEAST_SHARE: Final = 0.01
"""Of the model's weights: what a table has to save by fewer than 8 bits. Each time that rows of it
are taken, they have to be put together from their parts."""


@dataclass(frozen=True, kw_only=True)
class Storage:
    """How weights are kept in the file; products are of 8 bits whatever it is."""

    bits: int = 8
    block: int | None = None
    """Rows that share a step; None: all of a column."""
    table_bits: int = 8


def quantize_dynamic(
    source: Path,
    out: Path,
    *,
    per_channel: bool,
    reduce_range: bool,
    storage: Storage,
    spared: frozenset[str] = frozenset(),
    moments: Mapping[str, Moments] | None = None,
) -> None:
    """Write `source` with 8-bit products in its MatMul, Gemm and LSTM nodes and narrow tables in
    its Gather nodes, subgraphs included; other nodes' weights are stored in 8 bits.

    `reduce_range` keeps weights within 7 bits. `spared` nodes stay float32, or keep 8 bits where
    the others are stored in fewer; `moments` of nodes make rounding mind their inputs. Errors:
    `Refused` where nothing can be quantized.
    """
    model = onnx.load_model(source)
    levels = REDUCED_LEVELS if reduce_range else FULL_LEVELS
    is_packed = storage.bits < 8
    if moments and not is_packed:
        products = [n.name for n in model.graph.node if n.op_type in _PRODUCTS]
        grid = Grid(per_channel=per_channel, levels=levels)
        reconstruct(model, moments, nodes=set(products) - spared, grid=grid)
        reconstruct_stored(model, moments, spared=spared, operators=_STORED)
    if per_channel:  # a step for all of several matrices would be another
        merge_products(model, spared)
    rewriting = _Rewriting(
        per_channel=per_channel,
        levels=levels,
        storage=storage,
        spared=spared,
        moments=moments or {},
        kept=kept_tables(model, frozenset() if is_packed else spared),
        weights=sum(math.prod(t.dims) for g in graph.graphs(model.graph) for t in g.initializer),
    )
    draft = Draft(model)
    draft.replace(rewriting.change_or_store)
    if not rewriting.taken:
        raise Refused("no node could be quantized.")
    if is_packed and not rewriting.packed:
        raise Refused("no weight is large enough to be worth packing: use int8-dynamic.")
    draft.save(out)


@dataclass(kw_only=True)
class _Rewriting:
    per_channel: bool
    levels: int
    storage: Storage
    spared: frozenset[str]
    moments: Mapping[str, Moments]
    kept: frozenset[str]
    """Tables that stay float32 whatever becomes of a node."""
    weights: int
    """Elements of all constants."""
    taken: int = 0
    """Nodes that are quantized dynamically so far."""
    packed: int = 0
    """Weights stored in fewer than 8 bits so far."""

    def change_or_store(self, place: Place, node: NodeProto) -> bool:
        """Quantize a node, or keep its weights in 8 bits if it has to compute in float32."""
        if self._change(place, node):
            self.taken += 1
            return True
        if node.name in self.spared or node.op_type not in _STORED:
            return False
        if stored := stored_weights(place, node):
            place.again(node, stored)
        return bool(stored)

    def _change(self, place: Place, node: NodeProto) -> bool:
        is_spared, is_packing = node.name in self.spared, self.storage.bits < 8
        if node.domain not in graph.ONNX_DOMAINS or (is_spared and not is_packing):
            return False
        if node.op_type == "LSTM":
            return self._lstm(place, node)
        if (table := table_of(place, node, self.kept)) is not None:
            take_rows(place, node, table, bits=self._table_bits(table, is_spared))
            return True
        if node.op_type not in _PRODUCTS or place.holder(node.input[0]) is not None:
            return False
        weight = place.floats(node.input[1])
        if weight is None or weight.ndim < 2 or not np.isfinite(weight).all():
            return False
        values = attributes(node)
        saved_bytes = weight.size * (8 - self.storage.bits) // 8
        is_narrow = not is_spared and weight.ndim == 2 and saved_bytes > _NODE_BYTES
        codes, steps = self._weights(place, node, weight, narrow=is_narrow)
        activation = node.input[0]
        if values.get("transA"):
            activation = place.add("Transpose", [activation], "turned", perm=[1, 0])
        self._product(place, node, activation, codes, steps * np.float32(values.get("alpha", 1)))
        return True

    def _table_bits(self, table: np.ndarray, is_spared: bool) -> int:
        bits = self.storage.table_bits
        saved = table.size * (8 - bits) / 8
        return 8 if is_spared or saved < _LEAST_SHARE * self.weights else bits

    def _weights(
        self, place: Place, node: NodeProto, weight: np.ndarray, *, narrow: bool
    ) -> tuple[str, np.ndarray]:
        """Name of the int8 weights, rows first, and their steps [1, columns] or []."""
        holder = place.holder(node.input[1])
        assert holder is not None
        is_turned = bool(attributes(node).get("transB"))
        key = ("weights", node.input[1], is_turned, narrow)
        if key not in holder.memory:
            matrix = weight.T if is_turned else weight
            holder.memory[key] = (
                self._packed(holder, node, matrix) if narrow else self._plain(holder, matrix)
            )
        codes, steps = holder.memory[key]
        return codes, steps

    def _plain(self, holder: Place, matrix: np.ndarray) -> tuple[str, np.ndarray]:
        axes = (-2,) if self.per_channel else tuple(range(matrix.ndim))
        codes, steps = channelwise(matrix, axes, levels=self.levels)
        return holder.constant(codes, "weights"), steps if self.per_channel else steps.reshape(())

    def _packed(self, holder: Place, node: NodeProto, matrix: np.ndarray) -> tuple[str, np.ndarray]:
        self.packed += 1
        bits, rows = self.storage.bits, len(matrix)
        block = min(self.storage.block or rows, rows)
        packed = pack(
            matrix,
            bits=bits,
            block=block,
            levels=self.levels,
            moments=self.moments.get(node.name),
        )
        return unfold(holder, packed), packed.steps[None]

    def _product(
        self, place: Place, node: NodeProto, activation: str, codes: str, steps: np.ndarray
    ) -> None:
        key = ("dynamic", activation)
        if key not in place.memory:
            names = [place.fresh(f"{activation}_{part}") for part in ("uint8", "step", "zero")]
            place.add("DynamicQuantizeLinear", [activation], activation, outputs=names)
            place.memory[key] = names
        small, step, zero = place.memory[key]
        total = place.add("MatMulInteger", [small, codes, zero], "total")
        total = place.add("Cast", [total], "total", to=TensorProto.FLOAT)
        steps = steps.reshape(-1) if steps.ndim == 2 else steps
        scale = place.add("Mul", [step, place.constant(steps, "steps")], "scale")
        bias = gemm_bias(place, node)
        result = node.output[0]
        scaled = place.add("Mul", [total, scale], "product", outputs=[] if bias else [result])
        if bias:
            place.add("Add", [scaled, bias], "sum", outputs=[result])

    def _lstm(self, place: Place, node: NodeProto) -> bool:
        values = attributes(node)
        weights = [place.floats(name) for name in node.input[1:3]]
        if values.pop("layout", 0) or any(w is None or not np.isfinite(w).all() for w in weights):
            return False
        added: list[list[str]] = []
        for name, weight in zip(node.input[1:3], weights, strict=True):
            assert weight is not None
            holder = place.holder(name)
            assert holder is not None
            axes = (2,) if self.per_channel else (1, 2)
            codes, steps = channelwise(weight, axes, levels=self.levels)
            turned = holder.constant(codes.swapaxes(1, 2), "weights")
            kept = (len(weight), -1) if self.per_channel else (len(weight),)
            flat = steps.reshape(kept)
            zeros = np.zeros(flat.shape, np.int8)
            added.append([turned, holder.constant(flat, "steps"), holder.constant(zeros, "zeros")])
        (w, *of_w), (r, *of_r) = added
        rest = [*node.input[3:], *[""] * (8 - len(node.input))]
        place.add(
            "DynamicQuantizeLSTM",
            [node.input[0], w, r, *rest, *of_w, *of_r],
            node.name,
            outputs=node.output,
            domain=CONTRIB,
            **values,
        )
        return True
