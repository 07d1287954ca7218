"""Nodes that move or copy values without need: each is replaced by what it copies.

Invariant: what is dropped was a copy for every input that the model takes, by its types, its shapes
and its constants alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from onnx import NodeProto

from edgekit_converters.normalization.fusion.scope import Scope, attribute, is_op
from edgekit_converters.normalization.fusion.shapes import Dims
from edgekit_converters.normalization.fusion.symbols import symbols

__all__ = ["copies", "pairs", "returns", "targets"]

_ENDLESS: Final = 10**9
"""Exporters write such a number, or a larger one, for `to the end`: no axis is as long."""

_COPIED: Final = 0
_OPEN: Final = -1
"""In targets of Reshape: as long as before; whatever is left."""

_KEEPING_ORDER: Final = ("Reshape", "Squeeze", "Unsqueeze")


def copies(scope: Scope, node: NodeProto) -> str | None:
    """Identity, Cast to the same type, Slice of everything, Reshape or Expand to the same shape."""
    if node.domain or not node.output or node.output[0] in scope.returned:
        return None
    test = _COPIES.get(node.op_type)
    return node.input[0] if test is not None and test(scope, node) else None


def _is_inference_dropout(scope: Scope, node: NodeProto) -> bool:
    mask_is_unread = len(node.output) == 1 or node.output[1] not in scope.users
    trains = len(node.input) > 2 and node.input[2]
    return mask_is_unread and not trains and bool(attribute(node, "is_test", 1))


def _is_same_type(scope: Scope, node: NodeProto) -> bool:
    return bool(attribute(node, "to") == scope.shapes.type(node.input[0]))


def _is_same_shape(scope: Scope, node: NodeProto) -> bool:
    before, after = scope.dims(node.input[0]), scope.dims(node.output[0])
    return before is not None and before == after


def _is_as_wide(scope: Scope, node: NodeProto) -> bool:
    before = scope.dims(node.input[0])
    return before is not None and before == _expanded(scope, node)


def _expanded(scope: Scope, node: NodeProto) -> Dims | None:
    """What an Expand gives, by the symbols of its target: inference often loses them."""
    before, target = scope.dims(node.input[0]), symbols(scope, node.input[1])
    if before is None or target is None:
        return scope.dims(node.output[0])
    rank = max(len(before), len(target))
    pairs_of_lengths = zip(
        (1,) * (rank - len(before)) + before, (1,) * (rank - len(target)) + target, strict=True
    )
    lengths = [b if a == 1 else a if b in (1, a) else None for a, b in pairs_of_lengths]
    known = [length for length in lengths if length is not None]
    return tuple(known) if len(known) == rank else None


def _is_same_order(scope: Scope, node: NodeProto) -> bool:
    perm = attribute(node, "perm")
    return perm is not None and list(perm) == list(range(len(perm)))


def _takes_all(scope: Scope, node: NodeProto) -> bool:
    starts, ends = scope.integers(node, "starts", 1), scope.integers(node, "ends", 2)
    dims = scope.dims(node.input[0])
    if starts is None or ends is None or dims is None or any(starts):
        return False
    has_axes = attribute(node, "axes") is not None or (len(node.input) > 3 and node.input[3])
    axes = scope.integers(node, "axes", 3) if has_axes else tuple(range(len(starts)))
    steps = scope.integers(node, "steps", 4) or (1,) * len(starts)
    if len(node.input) > 4 and node.input[4] and scope.integers(node, "steps", 4) is None:
        return False
    if axes is None or any(step != 1 for step in steps):
        return False
    return all(
        end >= (length if isinstance(length := dims[axis], int) else _ENDLESS)
        for axis, end in zip(axes, ends, strict=True)
    )


_COPIES: Final = {
    "Identity": lambda scope, node: True,
    "Dropout": _is_inference_dropout,
    "Cast": _is_same_type,
    "Reshape": _is_same_shape,
    "Expand": _is_as_wide,
    "Transpose": _is_same_order,
    "Slice": _takes_all,
}


def pairs(scope: Scope, node: NodeProto) -> Sequence[NodeProto] | str | None:
    """Two moves, one after the other, that are one move, or none."""
    if is_op(node, "Transpose"):
        before = scope.producer(node.input[0], "Transpose")
        first = attribute(before, "perm") if before is not None else None
        second = attribute(node, "perm")
        if before is None or first is None or second is None:
            return None
        perm = [first[axis] for axis in second]
        return [scope.node("Transpose", [before.input[0]], node.output[0], perm=perm)]
    before = (
        scope.producer(node.input[0], *_KEEPING_ORDER) if is_op(node, *_KEEPING_ORDER) else None
    )
    if before is None or node.output[0] in scope.returned:
        return None
    start, end = scope.dims(before.input[0]), scope.dims(node.output[0])
    return before.input[0] if start is not None and start == end else None


def returns(scope: Scope, node: NodeProto) -> list[NodeProto] | None:
    """A copy of a value under the name that the graph returns: its maker gives it that name."""
    if not is_op(node, "Identity") or node.output[0] not in scope.returned:
        return None
    maker = scope.producer(node.input[0])
    if maker is None or len(maker.output) != 1 or scope.sole_user(node.input[0]) is None:
        return None
    copy = NodeProto()
    copy.CopyFrom(maker)
    copy.output[0] = node.output[0]
    return [copy]


def targets(scope: Scope, node: NodeProto) -> list[NodeProto] | None:
    """A Reshape whose target is computed from shapes: constant, with one length left open, and
    others copied from the same axis of what is reshaped."""
    if not is_op(node, "Reshape") or scope.is_constant(node.input[1]):
        return None
    target = symbols(scope, node.input[1])
    if target is None or any(isinstance(d, int) and d < 1 for d in target):
        return None
    lengths = [d if isinstance(d, int) else _OPEN for d in target]
    if lengths.count(_OPEN) > 1:
        before = scope.dims(node.input[0]) or ()
        for axis, (length, given) in enumerate(zip(target, before, strict=False)):
            if isinstance(length, str) and length == given:
                lengths[axis] = _COPIED
    if lengths.count(_OPEN) > 1:
        return None
    name = scope.constant_named(f"{node.output[0]}/shape", np.array(lengths, np.int64))
    return [scope.node("Reshape", [node.input[0], name], node.output[0])]
