"""Products that read the same tensor become one, whose result is split.

Attention projects one tensor by several matrices. In 8 bits each product is so short that starting
it counts; side by side their columns make one. Columns have steps of their own, so that no number
changes. Where each projection is then laid out by heads, all are, in one, before they are split:
two nodes for six, and the parts lie together.

Invariant: the model computes what it did. Only MatMul with a constant matrix that nothing else
reads is taken, and only with its bias, where each has one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from edgekit_converters import graph

__all__ = ["merge_products"]

_MIN_OPSET: Final = 13
"""The first with lengths of a Split as an input."""


_BY_HEADS: Final[Mapping[tuple[int, ...], tuple[int, ...]]] = {
    (0, 2, 1, 3): (),
    (0, 2, 3, 1): (0, 1, 3, 2),
}
"""How a Transpose brings heads to the front, and what it does to them besides."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Product:
    node: NodeProto
    matrix: np.ndarray
    """[rows, columns]"""
    sum: NodeProto | None
    """The Add of its bias."""
    bias: np.ndarray | None
    heads: _Heads | None
    """How its result is laid out, where nothing else reads that."""

    @property
    def output(self) -> str:
        return str((self.sum or self.node).output[0])


@dataclass(frozen=True, kw_only=True, eq=False)
class _Heads:
    """A Reshape to [batch, row, head, width] and a Transpose."""

    nodes: tuple[NodeProto, NodeProto]
    shape: tuple[int, ...]
    perm: tuple[int, ...]

    @property
    def output(self) -> str:
        return str(self.nodes[1].output[0])


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
    only = {name: node for node in model.graph.node for name in node.input if reads[name] == 1}
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
        total = only.get(node.output[0])
        bias = None if total is None else _bias(total, node.output[0], constants, matrix.shape[1])
        added = None if bias is None else total
        result = (added or node).output[0]
        yield _Product(
            node=node,
            matrix=matrix,
            sum=added,
            bias=bias,
            heads=_heads(result, only, constants, matrix.shape[1]),
        )


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


def _heads(
    name: str, only: Mapping[str, NodeProto], constants: Mapping[str, TensorProto], columns: int
) -> _Heads | None:
    """How the result `name` is laid out; `only` has what is the only reader of a name."""
    reshape = only.get(name)
    if reshape is None or reshape.op_type != "Reshape" or reshape.attribute:
        return None
    held, transpose = constants.get(reshape.input[1]), only.get(reshape.output[0])
    if held is None or transpose is None or transpose.op_type != "Transpose":
        return None
    shape = tuple(numpy_helper.to_array(held).tolist())
    perm = tuple(helper.get_node_attr_value(transpose, "perm")) if transpose.attribute else ()
    if len(shape) != 4 or perm not in _BY_HEADS or min(shape[2:]) < 1:
        return None
    if shape[2] * shape[3] != columns:
        return None
    return _Heads(nodes=(reshape, transpose), shape=shape, perm=perm)


def _merge(model: ModelProto, group: list[_Product]) -> None:
    within, first = model.graph, group[0].node
    names = {name for node in within.node for name in (*node.input, *node.output)}
    stem = f"{first.output[0]}/beside"
    while any(name.startswith(stem) for name in names):
        stem += "_"
    made: list[NodeProto] = []

    def constant(suffix: str, array: np.ndarray) -> str:
        within.initializer.append(numpy_helper.from_array(array, f"{stem}/{suffix}"))
        return f"{stem}/{suffix}"

    def add(operator: str, inputs: list[str], suffix: str, **values: Any) -> str:
        output = f"{stem}/{suffix}"
        made.append(helper.make_node(operator, inputs, [output], output, **values))
        return output

    def split(whole: str, lengths: list[int], outputs: list[str], axis: int) -> None:
        inputs = [whole, constant("lengths", np.array(lengths, np.int64))]
        made.append(helper.make_node("Split", inputs, outputs, f"{stem}/split", axis=axis))

    matrix = constant("matrix", np.concatenate([p.matrix for p in group], axis=1))
    whole = add("MatMul", [first.input[0], matrix], "product")
    made[-1].name = first.name  # by which a search knows it
    biases = [p.bias for p in group if p.bias is not None]
    if biases:
        whole = add("Add", [whole, constant("bias", np.concatenate(biases))], "sum")
    gone = {n.output[0] for p in group for n in (p.node, p.sum) if n is not None}
    heads = _alike([p.heads for p in group])
    if heads:
        gone |= {node.output[0] for h in heads for node in h.nodes}
        counts = [h.shape[2] for h in heads]
        shape = (*heads[0].shape[:2], sum(counts), heads[0].shape[3])
        whole = add("Reshape", [whole, constant("shape", np.array(shape, np.int64))], "heads")
        whole = add("Transpose", [whole], "by_heads", perm=(0, 2, 1, 3))
        besides = [_BY_HEADS[h.perm] for h in heads]
        parts = [
            f"{stem}/part_{at}" if more else h.output
            for at, (h, more) in enumerate(zip(heads, besides, strict=True))
        ]
        split(whole, counts, parts, axis=1)
        for h, part, more in zip(heads, parts, besides, strict=True):
            if more:
                made.append(helper.make_node("Transpose", [part], [h.output], part, perm=more))
    else:
        split(whole, [p.matrix.shape[1] for p in group], [p.output for p in group], axis=-1)
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


def _alike(every: list[_Heads | None]) -> list[_Heads]:
    """All, where there are all and they differ in the number of heads alone; else none."""
    found = [heads for heads in every if heads is not None]
    shapes = {(heads.shape[:2], heads.shape[3]) for heads in found}
    return found if len(found) == len(every) and len(shapes) == 1 else []
