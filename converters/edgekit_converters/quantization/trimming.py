"""Results that are read as floats alone stay floats.

To round such a result to 8 bits, and to read it back, loses accuracy and time for nothing, where
the runtime's operator gives floats (`selection.float_results`).

Invariant: what another quantized node reads is as it was.
"""

from __future__ import annotations

from collections.abc import Collection

from onnx import ModelProto, NodeProto

from edgekit_converters import graph

__all__ = ["trim"]


def trim(model: ModelProto, products: Collection[str]) -> None:
    """Take away the pair of QuantizeLinear and DequantizeLinear behind nodes of these names, where
    both their operands are quantized."""
    producers = {output: node for node in model.graph.node for output in node.output}
    readers: dict[str, list[NodeProto]] = {}
    for current in graph.graphs(model.graph):
        for node in current.node:
            for name in node.input:
                readers.setdefault(name, []).append(node)
    for product in [node for node in model.graph.node if node.name in products]:
        made = [producers.get(name) for name in product.input[:2]]
        if any(node is None or node.op_type != "DequantizeLinear" for node in made):
            continue
        rounding = readers.get(product.output[0], [])
        if [node.op_type for node in rounding] != ["QuantizeLinear"]:
            continue
        reading = readers.get(rounding[0].output[0], [])
        if [node.op_type for node in reading] != ["DequantizeLinear"]:
            continue
        product.output[0] = reading[0].output[0]
        model.graph.node.remove(rounding[0])
        model.graph.node.remove(reading[0])
