"""Gelu in pieces becomes one node: both forms, x Phi(x) and its approximation by tanh.

Source: Hendrycks and Gimpel, "Gaussian error linear units", arXiv:1606.08415, section 2.
The operators are onnxruntime's own: it had them long before ONNX did (opset 20).
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from onnx import NodeProto, TensorProto

from edgekit_converters.normalization.fusion.regions import regions
from edgekit_converters.normalization.fusion.scope import CONTRIB, Scope, is_op

__all__ = ["gelu"]

_OPS: Final = frozenset({"Mul", "Add", "Sub", "Div", "Pow", "Tanh", "Erf", "Neg", "Sqrt"})
_PROBE: Final = np.concatenate([np.linspace(-12, 12, 997), [-1e4, -40, 40, 1e4]]).astype(np.float32)
_CLOSE: Final = 2e-5
"""Constants are often written with six digits; the two forms are 4e-4 apart."""


def gelu(scope: Scope, node: NodeProto) -> list[NodeProto] | None:
    """Any spelling that ends in a product, found by what it computes."""
    if not is_op(node, "Mul", "Div"):
        return None
    for region in regions(scope, node, _OPS):
        if region.count("Tanh", "Erf") != 1:
            continue
        if scope.shapes.type(region.source) != TensorProto.FLOAT:
            return None
        rank = len(scope.dims(region.source) or ())
        constants = region.constants(scope).values()
        if any(array.size != 1 or array.ndim > rank for array in constants):
            return None
        probe = _PROBE.reshape((-1,) + (1,) * max(0, rank - 1))
        got = region.run(scope, probe)
        if got is None or got.shape != probe.shape:
            return None
        for op, want in _FORMS.items():
            if np.all(np.abs(got.ravel() - want) <= _CLOSE * np.maximum(1, np.abs(_PROBE) / 10)):
                return [scope.node(f"{CONTRIB}:{op}", [region.source], node.output[0])]
    return None


def _forms() -> dict[str, np.ndarray]:
    x = _PROBE.astype(np.float64)
    exact = 0.5 * x * (1 + np.array([math.erf(v / math.sqrt(2)) for v in x]))
    by_tanh = 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return {"Gelu": exact, "FastGelu": by_tanh}


_FORMS: Final = _forms()
