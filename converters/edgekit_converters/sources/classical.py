"""Outputs of classical models (trees, linear models, pipelines) as tensors of numbers.

Exporters of scikit-learn end a classifier with a ZipMap, which makes of each row of scores a map
from class to score, and give the class as text where the classes are text. Runtimes on devices and
the wire carry tensors of numbers.

Invariant: inputs stay; a map becomes the scores that it was made from, under its own name, and a
text goes only where another output is left. Source: ONNX-ML operators, ZipMap.
"""

from __future__ import annotations

from typing import Final

from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper

__all__ = ["close_outputs"]

_SHOWN: Final = 20
"""Classes that a sentence names."""
_LONG: Final = 40
"""Letters of a class that it shows."""


def close_outputs(model: ModelProto) -> list[str]:
    """Rewrite outputs in place; what was done, in sentences."""
    said = [
        _unzip(model.graph, node, value.name)
        for node in list(model.graph.node)
        for value in list(model.graph.output)
        if (node.domain, node.op_type) == ("ai.onnx.ml", "ZipMap")
        and node.input
        and value.name in node.output
    ]
    texts = [v for v in model.graph.output if v.type.tensor_type.elem_type == TensorProto.STRING]
    if len(texts) < len(model.graph.output):
        for value in texts:
            model.graph.output.remove(value)
            said.append(f"Output {value.name!r} is text and was left out: bundles hold numbers.")
    return said


def _unzip(graph: GraphProto, node: NodeProto, name: str) -> str:
    classes = next((_values(attribute) for attribute in node.attribute), [])
    place = [value.name for value in graph.output].index(name)
    scores = helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", len(classes)])
    graph.output[place].CopyFrom(scores)
    node.CopyFrom(helper.make_node("Identity", [node.input[0]], [name], name=node.name))
    told = ", ".join(map(str, classes[:_SHOWN])) + (", …" if len(classes) > _SHOWN else "")
    return f"Output {name!r} was a map for each row; it is a row of scores now, of {told}."


def _values(attribute: AttributeProto) -> list[str]:
    """Class labels of a ZipMap: `classlabels_int64s` or `classlabels_strings`."""
    return [
        *map(str, attribute.ints),
        *(text.decode(errors="replace")[:_LONG] for text in attribute.strings),
    ]
