"""LayerNormalization and Softmax in pieces become one node.

Sources: Ba, Kiros and Hinton, "Layer normalization", arXiv:1607.06450; ONNX operators
LayerNormalization (opset 17) and Softmax (opset 13).
Invariant: a region is recognized by what it computes (see `regions`), on probes of several scales
and lengths: the variance as E[(x - E x)^2] or as E[x^2] - E[x]^2, means as sums, any axis.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np
from onnx import NodeProto, TensorProto

from edgekit_converters.normalization.fusion.regions import Region, regions
from edgekit_converters.normalization.fusion.scope import Scope, is_op
from edgekit_converters.normalization.fusion.shapes import Dims

__all__ = ["LAYER_NORMALIZATION_OPSET", "layer_normalization", "softmax"]

_MOVES: Final = frozenset({"Reshape", "Expand", "Squeeze", "Unsqueeze"})
_NORMALIZING: Final = _MOVES | {
    "Add", "Sub", "Mul", "Div", "Pow", "Sqrt", "Reciprocal", "Max", "ReduceMean", "ReduceSum",
}  # fmt: skip
_SOFTMAX: Final = _MOVES | {
    "Sub",
    "Exp",
    "Div",
    "Mul",
    "Reciprocal",
    "Max",
    "ReduceMax",
    "ReduceSum",
}
LAYER_NORMALIZATION_OPSET: Final = 17
_LARGEST_PROBE: Final = 1 << 20
_OPEN_LENGTHS: Final = (2, 3)
"""What is probed where an axis has no length yet."""
_CLOSE: Final = 2e-4
_EPSILON: Final = (1e-12, 1e-2)


def softmax(scope: Scope, node: NodeProto) -> list[NodeProto] | None:
    """exp(x - max x) / sum of it, along one axis."""
    if not is_op(node, "Div", "Mul") or scope.opset < 13:
        return None
    for region in regions(scope, node, _SOFTMAX):
        if region.count("Exp") != 1 or not region.count("ReduceSum") or not region.count("Sub"):
            continue
        dims = _float_dims(scope, region)
        if dims is None:
            return None
        probing = _Probing(scope, region, dims, scales=(1.0, 20.0))
        for axis in range(len(dims)):
            if probing.agrees(partial(_softmax, axis=axis)):
                return [scope.node("Softmax", [region.source], node.output[0], axis=axis)]
        return None
    return None


def _softmax(x: np.ndarray, *, axis: int) -> np.ndarray:
    powers = np.exp(x - x.max(axis=axis, keepdims=True))
    return np.asarray(powers / powers.sum(axis=axis, keepdims=True))


def layer_normalization(scope: Scope, node: NodeProto) -> list[NodeProto] | None:
    """(x - mean) / sqrt(variance + epsilon) * scale + bias along one axis."""
    if not is_op(node, "Add", "Mul", "Div") or scope.opset < LAYER_NORMALIZATION_OPSET:
        return None
    for region in regions(scope, node, _NORMALIZING):
        if region.count("Sqrt") != 1 or region.count("ReduceMean", "ReduceSum") < 2:
            continue
        dims = _float_dims(scope, region)
        if dims is None:
            continue
        probing = _Probing(scope, region, dims, scales=(1.0, 0.01, 30.0))
        # without variance only the bias is left
        bias = region.run(scope, np.zeros(_concrete(dims, _OPEN_LENGTHS[0]), np.float32))
        epsilons = _epsilons(scope, region)
        for axis, length in enumerate(dims):
            if bias is None or not isinstance(length, int) or length < 2:
                continue
            if (found := _normalization(probing, bias, axis, epsilons)) is not None:
                return _nodes(scope, region, found, len(dims))
    return None


@dataclass(frozen=True, kw_only=True)
class _Normalization:
    axis: int
    epsilon: float
    scale: np.ndarray
    bias: np.ndarray

    def apply(self, x: np.ndarray) -> np.ndarray:
        shape = [1] * x.ndim
        shape[self.axis] = -1
        scale, bias = self.scale.reshape(shape), self.bias.reshape(shape)
        return np.asarray(_normalized(x, self.axis, self.epsilon) * scale + bias)


def _normalization(
    probing: _Probing, bias: np.ndarray, axis: int, epsilons: list[float]
) -> _Normalization | None:
    """Read the scale off the first probe, and see whether that explains all."""
    probe, got = next(probing.results())
    if got is None or not got.shape == bias.shape == probe.shape:
        return None
    if not (np.isfinite(got).all() and np.isfinite(bias).all()):
        return None
    line = tuple(slice(None) if at == axis else 0 for at in range(probe.ndim))
    for epsilon in epsilons:
        ratio = (got - bias) / _normalized(probe, axis, epsilon)
        # the median over the other axes, since single values divide by nearly nothing
        others = tuple(at for at in range(probe.ndim) if at != axis)
        scale = np.median(ratio, axis=others)
        found = _Normalization(axis=axis, epsilon=epsilon, scale=scale, bias=bias[line])
        if probing.agrees(found.apply):
            return found
    return None


def _epsilons(scope: Scope, region: Region) -> list[float]:
    values = {float(a.ravel()[0]) for a in region.constants(scope).values() if a.size == 1}
    low, high = _EPSILON
    return sorted(v for v in values if low <= v <= high)


def _normalized(x: np.ndarray, axis: int, epsilon: float) -> np.ndarray:
    x = x.astype(np.float64)
    centered = x - x.mean(axis=axis, keepdims=True)
    variance = (centered**2).mean(axis=axis, keepdims=True)
    return np.asarray(centered / np.sqrt(variance + epsilon))


def _nodes(scope: Scope, region: Region, found: _Normalization, rank: int) -> list[NodeProto]:
    out = region.output
    scale = scope.constant_named(f"{out}/scale", found.scale.astype(np.float32))
    bias = scope.constant_named(f"{out}/bias", found.bias.astype(np.float32))
    values = {"axis": -1, "epsilon": found.epsilon}
    if found.axis == rank - 1:
        inputs = [region.source, scale, bias]
        return [scope.node("LayerNormalization", inputs, out, **values)]
    perm = [at for at in range(rank) if at != found.axis] + [found.axis]
    turned, done = scope.between(f"{out}/turned"), scope.between(f"{out}/normalized")
    back = [perm.index(at) for at in range(rank)]
    return [
        scope.node("Transpose", [region.source], turned, perm=perm),
        scope.node("LayerNormalization", [turned, scale, bias], done, **values),
        scope.node("Transpose", [done], out, perm=back),
    ]


class _Probing:
    """A region's outputs on random inputs of these scales, each computed when first asked for."""

    def __init__(
        self, scope: Scope, region: Region, dims: Dims, *, scales: tuple[float, ...]
    ) -> None:
        self._scope, self._region = scope, region
        lengths = itertools.cycle(_OPEN_LENGTHS)
        self._probes = [
            _random(_concrete(dims, length), scale)
            for length, scale in zip(lengths, scales, strict=False)
        ]
        self._outputs: list[np.ndarray | None] = []

    def results(self) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        for at, probe in enumerate(self._probes):
            if at == len(self._outputs):
                self._outputs.append(self._region.run(self._scope, probe))
            yield probe, self._outputs[at]

    def agrees(self, want: Callable[[np.ndarray], np.ndarray]) -> bool:
        for probe, got in self.results():
            expected = want(probe)
            if got is None or got.shape != expected.shape:
                return False
            if not np.allclose(got, expected, rtol=_CLOSE, atol=_CLOSE * np.abs(expected).max()):
                return False
        return True


def _float_dims(scope: Scope, region: Region) -> Dims | None:
    dims = scope.dims(region.source)
    if dims is None or scope.shapes.type(region.source) != TensorProto.FLOAT:
        return None
    return dims if np.prod(_concrete(dims, _OPEN_LENGTHS[-1])) <= _LARGEST_PROBE else None


def _concrete(dims: Dims, open_length: int) -> tuple[int, ...]:
    return tuple(d if isinstance(d, int) else open_length for d in dims)


def _random(shape: tuple[int, ...], scale: float) -> np.ndarray:
    return (np.random.default_rng(0).standard_normal(shape) * scale).astype(np.float32)
