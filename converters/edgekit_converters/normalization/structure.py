"""Take out of a graph what only moves values around: decided Ifs, Identity, Dropout.

Invariant: subgraphs are entered, and a name means the same value before and after, wherever it is
still read: names of an inlined branch are new, since two branches may use the same ones (ONNX IR
specification, "Names Within a Graph").
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from edgekit_converters import graph

__all__ = ["simplify"]

_MAX_ROUNDS: Final = 64
"""Deeper nesting of decided Ifs than anybody writes."""


def simplify(model: ModelProto) -> int:
    """Inline Ifs whose condition is a constant, then drop nodes that pass their input on.

    Returns how many Ifs were inlined: what they held may now be simplified further.
    """
    inlined = 0
    names = graph.Names(model)
    for _ in range(_MAX_ROUNDS):
        found = _inline_decided(model.graph, {}, names)
        if not found:
            break
        inlined += found
    read = graph.read_names(model)
    for current in graph.graphs(model.graph):
        _drop_passing(current, read)
    return inlined


def _inline_decided(
    current: GraphProto, known: Mapping[str, TensorProto], names: graph.Names
) -> int:
    """One round over a graph and those in it; `known` are the constants of the graphs around."""
    constants = {**known, **graph.initializers(current)}
    inlined = 0
    nodes: list[NodeProto] = []
    for node in current.node:
        branch = _decided(node, constants)
        if branch is None:
            for inner in graph.nested(node):
                inlined += _inline_decided(inner, constants, names)
            nodes.append(node)
        else:
            nodes += _inlined(current, node, branch, names)
            inlined += 1
    if inlined:
        kept = [graph.copied(node) for node in nodes]
        del current.node[:]
        current.node.extend(kept)
    return inlined


def _decided(node: NodeProto, constants: Mapping[str, TensorProto]) -> GraphProto | None:
    """The branch that an If always takes."""
    if node.op_type != "If" or node.domain not in graph.ONNX_DOMAINS:
        return None
    condition = constants.get(node.input[0])
    if condition is None or condition.data_type != TensorProto.BOOL:
        return None
    values = numpy_helper.to_array(condition)
    wanted = "then_branch" if values.size == 1 and bool(values.item()) else "else_branch"
    found = [a.g for a in node.attribute if a.name == wanted]
    return found[0] if found and values.size == 1 and not found[0].sparse_initializer else None


def _inlined(
    current: GraphProto, node: NodeProto, branch: GraphProto, names: graph.Names
) -> list[NodeProto]:
    """The branch's nodes, writing what the If wrote; its initializers go to `current`."""
    body = GraphProto()
    body.CopyFrom(branch)
    produced = {name for inner in body.node for name in inner.output if name}
    renamed: dict[str, str] = {}
    copies: list[NodeProto] = []
    for returned, result in zip(body.output, node.output, strict=False):
        if not result:
            continue
        if returned.name in produced and returned.name not in renamed:
            renamed[returned.name] = result
        else:  # a constant, a value from outside, or one that is returned twice
            copies.append(helper.make_node("Identity", [returned.name], [result]))
    for name in (*produced, *(tensor.name for tensor in body.initializer)):
        if name not in renamed:
            renamed[name] = names.new(f"{node.output[0]}/{name}")
    for tensor in body.initializer:
        tensor.name = renamed[tensor.name]
        current.initializer.append(tensor)
    for inner in (*body.node, *copies):
        _rename(inner, renamed)
    for inner in body.node:
        inner.output[:] = [renamed.get(name, name) for name in inner.output]
    return [*body.node, *copies]


def _rename(node: NodeProto, renamed: Mapping[str, str]) -> None:
    """Read other names in a node and in the graphs in it."""
    node.input[:] = [renamed.get(name, name) for name in node.input]
    for inner in graph.nested(node):
        for within in inner.node:
            _rename(within, renamed)
        for value in inner.output:
            value.name = renamed.get(value.name, value.name)


def _drop_passing(current: GraphProto, read: set[str]) -> None:
    """Drop nodes that pass their input on, unless they make an output of the graph."""
    returned = {value.name for value in current.output}
    renamed: dict[str, str] = {}
    kept: list[NodeProto] = []
    constants = graph.initializers(current)
    for node in current.node:
        _rename(node, renamed)
        if _passes(node, read, constants) and node.output[0] not in returned:
            renamed[node.output[0]] = node.input[0]
        else:
            kept.append(graph.copied(node))
    if renamed:
        del current.node[:]
        current.node.extend(kept)


def _passes(node: NodeProto, read: set[str], constants: Mapping[str, TensorProto]) -> bool:
    if node.domain not in graph.ONNX_DOMAINS or not node.input or not node.input[0]:
        return False
    if node.op_type == "Identity":
        return True
    if node.op_type != "Dropout" or any(name in read for name in node.output[1:] if name):
        return False
    training = node.input[2] if len(node.input) > 2 else ""
    if not training:
        return True
    held = constants.get(training)
    return held is not None and not numpy_helper.to_array(held).any()
