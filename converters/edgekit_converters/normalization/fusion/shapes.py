"""What is known of shapes before a model runs: lengths of axes as numbers, or as symbols.

Invariant: two axes with the same symbol have the same length for every input that the model takes.
ONNX infers; beyond it, the open axis of a Reshape is solved for, since elements are neither made
nor lost, and short integer tensors (targets of Reshape and Expand) are followed symbol by symbol.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Final

import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper

from edgekit_converters import graph

__all__ = ["Dim", "Dims", "Shapes"]

Dim = int | str
Dims = tuple[Dim, ...]
_SHORT_BYTES: Final = 1024
"""Tensors beyond this are weights: no shape follows from their values."""
_ELEMENTWISE_CONTRIB: Final = frozenset({"Gelu", "FastGelu", "QuickGelu"})


class Shapes:
    """Shapes and element types of all values of a model, subgraphs included."""

    def __init__(self, model: ModelProto) -> None:
        self.names = {name for current in graph.graphs(model.graph) for name in _names(current)}
        self._types: dict[str, int] = {}
        self._dims: dict[str, Dims] = {}
        self._equal: dict[str, Dim] = {}
        inferred = _inferred(model)
        self._given = {
            axis.dim_param
            for value in model.graph.input
            for axis in value.type.tensor_type.shape.dim
        }
        """Symbols of the model itself: what they stand for is the caller's choice."""
        for current in graph.graphs(inferred.graph):
            for tensor in current.initializer:
                self._types[tensor.name] = tensor.data_type
                self._dims[tensor.name] = tuple(tensor.dims)
            for value in (*current.input, *current.output, *current.value_info):
                self._note(value)
        for current in graph.graphs(inferred.graph):
            for node in current.node:
                if node.op_type == "Reshape" and node.domain in graph.ONNX_DOMAINS:
                    self._solve(node)

    def dims(self, name: str) -> Dims | None:
        dims = self._dims.get(name)
        return None if dims is None else tuple(self._same(d) for d in dims)

    def type(self, name: str) -> int:
        """The element type, or `TensorProto.UNDEFINED`."""
        return self._types.get(name, TensorProto.UNDEFINED)

    def write(self, model: ModelProto) -> None:
        """Note in the model what is known as numbers: quantizers ask, and ONNX alone cannot say it
        of values behind operators outside its own."""
        for current in graph.graphs(model.graph):
            made = [name for node in current.node for name in node.output if name]
            outputs = {value.name for value in current.output}
            del current.value_info[:]
            for name in made:
                if name in outputs or not self.type(name):
                    continue
                dims = self.dims(name)
                known = None if dims is None else [d if isinstance(d, int) else None for d in dims]
                value = helper.make_tensor_value_info(name, self.type(name), known)
                current.value_info.append(value)

    def _note(self, value: onnx.ValueInfoProto) -> None:
        tensor = value.type.tensor_type
        if not value.type.HasField("tensor_type"):
            return
        self._types.setdefault(value.name, tensor.elem_type)
        if tensor.HasField("shape"):
            self._dims.setdefault(
                value.name,
                tuple(
                    axis.dim_value
                    if axis.HasField("dim_value")
                    else axis.dim_param
                    # an axis of which nothing is known is like no other
                    or f"{value.name}[{at}]"
                    for at, axis in enumerate(tensor.shape.dim)
                ),
            )

    def _solve(self, node: NodeProto) -> None:
        before, after = self.dims(node.input[0]), self.dims(node.output[0])
        if before is None or after is None or 0 in (*before, *after):
            return
        change = Counter(d for d in after if isinstance(d, str))
        change.subtract(d for d in before if isinstance(d, str))
        gained = [d for d, times in change.items() if times > 0]
        lost = [d for d, times in change.items() if times < 0]
        if len(gained) != 1 or len(lost) > 1 or any(abs(t) > 1 for t in change.values()):
            return
        ratio, rest = divmod(_product(before), _product(after))
        if rest or gained[0] in self._given:
            return
        if not lost:
            self._equal[gained[0]] = ratio
        elif ratio == 1:
            self._equal[gained[0]] = lost[0]

    def _same(self, dim: Dim) -> Dim:
        while isinstance(dim, str) and dim in self._equal:
            dim = self._equal[dim]
        return dim


def _product(dims: Dims) -> int:
    result = 1
    for d in dims:
        result *= d if isinstance(d, int) else 1
    return result


def _names(current: GraphProto) -> Iterator[str]:
    yield from (value.name for value in (*current.input, *current.output))
    yield from (tensor.name for tensor in current.initializer)
    for node in current.node:
        yield from node.output


def _inferred(model: ModelProto) -> ModelProto:
    """The graph with inferred shapes, without its weights."""
    skeleton = ModelProto()
    skeleton.CopyFrom(model)
    for current in graph.graphs(skeleton.graph):
        del current.value_info[:]
        for tensor in current.initializer:
            if len(tensor.raw_data) > _SHORT_BYTES:
                tensor.ClearField("raw_data")
        for node in current.node:
            if node.domain and node.op_type in _ELEMENTWISE_CONTRIB:
                node.domain, node.op_type = "", "Identity"
                del node.input[1:]
                del node.attribute[:]
    for value in skeleton.graph.input:
        for at, axis in enumerate(value.type.tensor_type.shape.dim):
            if not axis.HasField("dim_value") and not axis.dim_param:
                axis.dim_param = f"{value.name}[{at}]"
    try:
        return onnx.shape_inference.infer_shapes(skeleton, data_prop=True)
    except onnx.shape_inference.InferenceError:
        return skeleton
