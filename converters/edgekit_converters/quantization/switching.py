"""A model whose nodes, or tensors, can be switched one by one to what quantization makes of them.

An input of the model, `SWITCH`, says which node: each stands in an If, as it is or quantized. Nodes
whose tensors have ranges are computed from quantized inputs with quantized weights, and their
result is rounded; others with float32 weights, those of subgraphs and recurrent layers among them,
from weights on the grid that they are stored on. Tensors are rounded as further inputs say, so that
one model tries every range.

Invariant: with nothing switched the model computes what it did.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from edgekit_converters import graph
from edgekit_converters.calibration.estimators import Range
from edgekit_converters.conditioning.grid import FULL_LEVELS
from edgekit_converters.quantization.blockwise import channelwise
from edgekit_converters.quantization.selection import FIRST_INPUT_ONLY, Selection, float_results
from edgekit_converters.quantization.weight_only import is_worth_storing, sharing, stored_inputs

__all__ = [
    "NONE",
    "SCALE",
    "SWITCH",
    "ZERO",
    "Probe",
    "grid_of",
    "make_roundable",
    "make_switchable",
]

SWITCH: Final = "which one is quantized"
SCALE: Final = "scale of the rounded one"
ZERO: Final = "zero point of the rounded one"
NONE: Final = -1
_SIGNED, _UNSIGNED = 127, 255
_CHANNEL_AXES: Final = {"Conv": 0, "ConvTranspose": 1, "Gemm": 1, "MatMul": -1}


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A node that can be switched, in the order of their numbers."""

    node: str
    operator: str
    parameters: int


def make_switchable(
    main: GraphProto, selection: Selection, ranges: Mapping[str, Range], *, per_channel: bool
) -> list[Probe]:
    """Rewrite a normalized model's graph in place; `ranges` are by tensor."""
    probes: list[Probe] = []
    constants = graph.initializers(main)
    inner = [current for current in graph.graphs(main) if current is not main]
    for current in reversed(inner):  # before those that hold them
        seen = {**constants, **graph.initializers(current)}
        _switch_weights(current, seen, probes, done=frozenset())
    _switch_nodes(main, selection, ranges, probes, per_channel=per_channel)
    _switch_weights(main, constants, probes, done={probe.node for probe in probes})
    main.input.append(helper.make_tensor_value_info(SWITCH, TensorProto.INT64, []))
    return probes


def make_roundable(main: GraphProto, tensors: Sequence[str]) -> None:
    """Rewrite a normalized model's graph in place: of its float tensors the one whose number is
    `SWITCH` is rounded to the levels that the inputs `SCALE` and `ZERO` say.

    `tensors` are results of the outermost graph's nodes, or its inputs.
    """
    numbers = {name: number for number, name in enumerate(tensors)}
    given = {value.name: f"{value.name}/taken" for value in main.input if value.name in numbers}
    nodes: list[NodeProto] = []
    for name, taken in given.items():
        nodes += _roundable(main, name, taken, numbers[name])
    for node in main.node:
        node.input[:] = [given.get(name, name) for name in node.input]
        nodes.append(node)
        for index, name in enumerate(node.output):
            if name in numbers:
                node.output[index] = f"{name}/float"
                nodes += _roundable(main, node.output[index], name, numbers[name])
    del main.node[:]
    main.node.extend(nodes)
    kinds = {SWITCH: TensorProto.INT64, SCALE: TensorProto.FLOAT, ZERO: TensorProto.UINT8}
    main.input.extend(helper.make_tensor_value_info(name, kind, []) for name, kind in kinds.items())


def _roundable(main: GraphProto, name: str, out: str, number: int) -> list[NodeProto]:
    main.initializer.append(numpy_helper.from_array(np.array(number), f"{out}/number"))
    rounding = _rounding(name, SCALE, ZERO, f"{out}/rounded")
    kept = helper.make_node("Identity", [name], [f"{out}/kept"])
    return [
        helper.make_node("Equal", [SWITCH, f"{out}/number"], [f"{out}/is rounded"]),
        helper.make_node(
            "If",
            [f"{out}/is rounded"],
            [out],
            then_branch=helper.make_graph(rounding, "rounded", [], [_untyped(f"{out}/rounded")]),
            else_branch=helper.make_graph([kept], "float", [], [_untyped(f"{out}/kept")]),
        ),
    ]


