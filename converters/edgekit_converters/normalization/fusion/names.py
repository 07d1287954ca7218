"""Names in nested graphs: one name means one value in the whole model.

ONNX lets branches that never meet use the same names; whatever looks values up by name would mix
them up. Invariant: what the caller sees (inputs and outputs of the model) keeps its name.
"""

from __future__ import annotations

from collections.abc import Mapping

from onnx import GraphProto, ModelProto

from edgekit_converters.normalization.fusion.scope import subgraphs

__all__ = ["distinguish"]


def distinguish(model: ModelProto) -> None:
    """Rename values of nested graphs whose names occur elsewhere."""
    _distinguish(model.graph, taken=set(), outer={}, outermost=True)


def _distinguish(
    current: GraphProto, *, taken: set[str], outer: Mapping[str, str], outermost: bool
) -> None:
    own = [value.name for value in current.input]
    own += [tensor.name for tensor in current.initializer]
    own += [name for node in current.node for name in node.output if name]
    names = dict(outer)
    for name in dict.fromkeys(own):
        names[name], suffix = name, 1
        while names[name] in taken and not outermost:
            suffix += 1
            names[name] = f"{name}_{suffix}"
        taken.add(names[name])
    for value in (*current.input, *current.output, *current.value_info):
        value.name = names.get(value.name, value.name)
    for tensor in current.initializer:
        tensor.name = names[tensor.name]
    for node in current.node:
        for at, name in enumerate(node.input):
            node.input[at] = names.get(name, name)
        for at, name in enumerate(node.output):
            node.output[at] = names.get(name, name)
    for node in current.node:
        for nested in subgraphs(node).values():
            _distinguish(nested, taken=taken, outer=names, outermost=False)
