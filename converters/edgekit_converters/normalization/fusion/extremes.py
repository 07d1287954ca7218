"""The maximum of activations is the activation of an extreme: far fewer elements to activate.

For a rising f, max f(x) = f(max x). For an f that falls and then rises, as Gelu does, the greatest
value is at one end: max f(x) = max(f(max x), f(min x)).
"""

from __future__ import annotations

from typing import Final

import numpy as np
from onnx import NodeProto

from edgekit_converters.normalization.fusion.scope import CONTRIB, Scope, attribute, is_op

__all__ = ["extremes"]

_RISING: Final = frozenset({"Sigmoid", "Tanh", "Softplus", "Erf", "Exp"})
"""Not Relu and Clip: they cost nothing behind a product, and narrow the range of its output."""
_FALLING_THEN_RISING: Final = frozenset(
    {(CONTRIB, "Gelu"), (CONTRIB, "FastGelu"), ("", "Gelu"), ("", "HardSwish"), ("", "Mish")}
)
_REDUCING_OPSET: Final = 18
"""From here on ReduceMax and ReduceMin take their axes as an input."""


def extremes(scope: Scope, node: NodeProto) -> list[NodeProto] | None:
    """GlobalMaxPool or ReduceMax of an activation that nothing else reads."""
    if not is_op(node, "GlobalMaxPool", "ReduceMax"):
        return None
    active = scope.producer(node.input[0])
    if active is None or scope.sole_user(node.input[0]) is None:
        return None
    is_rising = is_op(active, *_RISING) and len(active.output) == 1
    if not is_rising and (active.domain, active.op_type) not in _FALLING_THEN_RISING:
        return None
    dims = scope.dims(active.input[0])
    axes = _axes(scope, node, len(dims) if dims is not None else None)
    if dims is None or not axes or active.input[0] in active.input[1:]:
        return None
    keeps = 1 if is_op(node, "GlobalMaxPool") else attribute(node, "keepdims", 1)
    out = node.output[0]
    nodes, ends = [], []
    for op in ("ReduceMax",) if is_rising else ("ReduceMax", "ReduceMin"):
        end = scope.between(f"{out}/{op}")
        nodes.append(_reduction(scope, op, active.input[0], end, axes=axes, keepdims=keeps))
        ends.append(scope.between(f"{end}/active") if not is_rising else out)
        activation = NodeProto()
        activation.CopyFrom(active)
        activation.input[0], activation.output[0] = end, ends[-1]
        activation.name = f"{end}/{active.op_type}"
        nodes.append(activation)
    if not is_rising:
        nodes.append(scope.node("Max", ends, out))
    return nodes


def _axes(scope: Scope, node: NodeProto, rank: int | None) -> tuple[int, ...] | None:
    if rank is None:
        return None
    if is_op(node, "GlobalMaxPool"):
        return tuple(range(2, rank))
    has_axes = attribute(node, "axes") is not None or len(node.input) > 1
    return scope.integers(node, "axes", 1) if has_axes else None


def _reduction(
    scope: Scope, op: str, source: str, out: str, *, axes: tuple[int, ...], keepdims: int
) -> NodeProto:
    if scope.opset < _REDUCING_OPSET:
        return scope.node(op, [source], out, axes=axes, keepdims=keepdims)
    held = scope.constant_named(f"{out}/axes", np.array(axes, np.int64))
    return scope.node(op, [source, held], out, keepdims=keepdims)
