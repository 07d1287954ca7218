"""Streams: layers whose channels are the same all the way, whatever lies between them.

A channel that all its sources scale by `k` and all its readers divide by `k` is the same channel,
as long as what lies between commutes with positive factors (Nagel et al., "Data-free quantization
through weight equalization and bias correction", ICCV 2019, section 4.1). A sum does, where both
sides have the factor: the layers along a residual network's skip connections are one stream.

Invariant: a stream's sources, its readers and what lies between are all there is to its tensors.
Clip does not commute: its bounds are the same for all channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from onnx import ModelProto, NodeProto

from edgekit_converters import graph
from edgekit_converters.conditioning.junctions import COMMUTING, Junction, Scaled
from edgekit_converters.conditioning.layers import Layer, constant, layers, uses

__all__ = ["find_streams"]

_SUMS: Final = frozenset({"Add", "Sub"})


def find_streams(model: ModelProto) -> list[Junction]:
    """Those of the outermost graph that start and end in layers, in its order."""
    counts = uses(model)
    known = {
        layer.name: layer
        for layer in layers(model)
        if counts[layer.weight] == 1 and not layer.attributes.get("transA")
    }
    joined = _Joined(model, known)
    found = (_stream(model, members, known) for members in joined.classes())
    return [stream for stream in found if stream is not None]


class _Joined:
    """Tensors that have their factors in common, and those that can have none."""

    def __init__(self, model: ModelProto, known: Mapping[str, Layer]) -> None:
        self._parents: dict[str, str] = {}
        self._spoiled: set[str] = set()
        self._constants = graph.initializers(model.graph)
        for node in model.graph.node:
            read = [name for name in node.input if name and name not in self._constants]
            if node.name in known:
                self._root(read[0]), self._root(node.output[0])
                if len(read) > 1:  # a bias that is no constant
                    self._spoil(*read[1:], node.output[0])
            elif _commutes(model, node):
                self._join(*read, node.output[0])
            else:
                self._spoil(*read, *node.output)
        self._spoil(*(value.name for value in (*model.graph.input, *model.graph.output)))
        for nested in graph.graphs(model.graph):
            if nested is not model.graph:
                self._spoil(*(name for node in nested.node for name in node.input))
                self._spoil(*(value.name for value in nested.output))

    def classes(self) -> Iterator[frozenset[str]]:
        """Tensors of one stream each, and those that pass from a layer straight to a layer."""
        spoiled = {self._root(name) for name in self._spoiled}
        groups: dict[str, set[str]] = {}
        for name in self._parents:
            groups.setdefault(self._root(name), set()).add(name)
        return (frozenset(names) for root, names in groups.items() if root not in spoiled)

    def _root(self, name: str) -> str:
        parent = self._parents.setdefault(name, name)
        while parent != self._parents[parent]:
            parent = self._parents[parent]
        self._parents[name] = parent
        return parent

    def _join(self, *names: str) -> None:
        for name in names[1:]:
            self._parents[self._root(name)] = self._root(names[0])

    def _spoil(self, *names: str) -> None:
        self._spoiled.update(names)


def _commutes(model: ModelProto, node: NodeProto) -> bool:
    """Whether a factor of its inputs' channels, and of its constants', is one of its output's."""
    if node.domain not in graph.ONNX_DOMAINS or len(node.output) != 1:
        return False
    held = graph.initializers(model.graph)
    if node.op_type in _SUMS:
        return all(
            name not in held or constant(model.graph, name) is not None for name in node.input
        )
    return node.op_type in COMMUTING and all(name in held for name in node.input[1:] if name)


def _stream(
    model: ModelProto, members: frozenset[str], known: Mapping[str, Layer]
) -> Junction | None:
    """What scaling these tensors takes, or None where layers do not agree on their channels, or
    there is none at one end."""
    nodes = model.graph.node
    sources = [known[n.name] for n in nodes if n.name in known and n.output[0] in members]
    readers = [known[n.name] for n in nodes if n.name in known and n.input[0] in members]
    ends = {(s.outputs, s.trailing) for s in sources} | {(r.channels, r.trailing) for r in readers}
    if not sources or not readers or len(ends) != 1:
        return None
    channels, trailing = ends.pop()
    return Junction(
        tensor=readers[0].input,
        channels=channels,
        readers=tuple(readers),
        sources=tuple(sources),
        constants=tuple(_constants(model, members, known, trailing)),
        rounded=tuple(sorted(members - _passing(model))),
    )


def _constants(
    model: ModelProto, members: frozenset[str], known: Mapping[str, Layer], trailing: int
) -> Iterator[Scaled]:
    """Biases of the sources, and what is added on the way."""
    held = graph.initializers(model.graph)
    for node in model.graph.node:
        if not node.output or node.output[0] not in members:
            continue
        if node.name in known and len(node.input) > 2 and node.input[2]:
            yield node, 2, 0
        elif node.op_type in _SUMS:
            yield from ((node, at, trailing) for at, n in enumerate(node.input) if n in held)


def _passing(model: ModelProto) -> set[str]:
    """Tensors that only go through what commutes, and are fused with what makes them."""
    counts = uses(model)
    return {
        node.input[0]
        for node in model.graph.node
        if node.op_type in COMMUTING and counts[node.input[0]] == 1
    }
