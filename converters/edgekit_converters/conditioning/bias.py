"""Bias correction: rounding shifts each output's mean; the bias takes that back.

The mean change of an output is `(W_rounded - W) E[row]`, exactly (Nagel et al., "Data-free
quantization through weight equalization and bias correction", ICCV 2019, section 4.2; here means
are measured, not inferred from batch normalization).

Invariant: only constants change: a bias of the node's own, which is added where there is none, or
the constant that an Add puts behind a MatMul.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, NodeProto, numpy_helper

from edgekit_converters import graph
from edgekit_converters.conditioning.grid import Grid
from edgekit_converters.conditioning.layers import Layer, constant, layers, replace, uses
from edgekit_converters.conditioning.moments import Moments

__all__ = ["BiasSlot", "bias_slot", "correct_biases"]


@dataclass(frozen=True, kw_only=True)
class BiasSlot:
    """Where something can be added to each output of a layer."""

    model: ModelProto
    node: NodeProto
    at: int
    """Number of the input that holds the bias."""
    values: np.ndarray
    """As it is now."""
    factor: float = 1.0
    """What the bias must change by for the output to change by one."""

    def absorb(self, change: np.ndarray) -> None:
        """Add `change` [output] to what the layer gives."""
        values = (self.values + self.factor * change).astype(np.float32)
        held = graph.initializers(self.model.graph)
        old = self.node.input[self.at] if len(self.node.input) > self.at else ""
        if old and uses(self.model)[old] == 1:
            replace(held[old], values)
            return
        name = f"{self.node.name}/bias"
        taken = {*held, *(output for node in self.model.graph.node for output in node.output)}
        while name in taken:
            name += "'"
        self.model.graph.initializer.append(numpy_helper.from_array(values, name))
        while len(self.node.input) <= self.at:
            self.node.input.append("")
        self.node.input[self.at] = name


def bias_slot(model: ModelProto, layer: Layer) -> BiasSlot | None:
    """The layer's, or None where its output has no constant of its own added to it."""
    node = next(n for n in model.graph.node if n.name == layer.name)
    if layer.operator == "MatMul":
        return _of_sum(model, node)
    factor = 1.0
    if layer.operator == "Gemm":
        beta = layer.attributes.get("beta", 1.0)
        if beta == 0:
            return None
        factor = layer.attributes.get("alpha", 1.0) / beta
    if len(node.input) < 3 or not node.input[2]:
        values: np.ndarray | None = np.zeros(1, np.float32)
    else:
        values = constant(model.graph, node.input[2])
    if values is None:
        return None
    return BiasSlot(model=model, node=node, at=2, values=values, factor=factor)


def _of_sum(model: ModelProto, product: NodeProto) -> BiasSlot | None:
    """The constant of the Add that alone reads a MatMul's output."""
    name = product.output[0]
    if uses(model)[name] != 1:
        return None
    for node in model.graph.node:
        if node.op_type == "Add" and node.domain in graph.ONNX_DOMAINS and name in node.input:
            at = 1 - list(node.input).index(name)
            values = constant(model.graph, node.input[at])
            # of one axis, or else the sum could have another shape
            if values is not None and values.ndim <= 1:
                return BiasSlot(model=model, node=node, at=at, values=values)
    return None


def correct_biases(
    model: ModelProto, moments: Mapping[str, Moments], *, nodes: Collection[str], grid: Grid
) -> list[str]:
    """Let biases take back what rounding the named nodes' weights to nearest will do to the means
    of their outputs; the nodes that were corrected."""
    corrected = []
    for layer in layers(model):
        if layer.name not in nodes or layer.name not in moments:
            continue
        weight = constant(model.graph, layer.weight)
        slot = bias_slot(model, layer)
        if slot is None or weight is None or not np.isfinite(weight).all():
            continue
        matrix = layer.matrix(weight)
        slot.absorb(
            np.einsum("god,gd->go", matrix - grid.nearest(matrix), moments[layer.name].mean).ravel()
        )
        corrected.append(layer.name)
    return corrected
