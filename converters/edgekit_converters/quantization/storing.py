"""Weights of static quantization: their scales beforehand, and their integers afterwards.

onnxruntime's quantizer takes both channel by channel, in Python, which is most of what it takes for
a model of thousands of channels; here they are taken a weight at a time.

Invariant: scales and integers are those that the quantizer would have come to.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final

import numpy as np
from onnx import ModelProto, numpy_helper

from edgekit_converters import graph
from edgekit_converters.conditioning.grid import Grid
from edgekit_converters.conditioning.layers import Layer, constant, layers

__all__ = ["scales", "store"]

_AXES: Final = {"Conv": 0, "ConvTranspose": 1, "MatMul": 1}


def scales(model: ModelProto, nodes: Collection[str], grid: Grid) -> dict[str, list[Any]]:
    """onnxruntime's `TensorQuantOverrides` of the named layers' weights: a scale per channel."""
    found: dict[str, list[Any]] = {}
    for layer in layers(model):
        weight = constant(model.graph, layer.weight)
        if layer.name not in nodes or weight is None or layer.weight in found:
            continue
        axis = _axis(layer)
        steps = grid.steps(layer.matrix(weight)).astype(np.float32).ravel()
        found[layer.weight] = [{"scale": step, "zero_point": 0, "axis": axis} for step in steps]
    return found


def _axis(layer: Layer) -> int:
    if layer.operator == "Gemm":
        return 0 if layer.attributes.get("transB") else 1
    return _AXES[layer.operator]


def store(model: ModelProto) -> None:
    """Put integers in place of constants of the outermost graph that are quantized as they are
    read."""
    constants = graph.initializers(model.graph)
    for node in list(model.graph.node):
        if node.op_type != "QuantizeLinear" or node.input[0] not in constants:
            continue
        values, scale, zero = (numpy_helper.to_array(constants[name]) for name in node.input)
        if scale.ndim:
            axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
            shape = [-1 if at == axis % values.ndim else 1 for at in range(values.ndim)]
            scale, zero = scale.reshape(shape), zero.reshape(shape)
        kind = np.iinfo(zero.dtype)
        codes = np.clip(np.rint(values / scale) + zero, kind.min, kind.max).astype(zero.dtype)
        stored = f"{node.input[0]}_quantized"
        model.graph.initializer.append(numpy_helper.from_array(codes, stored))
        for reader in model.graph.node:
            if reader.op_type == "DequantizeLinear" and reader.input[0] == node.output[0]:
                reader.input[0] = stored
        model.graph.node.remove(node)
