"""Looking a row up instead of multiplying by a one-hot matrix, and tables that hold what follows.

Invariant: an index that no row of the one-hot matrix had (it is all zeros there) still gives zeros.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from onnx import NodeProto, TensorProto

from edgekit_converters import graph
from edgekit_converters.normalization.fusion.evaluation import evaluate
from edgekit_converters.normalization.fusion.scope import CONTRIB, Scope, attribute, is_op

__all__ = ["lookups", "tables"]

_INDICES: Final = (TensorProto.INT32, TensorProto.INT64)
_MIN_OPSET: Final = 13
"""From here on Clip takes integers, and Squeeze its axes as an input."""
_POINTWISE: Final = frozenset(
    {"Add", "Sub", "Mul", "Div", "Neg", "Abs", "Relu", "Tanh", "Sigmoid", "Erf", "Exp", "Clip"}
    | {"LeakyRelu", "Elu", "HardSigmoid", "HardSwish", "Softplus", "Sqrt", "Pow", "Gelu"}
)
_POINTWISE_CONTRIB: Final = frozenset({"Gelu", "FastGelu", "QuickGelu"})


def lookups(scope: Scope, node: NodeProto) -> list[NodeProto] | None:
    """MatMul(Cast(Equal(ids[..., 1], 0..n-1)), table) as Gather(table, ids)."""
    if not is_op(node, "MatMul") or scope.opset < _MIN_OPSET:
        return None
    table = scope.array(node.input[1])
    cast = scope.producer(node.input[0], "Cast")
    equal = scope.producer(cast.input[0], "Equal") if cast is not None else None
    if table is None or table.ndim != 2 or equal is None or not np.isfinite(table).all():
        return None
    if not _is_only_for(scope, node.input[1]):
        return None
    for column, numbers in scope.operands(equal):
        rows, dims = scope.array(numbers), scope.dims(column)
        if rows is None or not dims or dims[-1] != 1 or scope.shapes.type(column) not in _INDICES:
            continue
        if rows.ndim > len(dims) or rows.shape[-1] != rows.size:
            continue
        if not np.array_equal(rows.ravel(), np.arange(len(table), dtype=rows.dtype)):
            continue
        return _lookup(scope, node, column, table, rows.dtype)
    return None


def _lookup(
    scope: Scope, node: NodeProto, column: str, table: np.ndarray, dtype: np.dtype[np.generic]
) -> list[NodeProto]:
    """Gather with a row of zeros at the end, where index n is, and -1, too."""
    out = node.output[0]
    flat, kept = scope.between(f"{out}/indices"), scope.between(f"{out}/within")
    zeros = np.zeros((1, table.shape[1]), table.dtype)
    held = scope.constant_named(f"{out}/table", np.concatenate([table, zeros]))
    last = scope.constant_named(f"{out}/axes", np.array([-1], np.int64))
    low = scope.constant_named(f"{out}/low", np.array(-1, dtype))
    high = scope.constant_named(f"{out}/high", np.array(len(table), dtype))
    return [
        scope.node("Squeeze", [column, last], flat),
        scope.node("Clip", [flat, low, high], kept),
        scope.node("Gather", [held, kept], out, axis=0),
    ]


def tables(scope: Scope, node: NodeProto) -> list[NodeProto] | None:
    """f(Gather(table, ids)) as Gather(f(table), ids), where f treats each row by itself."""
    known = _POINTWISE_CONTRIB if node.domain == CONTRIB else _POINTWISE
    if node.op_type not in known or node.domain not in (*graph.ONNX_DOMAINS, CONTRIB):
        return None
    if (
        len(open_inputs := {name for name in node.input if name and not scope.is_constant(name)})
        != 1
    ):
        return None
    source = open_inputs.pop()
    gather = scope.producer(source, "Gather")
    if gather is None or scope.sole_user(source) is not node or attribute(gather, "axis", 0) != 0:
        return None
    table = scope.array(gather.input[0])
    if table is None or table.ndim != 2 or not _is_only_for(scope, gather.input[0]):
        return None
    dims = scope.dims(source)
    others = {n: array for n in node.input if n and (array := scope.array(n)) is not None}
    if dims is None or any(
        a.ndim > len(dims) or a.size not in (1, *a.shape[-1:]) for a in others.values()
    ):
        return None
    flat = {name: a.reshape(-1) if a.ndim > 1 else a for name, a in others.items()}
    folded = evaluate([node], {**flat, source: table}, [node.output[0]], opset=scope.opset)
    if folded is None or folded[0].shape != table.shape or folded[0].dtype != table.dtype:
        return None
    held = scope.constant_named(f"{node.output[0]}/table", folded[0])
    return [scope.node("Gather", [held, gather.input[1]], node.output[0], axis=0)]


def _is_only_for(scope: Scope, table: str) -> bool:
    """Whether one node alone reads the table: another form of it then takes its place."""
    return scope.owns(table) and scope.sole_user(table) is not None
