"""Short integer tensors that are computed from shapes, followed symbol by symbol.

Invariant: where `symbols` answers, the tensor has these elements for every input of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from onnx import NodeProto, TensorProto

from edgekit_converters.normalization.fusion.scope import Scope, attribute
from edgekit_converters.normalization.fusion.shapes import Dims

__all__ = ["symbols"]

_DEEPEST: Final = 16
_LONGEST: Final = 64
"""Elements of a tensor that could be a shape."""
_WHOLE: Final = (TensorProto.INT32, TensorProto.INT64)


def symbols(scope: Scope, name: str, *, depth: int = 0) -> Dims | None:
    """The elements of an integer tensor of rank 0 or 1, as numbers and lengths of axes."""
    array = scope.array(name)
    if array is not None:
        if array.ndim > 1 or array.size > _LONGEST or array.dtype.kind != "i":
            return None
        return tuple(int(v) for v in array.ravel())
    node = scope.producers.get(name)
    if node is None or node.domain or depth > _DEEPEST:
        return None
    follow = _FOLLOW.get(node.op_type)
    return None if follow is None else follow(scope, node, depth + 1)


def _shape(scope: Scope, node: NodeProto, depth: int) -> Dims | None:
    dims = scope.dims(node.input[0])
    return None if dims is None else dims[attribute(node, "start", 0) : attribute(node, "end")]


def _size(scope: Scope, node: NodeProto, depth: int) -> Dims | None:
    dims, size = scope.dims(node.input[0]), 1
    if dims is None:
        return None
    for length in dims:
        if isinstance(length, str):
            return None
        size *= length
    return (size,)


def _same(scope: Scope, node: NodeProto, depth: int) -> Dims | None:
    return symbols(scope, node.input[0], depth=depth)


def _cast(scope: Scope, node: NodeProto, depth: int) -> Dims | None:
    return _same(scope, node, depth) if attribute(node, "to") in _WHOLE else None


def _gather(scope: Scope, node: NodeProto, depth: int) -> Dims | None:
    held, at = symbols(scope, node.input[0], depth=depth), scope.array(node.input[1])
    if held is None or at is None or at.ndim > 1:
        return None
    if any(not -len(held) <= i < len(held) for i in at.ravel()):
        return None
    return tuple(held[int(i)] for i in at.ravel())


def _slice(scope: Scope, node: NodeProto, depth: int) -> Dims | None:
    held = symbols(scope, node.input[0], depth=depth)
    start, end = scope.integers(node, "starts", 1), scope.integers(node, "ends", 2)
    if held is None or start is None or end is None or len(start) != 1:
        return None
    step: tuple[int, ...] | None = (1,)
    if len(node.input) > 4 and node.input[4]:
        step = scope.integers(node, "steps", 4)
    if step is None or step[0] < 1:
        return None
    return held[start[0] : end[0] : step[0]]


def _concat(scope: Scope, node: NodeProto, depth: int) -> Dims | None:
    joined: Dims = ()
    for name in node.input:
        part = symbols(scope, name, depth=depth)
        if part is None:
            return None
        joined += part
    return joined


_FOLLOW: Final[Mapping[str, Callable[[Scope, NodeProto, int], Dims | None]]] = {
    "Shape": _shape,
    "Size": _size,
    "Cast": _cast,
    "Squeeze": _same,
    "Unsqueeze": _same,
    "Identity": _same,
    "Gather": _gather,
    "Slice": _slice,
    "Concat": _concat,
}
