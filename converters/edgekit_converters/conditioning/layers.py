"""Weighted nodes as what they are for rounding: a matrix that multiplies rows of inputs. Pure.

Invariant: for a node `y = f(x)` with weights `w` and no bias, each output element is
`matrix(w)[g, o] @ row` for one of `rows(x)[g]`; `tensor` undoes `matrix`.

A convolution's row is the patch under its kernel (im2col; Chellapilla et al., "High performance
convolutional neural networks for document processing", 2006); a transposed one's is the patch of
its zero-stuffed input under the flipped kernel (Dumoulin and Visin, arXiv 1603.07285, section 4).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from onnx import GraphProto, ModelProto, TensorProto, helper, numpy_helper

from edgekit_converters import graph
from edgekit_converters.facts import WEIGHTED_INPUTS, weighted_nodes

__all__ = ["LAYER_OPERATORS", "Chooser", "Layer", "constant", "layers", "replace", "uses"]

_CONVOLUTIONS: Final = frozenset({"Conv", "ConvTranspose"})
LAYER_OPERATORS: Final = _CONVOLUTIONS | {"Gemm", "MatMul"}
_OF_OUTPUTS: Final = frozenset({"alpha", "beta", "transB"})
"""Attributes that do not change which rows a node reads."""
Chooser = Callable[[int], np.ndarray]
"""Which of so many positions to look at."""


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A node with a weight that is a constant of the outermost graph."""

    name: str
    """Of the node."""
    operator: str
    input: str
    weight: str
    shape: tuple[int, ...]
    """Of the weight."""
    attributes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def groups(self) -> int:
        return int(self.attributes.get("group", 1))

    @property
    def width(self) -> int:
        """Elements of a row."""
        if self.operator == "Conv":
            return int(np.prod(self.shape[1:]))
        if self.operator == "ConvTranspose":
            return self.shape[0] // self.groups * int(np.prod(self.shape[2:]))
        return self.shape[1] if self.attributes.get("transB") else self.shape[0]

    @property
    def channels(self) -> int:
        """Channels of the input."""
        if self.operator == "Conv":
            return self.shape[1] * self.groups
        return self.shape[0] if self.operator == "ConvTranspose" else self.width

    @property
    def outputs(self) -> int:
        """Channels of the output."""
        if self.operator == "Conv":
            return self.shape[0]
        if self.operator == "Gemm" and self.attributes.get("transB"):
            return self.shape[0]
        return self.shape[1]

    @property
    def trailing(self) -> int:
        """Axes behind the channels', of input and output."""
        return self._rank if self.operator in _CONVOLUTIONS else 0

    @property
    def reading(self) -> tuple[object, ...]:
        """Equal for layers whose rows are equal: they share their moments."""
        geometry = tuple(
            sorted((k, str(v)) for k, v in self.attributes.items() if k not in _OF_OUTPUTS)
        )
        kernel = self.shape[2:] if self.operator in _CONVOLUTIONS else ()
        operator = self.operator if self.operator in _CONVOLUTIONS else "product"
        return (self.input, operator, kernel, self.groups, geometry)

    def matrix(self, weight: np.ndarray) -> np.ndarray:
        """The weight as float64 [group, output, width]."""
        wide: np.ndarray = weight.astype(np.float64)
        if self.operator == "Conv":
            return wide.reshape(self.groups, -1, self.width)
        if self.operator == "ConvTranspose":
            split = wide.reshape(self.groups, -1, *self.shape[1:])
            flipped = np.flip(split, axis=tuple(range(3, split.ndim))).swapaxes(1, 2)
            return np.reshape(flipped, (self.groups, self.shape[1], self.width))
        return np.ascontiguousarray(wide if self.attributes.get("transB") else wide.T)[None]

    def tensor(self, matrix: np.ndarray) -> np.ndarray:
        """What `matrix` was made of, float32."""
        if self.operator == "Conv":
            whole = matrix.reshape(self.shape)
        elif self.operator == "ConvTranspose":
            inputs = self.shape[0] // self.groups
            split = matrix.reshape(self.groups, self.shape[1], inputs, *self.shape[2:])
            whole = np.flip(split.swapaxes(1, 2), axis=tuple(range(3, split.ndim)))
            whole = whole.reshape(self.shape)
        else:
            whole = matrix[0] if self.attributes.get("transB") else matrix[0].T
        return np.ascontiguousarray(whole, dtype=np.float32)

    def rows(self, values: np.ndarray, chosen: Chooser) -> np.ndarray:
        """Rows [group, row, width] for those output positions of one input that `chosen` picks."""
        if self.operator not in _CONVOLUTIONS:
            flat = values.T if self.attributes.get("transA") else values
            flat = flat.reshape(-1, flat.shape[-1])
            return flat[chosen(len(flat))][None]
        windows = self._windows(values)
        spatial = (windows.shape[0], *windows.shape[2 : 2 + self._rank])
        places = np.unravel_index(chosen(int(np.prod(spatial))), spatial)
        index: tuple[Any, ...] = (places[0], slice(None), *places[1:])
        patches: np.ndarray = windows[index]
        rows: np.ndarray = np.reshape(patches, (len(places[0]), self.groups, self.width))
        swapped: np.ndarray = rows.swapaxes(0, 1)
        return swapped

    @property
    def _rank(self) -> int:
        return len(self.shape) - 2

    def _ints(self, name: str, default: int, count: int) -> list[int]:
        return [int(v) for v in self.attributes.get(name, [default] * count)]

    def _windows(self, values: np.ndarray) -> np.ndarray:
        """View [batch, channel, output..., kernel...] of the input, padded."""
        rank = self._rank
        kernel = self.shape[2:]
        strides = self._ints("strides", 1, rank)
        dilations = self._ints("dilations", 1, rank)
        reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
        if self.operator == "ConvTranspose":
            values = _stuffed(values, strides)
            pads = self._ints("pads", 0, 2 * rank)
            extra = self._ints("output_padding", 0, rank)
            before = [r - 1 - p for r, p in zip(reach, pads[:rank], strict=True)]
            after = [r - 1 - p + e for r, p, e in zip(reach, pads[rank:], extra, strict=True)]
            strides = [1] * rank
        else:
            before, after = self._pads(values.shape[2:], reach, strides)
        values = _padded(values, before, after)
        axes = tuple(range(2, 2 + rank))
        windows = sliding_window_view(values, tuple(reach), axis=axes)
        steps = (slice(None, None, s) for s in strides)
        taps = (slice(None, None, d) for d in dilations)
        index = (slice(None), slice(None), *steps, *taps)
        view: np.ndarray = windows[index]
        return view

    def _pads(
        self, lengths: Sequence[int], reach: Sequence[int], strides: Sequence[int]
    ) -> tuple[list[int], list[int]]:
        rank = self._rank
        auto = self.attributes.get("auto_pad", b"NOTSET")
        if auto in (b"NOTSET", b""):
            pads = self._ints("pads", 0, 2 * rank)
            return pads[:rank], pads[rank:]
        if auto == b"VALID":
            return [0] * rank, [0] * rank
        totals = [
            max(0, (-(-length // s) - 1) * s + r - length)
            for length, r, s in zip(lengths, reach, strides, strict=True)
        ]
        small, large = [t // 2 for t in totals], [t - t // 2 for t in totals]
        return (small, large) if auto == b"SAME_UPPER" else (large, small)


def layers(model: ModelProto) -> list[Layer]:
    """The layers of the outermost graph, in its order; grouped transposed convolutions are left
    out, because one scale there serves outputs of several groups."""
    constants = graph.initializers(model.graph)
    found = []
    for node in weighted_nodes(model.graph):
        if node.op_type not in LAYER_OPERATORS or node.input[0] in constants:
            continue
        layer = Layer(
            name=node.name,
            operator=node.op_type,
            input=node.input[0],
            weight=node.input[WEIGHTED_INPUTS[node.op_type]],
            shape=tuple(constants[node.input[WEIGHTED_INPUTS[node.op_type]]].dims),
            attributes={a.name: helper.get_attribute_value(a) for a in node.attribute},
        )
        if _is_sound(layer):
            found.append(layer)
    return found


def _is_sound(layer: Layer) -> bool:
    if layer.operator not in _CONVOLUTIONS:
        return len(layer.shape) == 2
    if len(layer.shape) < 3 or layer.shape[0] % layer.groups:
        return False
    if layer.operator == "Conv":
        return True
    plain = layer.attributes.get("auto_pad", b"NOTSET") in (b"NOTSET", b"")
    return layer.groups == 1 and plain and "output_shape" not in layer.attributes


def uses(model: ModelProto) -> Counter[str]:
    """How often each value is read, in subgraphs and as an output, too."""
    counts = Counter(value.name for value in model.graph.output)
    for current in graph.graphs(model.graph):
        counts.update(name for node in current.node for name in node.input)
        if current is not model.graph:
            counts.update(value.name for value in current.output)
    return counts


def constant(current: GraphProto, name: str) -> np.ndarray | None:
    """Values of a float32 constant of this graph."""
    found = graph.initializers(current).get(name)
    if found is None or found.data_type != TensorProto.FLOAT:
        return None
    return numpy_helper.to_array(found)


def replace(tensor: TensorProto, values: np.ndarray) -> None:
    """Give an initializer other values, under its name."""
    tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float32), tensor.name))


def _stuffed(values: np.ndarray, strides: Sequence[int]) -> np.ndarray:
    """With `stride - 1` zeros between neighbours."""
    lengths = [(n - 1) * s + 1 for n, s in zip(values.shape[2:], strides, strict=True)]
    wide = np.zeros((*values.shape[:2], *lengths), values.dtype)
    index = (slice(None), slice(None), *(slice(None, None, s) for s in strides))
    wide[index] = values
    return wide


def _padded(values: np.ndarray, before: Sequence[int], after: Sequence[int]) -> np.ndarray:
    """With zeros around; a negative number cuts off."""
    ends = list(zip(before, after, strict=True))
    if any(b or a for b, a in ends):
        values = np.pad(values, [(0, 0), (0, 0), *((max(b, 0), max(a, 0)) for b, a in ends)])
    cuts = (slice(max(-b, 0), -max(-a, 0) or None) for b, a in ends)
    index = (slice(None), slice(None), *cuts)
    cut: np.ndarray = values[index]
    return cut
