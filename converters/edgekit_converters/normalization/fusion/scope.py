"""One graph of a model as rules see it: who makes a value, who reads it, which are constant.

Invariant: a view. Only `constant_named` and `replace` change the graph, and the index follows them.
Values of the graphs around are seen as constants where they are, and as given where they are not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, helper, numpy_helper

from edgekit_converters import graph
from edgekit_converters.normalization.fusion.shapes import Dims, Shapes

__all__ = ["CONTRIB", "Scope", "attribute", "is_op", "reads", "subgraphs"]

CONTRIB = "com.microsoft"
"""Operators that every build of onnxruntime has beside ONNX's own."""


class Scope:
    """The index of one graph; `around` is that of the graph that holds it."""

    def __init__(self, current: GraphProto, shapes: Shapes, *, opset: int, around: Scope | None):
        self.graph = current
        self.shapes = shapes
        self.opset = opset
        self.around = around
        self.returned = {value.name for value in current.output}
        self._tensors = graph.initializers(current)
        self._arrays: dict[str, np.ndarray] = {}
        self.index()

    def index(self) -> None:
        self.producers: dict[str, NodeProto] = {}
        self.users: dict[str, list[NodeProto]] = {}
        self.position: dict[str, int] = {}
        for at, node in enumerate(self.graph.node):
            for name in filter(None, node.output):
                self.producers[name] = node
                self.position[name] = at
            for name in set(reads(node)):
                self.users.setdefault(name, []).append(node)

    def producer(self, name: str, *ops: str) -> NodeProto | None:
        """The node of this graph that makes `name`, if it is one of `ops` (any, if none given)."""
        node = self.producers.get(name)
        return node if node is not None and (not ops or is_op(node, *ops)) else None

    def sole_user(self, name: str) -> NodeProto | None:
        """The one node that reads `name`, where neither another node nor the caller does."""
        users = self.users.get(name, [])
        return users[0] if len(users) == 1 and name not in self.returned else None

    def array(self, name: str) -> np.ndarray | None:
        """The value of a constant of this graph or of those around it."""
        if name in self._arrays:
            return self._arrays[name]
        if (tensor := self._tensors.get(name)) is not None:
            if tensor.data_location == TensorProto.EXTERNAL:
                return None  # weights in another file stay as they are
            self._arrays[name] = numpy_helper.to_array(tensor)
            return self._arrays[name]
        if name in self.producers or any(v.name == name for v in self.graph.input):
            return None
        return self.around.array(name) if self.around is not None else None

    def is_constant(self, name: str) -> bool:
        return self.array(name) is not None

    def owns(self, name: str) -> bool:
        """Whether `name` is a constant of this very graph."""
        return name in self._tensors

    def integers(self, node: NodeProto, name: str, at: int) -> tuple[int, ...] | None:
        """A list of integers that is an attribute in old opsets and input `at` in newer ones."""
        if (held := attribute(node, name)) is not None:
            return tuple(held)
        if len(node.input) <= at or not node.input[at]:
            return None
        array = self.array(node.input[at])
        return None if array is None else tuple(int(v) for v in array.ravel())

    def dims(self, name: str) -> Dims | None:
        if (array := self.array(name)) is not None:
            return tuple(array.shape)
        return self.shapes.dims(name)

    def operands(self, node: NodeProto) -> Iterator[tuple[str, str]]:
        """The operands of a binary node, in both orders."""
        first, second = node.input
        yield first, second
        yield second, first

    def constant_named(self, hint: str, value: np.ndarray) -> str:
        """Add a constant; its name, made from `hint`, is one that no value has."""
        name = self._fresh(hint)
        self._tensors[name] = self.graph.initializer.add()
        self._tensors[name].CopyFrom(numpy_helper.from_array(np.asarray(value, order="C"), name))
        return name

    def node(self, op: str, inputs: Sequence[str], output: str, **attributes: Any) -> NodeProto:
        """A new node, of onnxruntime's own domain where `op` says so (`com.microsoft:Gelu`)."""
        domain, _, name = op.rpartition(":")
        return helper.make_node(
            name, inputs, [output], name=f"{output}/{name}", domain=domain, **attributes
        )

    def between(self, hint: str) -> str:
        """The name of a new value."""
        return self._fresh(hint)

    def _fresh(self, hint: str) -> str:
        name, suffix = hint, 1
        while name in self.shapes.names:
            suffix += 1
            name = f"{hint}_{suffix}"
        self.shapes.names.add(name)
        return name

    def replace(self, node: NodeProto, by: Sequence[NodeProto] | str) -> None:
        """Put other nodes in the place of `node`, or let its readers read another value.

        What nobody reads any more is dropped, with the constants that only it read.
        """
        at = self.position[node.output[0]]
        del self.graph.node[at]
        if isinstance(by, str):
            _rename(self.graph, node.output[0], by)
        else:
            for offset, new in enumerate(by):
                self.graph.node.insert(at + offset, new)
        self._prune()

    def _prune(self) -> None:
        self.index()
        unused = [
            at
            for at, node in enumerate(self.graph.node)
            if not any(name in self.users or name in self.returned for name in node.output)
        ]
        for at in reversed(unused):
            del self.graph.node[at]
        if unused:
            self._prune()
            return
        for at in range(len(self.graph.initializer) - 1, -1, -1):
            name = self.graph.initializer[at].name
            if name not in self.users and name not in self.returned:
                del self.graph.initializer[at]
                self._tensors.pop(name, None)
                self._arrays.pop(name, None)
        self._tensors = graph.initializers(self.graph)


def is_op(node: NodeProto, *ops: str) -> bool:
    """Whether a node is one of these operators of ONNX."""
    return node.op_type in ops and node.domain in graph.ONNX_DOMAINS


def attribute(node: NodeProto, name: str, default: Any = None) -> Any:
    for held in node.attribute:
        if held.name == name:
            return helper.get_attribute_value(held)
    return default


def subgraphs(node: NodeProto) -> Mapping[str, GraphProto]:
    """Graphs that a node holds (the branches of an If, the body of a Loop), by attribute."""
    return {a.name: a.g for a in node.attribute if a.type == AttributeProto.GRAPH}


def reads(node: NodeProto) -> Iterator[str]:
    """Values that a node reads, those that its subgraphs take from around included."""
    yield from (name for name in node.input if name)
    for nested in subgraphs(node).values():
        own = {value.name for value in nested.input}
        own |= {tensor.name for tensor in nested.initializer}
        own |= {name for inner in nested.node for name in inner.output}
        for inner in nested.node:
            yield from (name for name in reads(inner) if name not in own)
        yield from (value.name for value in nested.output if value.name not in own)


def _rename(current: GraphProto, old: str, new: str) -> None:
    for node in current.node:
        for at, name in enumerate(node.input):
            if name == old:
                node.input[at] = new
        for nested in subgraphs(node).values():
            _rename(nested, old, new)
