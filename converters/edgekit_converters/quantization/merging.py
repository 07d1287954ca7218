"""Products that read the same tensor become one, whose result is split.

Attention projects one tensor by several matrices. In 8 bits each product is so short that starting
it counts; side by side their columns make one. Columns have steps of their own, so that no number
changes.

Invariant: the model computes what it did. Only MatMul with a constant matrix that nothing else
reads is taken, and only with its bias, where each has one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from edgekit_converters import graph

__all__ = ["merge_products"]

_MIN_OPSET: Final = 13
"""The first with lengths of a Split as an input."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Product:
    node: NodeProto
    matrix: np.ndarray
    """[rows, columns]"""
    sum: NodeProto | None
    """The Add of its bias."""
    bias: np.ndarray | None

    @property
    def output(self) -> str:
        return str((self.sum or self.node).output[0])


def merge_products(model: ModelProto, spared: Collection[str]) -> int:
    """Merge products of the outermost graph in place, but for `spared` nodes; how many became
    fewer."""
    if graph.opset(model) < _MIN_OPSET:
        return 0
    groups: dict[tuple[str, bool], list[_Product]] = {}
    for product in _products(model):
        if product.node.name not in spared:
            key = (product.node.input[0], product.sum is None)
            groups.setdefault(key, []).append(product)
    merged = [group for group in groups.values() if len(group) > 1]
    for group in merged:
        _merge(model, group)
    return sum(len(group) - 1 for group in merged)


def _products(model: ModelProto) -> Iterable[_Product]:
    constants = graph.initializers(model.graph)
    reads = Counter(name for g in graph.graphs(model.graph) for n in g.node for name in n.input)
    reads.update(value.name for g in graph.graphs(model.graph) for value in g.output)
    readers = {name: node for node in model.graph.node for name in node.input}
    for node in model.graph.node:
        if node.op_type != "MatMul" or node.domain not in graph.ONNX_DOMAINS:
            continue
        held = constants.get(node.input[1])
        if held is None or len(held.dims) != 2 or reads[node.input[1]] != 1:
            continue
        if node.input[0] in constants:
            continue
        matrix = numpy_helper.to_array(held)
        if matrix.dtype != np.float32:
            continue
        total = readers.get(node.output[0]) if reads[node.output[0]] == 1 else None
        bias = None if total is None else _bias(total, node.output[0], constants, matrix.shape[1])
        yield _Product(node=node, matrix=matrix, sum=None if bias is None else total, bias=bias)


def _bias(
    total: NodeProto, product: str, constants: Mapping[str, TensorProto], columns: int
) -> np.ndarray | None:
    """What an Add adds to a product, if it is one number for each column."""
    if total.op_type != "Add" or total.domain not in graph.ONNX_DOMAINS:
        return None
    held = constants.get(total.input[1] if total.input[0] == product else total.input[0])
    if held is None or list(held.dims) != [columns]:
        return None
    array: np.ndarray = numpy_helper.to_array(held)
    return array if array.dtype == np.float32 else None


def _merge(model: ModelProto, group: list[_Product]) -> None:
    within, first = model.graph, group[0].node
    names = {name for node in within.node for name in (*node.input, *node.output)}
    stem = f"{first.output[0]}/beside"
    while any(name.startswith(stem) for name in names):
        stem += "_"

    def constant(suffix: str, array: np.ndarray) -> str:
        within.initializer.append(numpy_helper.from_array(array, f"{stem}/{suffix}"))
        return f"{stem}/{suffix}"

    matrix = constant("matrix", np.concatenate([p.matrix for p in group], axis=1))
    made = [helper.make_node("MatMul", [first.input[0], matrix], [f"{stem}/product"], first.name)]
    biases = [p.bias for p in group if p.bias is not None]
    if biases:
        parts = [made[-1].output[0], constant("bias", np.concatenate(biases))]
        made.append(helper.make_node("Add", parts, [f"{stem}/sum"], f"{stem}/sum"))
    lengths = constant("lengths", np.array([p.matrix.shape[1] for p in group], np.int64))
    parts, outputs = [made[-1].output[0], lengths], [p.output for p in group]
    made.append(helper.make_node("Split", parts, outputs, f"{stem}/split", axis=-1))
    gone = {n.output[0] for p in group for n in (p.node, p.sum) if n is not None}
    kept: list[NodeProto] = []
    for node in within.node:
        if node.output[0] == first.output[0]:
            kept += made
        if node.output[0] not in gone:
            kept.append(node)
    nodes = [NodeProto.FromString(node.SerializeToString()) for node in kept]
    dropped = {p.node.input[1] for p in group}
    del within.node[:]
    within.node.extend(nodes)
    # one by one: what is put in anew is held twice
    for at in range(len(within.initializer) - 1, -1, -1):
        if within.initializer[at].name in dropped:
            del within.initializer[at]
