"""Fold what is known before the model runs: shapes that are numbers, and operators on constants.

Invariant: folding follows from constants and from shapes that hold for every input; no length of a
sample is baked in. A weight that stays in use is not stored a second time in another form.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from onnx import NodeProto, TensorProto, helper

from edgekit_converters import graph
from edgekit_converters.normalization.fusion.evaluation import RANDOM, evaluate
from edgekit_converters.normalization.fusion.scope import Scope, subgraphs
from edgekit_converters.normalization.fusion.symbols import symbols

__all__ = ["constants", "lengths"]

_SMALL_BYTES: Final = 65_536
"""Up to here a second form of a constant does not matter."""
_COMPACT: Final = frozenset({"DequantizeLinear", "DequantizeBFP", "QuantizeLinear"})
"""Their constants are stored as they are on purpose."""


def lengths(scope: Scope, node: NodeProto) -> str | None:
    """A value computed from shapes of which every element is a number."""
    if len(node.output) != 1 or node.output[0] in scope.returned:
        return None
    kind = scope.shapes.type(node.output[0])
    dims = scope.dims(node.output[0])
    if kind not in (TensorProto.INT32, TensorProto.INT64) or dims is None or len(dims) > 1:
        return None
    known = symbols(scope, node.output[0])
    if known is None or not all(isinstance(d, int) for d in known):
        return None
    values = np.array(known, helper.tensor_dtype_to_np_dtype(kind))
    return scope.constant_named(node.output[0], values if dims else values.reshape(()))


def constants(scope: Scope, node: NodeProto) -> str | None:
    """An operator of ONNX whose inputs are all constant."""
    if (
        node.domain not in graph.ONNX_DOMAINS
        or node.op_type in RANDOM | _COMPACT
        or len(node.output) != 1
        or node.output[0] in scope.returned
        or subgraphs(node)
    ):
        return None
    held = {name: array for name in node.input if name and (array := scope.array(name)) is not None}
    if len(held) != len({name for name in node.input if name}):
        return None
    if any(a.nbytes > _SMALL_BYTES and _stays(scope, name) for name, a in held.items()):
        return None
    found = evaluate([node], held, [node.output[0]], opset=scope.opset)
    if found is None or found[0].dtype.kind not in "fiub":
        return None
    if found[0].nbytes > _SMALL_BYTES + sum(a.nbytes for a in held.values()):
        return None
    return scope.constant_named(node.output[0], found[0])


def _stays(scope: Scope, name: str) -> bool:
    """Whether a constant has readers that will not be folded."""
    return any(
        not subgraphs(user) and any(n and not scope.is_constant(n) for n in user.input)
        for user in scope.users.get(name, ())
    )