def _switch_weights(
    current: GraphProto,
    constants: Mapping[str, TensorProto],
    probes: list[Probe],
    *,
    done: Collection[str],
) -> None:
    """Put the nodes of one graph with weights of their own behind an If on their numbers."""
    nodes: list[NodeProto] = []
    for node in current.node:
        held = _stored(node, constants)
        if not held or not node.name or node.name in done:
            nodes.append(node)
            continue
        outputs = [name for name in node.output if name]
        narrow, rounded = NodeProto(), list[TensorProto]()
        narrow.CopyFrom(node)
        for index, name in enumerate(node.input):
            if name in held:
                narrow.input[index] = f"{outputs[0]}/stored {name}"
                rounded.append(numpy_helper.from_array(_on_grid(*held[name]), narrow.input[index]))
        number = f"{outputs[0]}/number"
        nodes += [
            helper.make_node("Equal", [SWITCH, number], [f"{outputs[0]}/is narrow"]),
            helper.make_node(
                "If",
                [f"{outputs[0]}/is narrow"],
                outputs,
                then_branch=_alone(narrow, "narrow", rounded),
                else_branch=_alone(node, "wide", []),
            ),
        ]
        current.initializer.append(numpy_helper.from_array(np.array(len(probes)), number))
        parameters = sum(weight.size for weight, _ in held.values())
        probes.append(Probe(node=node.name, operator=node.op_type, parameters=parameters))
    del current.node[:]
    current.node.extend(nodes)


def _stored(
    node: NodeProto, constants: Mapping[str, TensorProto]
) -> dict[str, tuple[np.ndarray, tuple[int, ...]]]:
    """A node's weights that are worth 8 bits, with the axes along which one step serves."""
    held = {}
    if node.domain in graph.ONNX_DOMAINS:
        for name in node.input[:1] if node.op_type == "Gather" else stored_inputs(node):
            tensor = constants.get(name)
            if tensor is None or tensor.data_type != TensorProto.FLOAT:
                continue
            rank = len(tensor.dims)
            axes = (rank - 1,) if node.op_type == "Gather" and rank > 1 else sharing(node, rank)
            if axes is not None and is_worth_storing(math.prod(tensor.dims)):
                held[name] = numpy_helper.to_array(tensor), axes
    return held


