"""Constants added or multiplied behind a convolution go into its bias and weights.

Invariant: one constant per output channel; the node has no other reader between.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from onnx import NodeProto

from edgekit_converters.normalization.fusion.scope import Scope, attribute, is_op

__all__ = ["affine"]

_CONVOLUTIONS: Final = ("Conv", "ConvTranspose")


def affine(scope: Scope, node: NodeProto) -> list[NodeProto] | None:
    """Add or Mul of a constant per channel, also behind a Squeeze of axes behind the channels."""
    if not is_op(node, "Add", "Mul"):
        return None
    for value, other in scope.operands(node):
        factor = scope.array(other)
        dims = scope.dims(value)
        if factor is None or dims is None or factor.dtype != np.float32:
            continue
        squeeze = scope.producer(value, "Squeeze")
        made = squeeze.input[0] if squeeze is not None else value
        convolution = scope.producer(made, *_CONVOLUTIONS)
        if convolution is None or scope.sole_user(value) is None or scope.sole_user(made) is None:
            continue
        axes = scope.integers(squeeze, "axes", 1) if squeeze is not None else ()
        if axes is None or any(axis % (len(dims) + len(axes)) < 2 for axis in axes):
            continue
        channels = _per_channel(factor, dims)
        absorbed = None if channels is None else _absorbed(scope, node, convolution, channels)
        if absorbed is None:
            continue
        if squeeze is None:
            absorbed.output.append(node.output[0])
            return [absorbed]
        absorbed.output.append(scope.between(f"{node.output[0]}/unsqueezed"))
        last = NodeProto()
        last.CopyFrom(squeeze)
        last.input[0], last.output[0] = absorbed.output[0], node.output[0]
        return [absorbed, last]
    return None


def _per_channel(factor: np.ndarray, dims: tuple[int | str, ...]) -> np.ndarray | None:
    """One number per channel (axis 1), or None where it is not that."""
    channels = dims[1] if len(dims) > 1 else None
    if factor.ndim > len(dims) or not isinstance(channels, int):
        return None
    shape = (1,) * (len(dims) - factor.ndim) + factor.shape
    if any(length != 1 for at, length in enumerate(shape) if at != 1):
        return None
    return np.broadcast_to(factor.ravel(), (channels,)) if factor.size in (1, channels) else None


def _absorbed(
    scope: Scope, node: NodeProto, convolution: NodeProto, channels: np.ndarray
) -> NodeProto | None:
    """The convolution with the constant in it, and without an output yet."""
    weights = scope.array(convolution.input[1])
    has_bias = len(convolution.input) > 2 and convolution.input[2]
    bias = scope.array(convolution.input[2]) if has_bias else np.zeros(len(channels), np.float32)
    if is_op(node, "Mul") and scope.sole_user(convolution.input[1]) is None:
        return None  # another node has the same weights
    if weights is None or bias is None or {weights.dtype, bias.dtype} != {np.dtype(np.float32)}:
        return None
    inputs = list(convolution.input[:2])
    if is_op(node, "Mul"):
        scaled = _scaled(convolution, weights, channels)
        inputs[1] = scope.constant_named(f"{node.output[0]}/weights", scaled)
    bias = bias * channels if is_op(node, "Mul") else bias + channels
    inputs.append(scope.constant_named(f"{node.output[0]}/bias", bias))
    absorbed = NodeProto()
    absorbed.CopyFrom(convolution)
    del absorbed.input[:], absorbed.output[:]
    absorbed.input.extend(inputs)
    return absorbed


def _scaled(convolution: NodeProto, weights: np.ndarray, channels: np.ndarray) -> np.ndarray:
    if is_op(convolution, "Conv"):
        return np.asarray(weights * channels.reshape(-1, *[1] * (weights.ndim - 1)))
    # a ConvTranspose holds [inputs, outputs of a group, ...]
    groups = attribute(convolution, "group", 1)
    parts = weights.reshape(groups, -1, *weights.shape[1:])
    factors = channels.reshape(groups, 1, -1, *[1] * (weights.ndim - 2))
    return np.asarray(parts * factors).reshape(weights.shape)
