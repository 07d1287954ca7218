"""Raise a model to opset 13 by rewriting, in place, the operators whose form has changed since 7.

Invariant: what an operator computes stays the same; one that has no equal at opset 13 is refused
by name. Subgraphs are entered, operators of other domains are left alone, and names are kept: this
is why onnx's version converter is not used, which besides leaves Hardmax, Resize and Upsample
computing something else. Source: the ONNX operator changelog (docs/Changelog.md), versions 8 to 13.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from edgekit_contract.errors import Refused
from edgekit_converters import graph

__all__ = ["QUANTIZABLE_OPSET", "raise_opset"]

QUANTIZABLE_OPSET: Final = 13
"""From here on DequantizeLinear has an axis: what per-channel weights need."""


class NotRaised(Refused):
    """An operator has no equal form in the newer opset."""

    def __init__(self, node: NodeProto, why: str) -> None:
        super().__init__(
            f"{node.op_type} {node.name or next(iter(node.output), '')!r} {why}, which opset "
            f"{QUANTIZABLE_OPSET} cannot say."
        )


def raise_opset(model: ModelProto) -> None:
    """Rewrite a model of opset 7 to 12 in place. Errors: `NotRaised`."""
    version = graph.opset(model)
    if version >= QUANTIZABLE_OPSET:
        return
    raised = _Raising(model, version)
    for current in graph.graphs(model.graph):
        raised.rewrite(current)
    for imported in model.opset_import:
        if imported.domain in graph.ONNX_DOMAINS:
            imported.version = QUANTIZABLE_OPSET


class _Raising:
    """What rewrites of single nodes share: names, types and where new constants go."""

    def __init__(self, model: ModelProto, version: int) -> None:
        self.version = version
        self._names = graph.Names(model)
        self._types, self._ranks = _element_types_and_ranks(model)
        self._constants: dict[str, TensorProto] = {}
        self._graph = model.graph
        self.read = graph.read_names(model)

    def rewrite(self, current: GraphProto) -> None:
        self._graph = current
        self._constants |= graph.initializers(current)
        nodes = []
        for node in current.node:
            known = node.domain in graph.ONNX_DOMAINS
            rewrite = _REWRITES.get(node.op_type) if known else None
            if rewrite is None or self.version >= rewrite[0]:
                nodes.append(node)
                continue
            nodes += rewrite[1](self, node)
        kept = [graph.copied(node) for node in nodes]
        del current.node[:]
        current.node.extend(kept)

    def constant(self, hint: str, values: Any, dtype: Any = np.int64) -> str:
        """A new initializer of the graph at hand; its name."""
        name = self._names.new(hint)
        self._graph.initializer.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def value(self, hint: str) -> str:
        return self._names.new(hint)

    def known(self, name: str) -> np.ndarray | None:
        """What a constant holds."""
        tensor = self._constants.get(name)
        return None if tensor is None else numpy_helper.to_array(tensor)

    def dtype(self, name: str) -> Any:
        """Of a floating-point value; float32 where the model does not tell."""
        element = self._types.get(name, TensorProto.FLOAT)
        return helper.tensor_dtype_to_np_dtype(element)

    def rank(self, name: str) -> int | None:
        return self._ranks.get(name)


def _element_types_and_ranks(model: ModelProto) -> tuple[dict[str, int], dict[str, int]]:
    """Of values, as far as the model and ONNX tell; without ranks of names that stand for values
    of several, in branches."""
    try:
        typed = onnx.shape_inference.infer_shapes(model)
    except Exception:  # a type that is not known is float32, and the proof decides
        typed = model
    types: dict[str, int] = {}
    ranks: dict[str, set[int]] = {}
    for current in graph.graphs(typed.graph):
        for tensor in current.initializer:
            types[tensor.name] = tensor.data_type
            ranks.setdefault(tensor.name, set()).add(len(tensor.dims))
        for value in (*current.input, *current.output, *current.value_info):
            known = value.type.tensor_type
            if known.elem_type:
                types[value.name] = known.elem_type
            if known.HasField("shape"):
                ranks.setdefault(value.name, set()).add(len(known.shape.dim))
    return types, {name: each.pop() for name, each in ranks.items() if len(each) == 1}


def _take(node: NodeProto, *names: str) -> list[Any]:
    """Values of attributes, None for absent ones; they are removed."""
    held = {a.name: helper.get_attribute_value(a) for a in node.attribute if a.name in names}
    kept = [attribute for attribute in node.attribute if attribute.name not in names]
    del node.attribute[:]
    node.attribute.extend(kept)
    return [held.get(name) for name in names]


def _attribute(node: NodeProto, name: str, value: Any) -> None:
    _take(node, name)
    node.attribute.append(helper.make_attribute(name, value))


def _axes(to: _Raising, node: NodeProto) -> Iterable[NodeProto]:
    """Squeeze, Unsqueeze, ReduceSum: `axes` is an input since 13."""
    (axes,) = _take(node, "axes")
    if axes is not None:
        node.input.append(to.constant(f"{node.output[0]}/axes", axes))
    return [node]


def _split(to: _Raising, node: NodeProto) -> Iterable[NodeProto]:
    """Split: sizes are an input since 13."""
    (sizes,) = _take(node, "split")
    if sizes is not None:
        node.input.append(to.constant(f"{node.output[0]}/split", sizes))
    return [node]


def _along_axis(to: _Raising, node: NodeProto) -> Iterable[NodeProto]:
    """Softmax, LogSoftmax, Hardmax: before 13 all axes from `axis` on were one."""
    (axis,) = _take(node, "axis")
    axis = 1 if axis is None else int(axis)
    _attribute(node, "axis", -1)
    given, result = node.input[0], node.output[0]
    rank = to.rank(given)
    if axis == -1 or (rank is not None and axis == rank - 1):
        return [node]
    flat, done, shape = (to.value(f"{result}/{part}") for part in ("flat", "of flat", "shape"))
    node.input[0], node.output[0] = flat, done
    return [
        helper.make_node("Shape", [given], [shape]),
        helper.make_node("Flatten", [given], [flat], axis=axis),
        node,
        helper.make_node("Reshape", [done, shape], [result]),
    ]


def _dropout(to: _Raising, node: NodeProto) -> Iterable[NodeProto]:
    """Dropout outside of training lets all pass; only who reads its mask needs it."""
    _take(node, "ratio", "seed", "is_test")
    if len(node.output) > 1 and to.version < 10:
        if node.output[1] in to.read:
            raise NotRaised(node, "has a mask of numbers")
        del node.output[1:]
    return [node]


def _clip(to: _Raising, node: NodeProto) -> Iterable[NodeProto]:
    """Clip: bounds are inputs since 11."""
    low, high = _take(node, "min", "max")
    dtype = to.dtype(node.input[0])
    for bound, part in ((low, "min"), (high, "max")):
        name = "" if bound is None else to.constant(f"{node.output[0]}/{part}", bound, dtype)
        node.input.append(name)
    return [node]


def _pad(to: _Raising, node: NodeProto) -> Iterable[NodeProto]:
    """Pad: widths and value are inputs since 11."""
    pads, value = _take(node, "pads", "value")
    node.input.append(to.constant(f"{node.output[0]}/pads", pads or []))
    if value:
        dtype = to.dtype(node.input[0])
        node.input.append(to.constant(f"{node.output[0]}/value", value, dtype))
    return [node]


def _slice(to: _Raising, node: NodeProto) -> Iterable[NodeProto]:
    """Slice: where from, to and along are inputs since 10."""
    for part, values in zip(
        ("starts", "ends", "axes"), _take(node, "starts", "ends", "axes"), strict=True
    ):
        if values is not None:
            node.input.append(to.constant(f"{node.output[0]}/{part}", values))
    return [node]


def _topk(to: _Raising, node: NodeProto) -> Iterable[NodeProto]:
    """TopK: how many is an input since 10."""
    (count,) = _take(node, "k")
    node.input.append(to.constant(f"{node.output[0]}/k", [count]))
    return [node]


def _resize(to: _Raising, node: NodeProto) -> Iterable[NodeProto]:
    """Upsample, and Resize of opset 10: they always scaled from the corner."""
    scales, mode = _take(node, "scales", "mode")
    if scales is not None:
        node.input.append(to.constant(f"{node.output[0]}/scales", scales, np.float32))
    image, factors = node.input[0], node.input[1]
    values = to.known(factors)
    shrinks = values is not None and bool((values < 1).any())
    mode = mode or b"nearest"
    if mode == b"nearest" and shrinks and values is not None and bool((values > 1).any()):
        raise NotRaised(node, "shrinks one axis and stretches another")
    del node.input[:]
    node.input.extend([image, "", factors])
    node.op_type = "Resize"
    _attribute(node, "mode", mode)
    _attribute(node, "coordinate_transformation_mode", "asymmetric")
    _attribute(node, "nearest_mode", "ceil" if shrinks else "floor")
    return [node]


def _batch_normalization(to: _Raising, node: NodeProto) -> Iterable[NodeProto]:
    """BatchNormalization: before 9 its statistics could be of each element, not each channel."""
    spatial, epsilon = _take(node, "spatial", "epsilon")
    if epsilon is not None:
        _attribute(node, "epsilon", epsilon)
    if spatial is None or spatial == 1:
        return [node]
    if len([name for name in node.output if name]) > 1:
        raise NotRaised(node, "learns while it runs")
    x, scale, bias, mean, variance = node.input
    y = node.output[0]
    tiny = to.constant(f"{y}/epsilon", 1e-5 if epsilon is None else epsilon, to.dtype(x))
    parts = "centred", "raised", "deviation", "unit", "scaled"
    centred, raised, deviation, unit, scaled = (to.value(f"{y}/{part}") for part in parts)
    return [
        helper.make_node("Sub", [x, mean], [centred]),
        helper.make_node("Add", [variance, tiny], [raised]),
        helper.make_node("Sqrt", [raised], [deviation]),
        helper.make_node("Div", [centred, deviation], [unit]),
        helper.make_node("Mul", [unit, scale], [scaled]),
        helper.make_node("Add", [scaled, bias], [y]),
    ]


def _scatter(to: _Raising, node: NodeProto) -> Iterable[NodeProto]:
    """Scatter is called ScatterElements since 11."""
    node.op_type = "ScatterElements"
    return [node]


def _scan(to: _Raising, node: NodeProto) -> Iterable[NodeProto]:
    """Scan of opset 8 had lengths as its first input and a batch as the first axis of all."""
    raise NotRaised(node, "of opset 8 runs over a batch")


_Rewrite = Callable[[_Raising, NodeProto], Iterable[NodeProto]]
_REWRITES: Final[Mapping[str, tuple[int, _Rewrite]]] = {
    "BatchNormalization": (9, _batch_normalization),
    "Clip": (11, _clip),
    "Dropout": (12, _dropout),
    "Hardmax": (13, _along_axis),
    "LogSoftmax": (13, _along_axis),
    "Pad": (11, _pad),
    "ReduceSum": (13, _axes),
    "Resize": (11, _resize),
    "Scan": (9, _scan),
    "Scatter": (13, _scatter),
    "Slice": (10, _slice),
    "Softmax": (13, _along_axis),
    "Split": (13, _split),
    "Squeeze": (13, _axes),
    "TopK": (10, _topk),
    "Unsqueeze": (13, _axes),
    "Upsample": (13, _resize),
}
"""By operator: the opset from which on its form is that of 13, and how an older one becomes it."""