def _on_grid(weight: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    codes, steps = channelwise(weight, axes, levels=FULL_LEVELS)
    return np.asarray(codes * steps, np.float32)


def _alone(node: NodeProto, name: str, constants: list[TensorProto]) -> GraphProto:
    copy = NodeProto()
    copy.CopyFrom(node)
    copy.output[:] = [f"{output}/{name}" if output else "" for output in node.output]
    outputs = [_untyped(output) for output in copy.output if output]
    return helper.make_graph([copy], name, [], outputs, constants)


def _switch_nodes(
    main: GraphProto,
    selection: Selection,
    ranges: Mapping[str, Range],
    probes: list[Probe],
    *,
    per_channel: bool,
) -> None:
    """Put every selected node behind an If on its number; what follows reads the If's output."""
    constants = graph.initializers(main)
    chosen = set(selection.nodes)
    floats = float_results(main, selection.nodes)
    nodes: list[NodeProto] = []
    for node in main.node:
        nodes.append(node)
        values = [name for name in node.input if name and name not in constants]
        takes_part = node.name in chosen and node.op_type not in FIRST_INPUT_ONLY
        if not takes_part or not all(name in ranges for name in (*values, node.output[0])):
            continue
        number, end = len(probes), node.output[0]
        weights = None
        if len(node.input) > 1 and node.op_type in _CHANNEL_AXES:
            held = constants.get(node.input[1])
            weights = None if held is None else numpy_helper.to_array(held)
        quantized = NodeProto()
        quantized.CopyFrom(node)
        node.output[0] = f"{end}/float"
        nodes += [
            helper.make_node("Equal", [SWITCH, f"{end}/number"], [f"{end}/is quantized"]),
            helper.make_node(
                "If",
                [f"{end}/is quantized"],
                [end],
                then_branch=_branch(
                    quantized,
                    values,
                    ranges,
                    weights,
                    per_channel=per_channel,
                    rounds=quantized.name not in floats,
                ),
                else_branch=helper.make_graph(
                    [helper.make_node("Identity", [f"{end}/float"], [f"{end}/kept"])],
                    "float",
                    [],
                    [_untyped(f"{end}/kept")],
                ),
            ),
        ]
        main.initializer.append(numpy_helper.from_array(np.array(number), f"{end}/number"))
        parameters = 0 if weights is None else weights.size
        probes.append(Probe(node=node.name, operator=node.op_type, parameters=parameters))
    del main.node[:]
    main.node.extend(nodes)


def _branch(
    node: NodeProto,
    values: list[str],
    ranges: Mapping[str, Range],
    weights: np.ndarray | None,
    *,
    per_channel: bool,
    rounds: bool,
) -> GraphProto:
    """The node from quantized inputs with quantized weights, and its result rounded where the
    runtime `rounds` it."""
    end, constants, nodes = node.output[0], list[TensorProto](), list[NodeProto]()
    for name in dict.fromkeys(values):
        nodes += _round_trip(constants, name, f"{end}/read {name}", ranges[name])
    for index, name in enumerate(node.input):
        if name in values:
            node.input[index] = f"{end}/read {name}"
    if weights is not None:
        rounded = _rounded(weights, _axis(node, weights) if per_channel else None)
        node.input[1] = f"{end}/weights"
        constants.append(numpy_helper.from_array(rounded, node.input[1]))
    node.output[0] = f"{end}/computed"
    nodes.append(node)
    if rounds:
        # a range that a clamp behind it would cut off is not in the node's own
        nodes += _round_trip(constants, node.output[0], f"{end}/rounded", ranges[end])
    result = _untyped(nodes[-1].output[0])
    return helper.make_graph(nodes, "quantized", [], [result], constants)


def _untyped(name: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, None)


def _round_trip(constants: list[TensorProto], name: str, out: str, found: Range) -> list[NodeProto]:
    """Quantize and dequantize a tensor to the 256 levels of its range."""
    scale, zero = grid_of(found)
    constants.append(numpy_helper.from_array(scale, f"{out}/scale"))
    constants.append(numpy_helper.from_array(zero, f"{out}/zero"))
    return _rounding(name, f"{out}/scale", f"{out}/zero", out)


def grid_of(found: Range) -> tuple[np.ndarray, np.ndarray]:
    """Scale (float32) and zero point (uint8) of the 256 levels of a range, scalars."""
    scale = max((found.high - found.low) / _UNSIGNED, 1e-30)
    zero = int(np.clip(round(-found.low / scale), 0, _UNSIGNED))
    return np.array(scale, np.float32), np.array(zero, np.uint8)


def _rounding(name: str, scale: str, zero: str, out: str) -> list[NodeProto]:
    grid = [scale, zero]
    return [
        helper.make_node("QuantizeLinear", [name, *grid], [f"{out}/integers"]),
        helper.make_node("DequantizeLinear", [f"{out}/integers", *grid], [out]),
    ]


def _axis(node: NodeProto, weights: np.ndarray) -> int:
    axis = _CHANNEL_AXES[node.op_type]
    if node.op_type == "Gemm" and any(a.name == "transB" and a.i for a in node.attribute):
        axis = 0
    return axis % weights.ndim


def _rounded(weights: np.ndarray, axis: int | None) -> np.ndarray:
    """Weights on the grid of 8-bit symmetric integers, a scale per index of `axis`."""
    others = None if axis is None else tuple(i for i in range(weights.ndim) if i != axis)
    scale = np.abs(weights).max(axis=others, keepdims=True, initial=0.0) / _SIGNED
    scale = np.where(scale > 0, scale, 1.0)
    return np.asarray(np.rint(weights / scale) * scale, np.float32)
