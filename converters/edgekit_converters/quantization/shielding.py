"""Float weights behind quantized activations stay float in the runtime, too.

onnxruntime rounds a float weight to 8 bits, one scale for all of it, between a DequantizeLinear
with a scalar scale and a QuantizeLinear (onnxruntime/core/optimizer/qdq_transformer/
weight_bias_quantization.cc): weights that a recipe left in float, and those it stored with a scale
per channel. The same scale once per channel is the same arithmetic, and is left alone. One channel
cannot be told from a scalar: its node reads what was there before it was quantized.

Invariant: weights are what the recipe made them; no activation is rounded that was not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from onnx import ModelProto, NodeProto, helper, numpy_helper

from edgekit_converters import graph

__all__ = ["ROUNDED_OPERATORS", "channels", "shield"]

ROUNDED_OPERATORS: Final = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
"""Whose weights are rounded; a MatMul once the runtime made it a Gemm with the Add behind it."""


def channels(node: NodeProto, weight: Sequence[int]) -> tuple[int, int]:
    """How many channels the activation of a node with weights of this shape has, and which axis
    they are on."""
    attributes = {a.name: a.i for a in node.attribute}
    match node.op_type:
        case "MatMul":
            return weight[-2], -1
        case "Gemm":
            return weight[1 if attributes.get("transB") else 0], 1 - attributes.get("transA", 0)
        case "ConvTranspose":
            return weight[0], 1
    return weight[1] * attributes.get("group", 1), 1


def shield(model: ModelProto) -> None:
    """Give each node of the outermost graph with float weights and a quantized input a
    DequantizeLinear of its own, with a scale per channel."""
    constants = graph.initializers(model.graph)
    producers = {output: node for node in model.graph.node for output in node.output}
    added = {name for n in model.graph.node if n.op_type == "Add" for name in n.input}
    for node in list(model.graph.node):
        if node.op_type not in ROUNDED_OPERATORS or node.input[1] not in constants:
            continue
        weight = constants[node.input[1]].dims
        if node.op_type == "MatMul" and (len(weight) != 2 or node.output[0] not in added):
            continue
        dequantizer = producers.get(node.input[0])
        if dequantizer is None or dequantizer.op_type != "DequantizeLinear":
            continue
        count, axis = channels(node, weight)
        if count == 1:
            node.input[0] = producers[dequantizer.input[0]].input[0]
            continue
        name = f"{node.input[0]}/of {node.name}"
        own = helper.make_node(
            "DequantizeLinear",
            [dequantizer.input[0], f"{name}/scale", f"{name}/zero"],
            [name],
            name=name,
            axis=axis,
        )
        for held, new in zip(dequantizer.input[1:], own.input[1:], strict=True):
            values = np.full(count, numpy_helper.to_array(constants[held]).reshape(-1)[0])
            model.graph.initializer.append(numpy_helper.from_array(values, new))
        node.input[0] = name
        model.graph.node.insert(list(model.graph.node).index(node), own)
