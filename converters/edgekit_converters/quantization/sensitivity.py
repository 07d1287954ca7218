"""What quantizing one node, and no other, does to the outputs: for every node, with one model.

Each node stands in an If: as it is, or computed from quantized inputs with quantized weights and
its result rounded. An input of the model says which node that is, so that trying one costs a run
and no other making, loading or optimizing of a model. What later layers amplify, or average out,
is in the figure; only how errors of several nodes add up is not (Lin, Talathi and Annapureddy,
"Fixed point quantization of deep convolutional networks", ICML 2016, section 3, has them add).

Invariant: the model file is only read; one sample's outputs are in memory at a time. Samples are
taken while there is time, so that all nodes are measured on the same ones.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from edgekit_contract.errors import Refused
from edgekit_contract.profile import RuntimeKind
from edgekit_converters import external, graph
from edgekit_converters.calibration.estimators import Range
from edgekit_converters.quantization.selection import FIRST_INPUT_ONLY, Selection
from edgekit_runtime.session import Optimization, Session, SessionOptions, open_session

__all__ = ["NodeNoise", "decibels", "measure_noise"]

_LEAST_DB: Final = -200.0
"""No noise at all."""
_BROKEN: Final = 1e12
"""Noise to signal of a node that makes numbers into NaN or infinity."""
_MIN_OPSET: Final = 10
"""The first with QuantizeLinear."""
_SIGNED, _UNSIGNED = 127, 255
_CHANNEL_AXES: Final = {"Conv": 0, "ConvTranspose": 1, "Gemm": 1, "MatMul": -1}
_SWITCH: Final = "which node is quantized"
_NONE: Final = -1
_TIME_S: Final = 3.0
"""After so long no further sample is begun."""
_PATIENCE_S: Final = 12.0
"""So long past that the first one is given up, and nodes stay unranked."""


class NodeNoise(msgspec.Struct, frozen=True, kw_only=True):
    """What quantizing one node does to the model's outputs."""

    node: str
    operator: str
    noise_db: float
    """Noise power over signal power of the worst output: greater is worse."""
    parameters: int


@dataclass(frozen=True, kw_only=True)
class _Probe:
    """A node that can be switched, in the order of their numbers."""

    node: str
    operator: str
    parameters: int


def measure_noise(
    model: Path,
    selection: Selection,
    ranges: Mapping[str, Range],
    samples: Iterable[Mapping[str, np.ndarray]],
    *,
    per_channel: bool,
    threads: int,
    scratch: Path,
    embedded_bytes: int = external.MAX_EMBEDDED_BYTES,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[NodeNoise, ...]:
    """Noise of each selected node that computes something, the noisiest first.

    `ranges` are by observed tensor, as calibration gives them. At least one sample is run for every
    node, more while there is time. Errors: `Refused`, also those of the runtime.
    """
    proto = onnx.load_model(model)
    if graph.opset(proto) < _MIN_OPSET:
        raise Refused(f"ranking nodes needs opset {_MIN_OPSET}.")
    sources = {name: ranges[seen] for name, seen in selection.sources.items() if seen in ranges}
    probes = _switchable(proto.graph, selection, sources, per_channel=per_channel)
    if not probes:
        return ()
    sums = np.zeros((len(probes), len(proto.graph.output), 2))
    with closing(_opened(proto, threads, scratch, embedded_bytes)) as session:
        ends = clock() + _TIME_S
        for feeds in samples:
            right = _run(session, feeds, _NONE)
            for number in range(len(probes)):
                sums[number] += _powers(_run(session, feeds, number), right)
                if clock() >= ends + _PATIENCE_S:
                    return ()
            if clock() >= ends:
                break
    found = [
        NodeNoise(
            node=probe.node,
            operator=probe.operator,
            noise_db=max(decibels(noise, signal) for noise, signal in of_outputs),
            parameters=probe.parameters,
        )
        for probe, of_outputs in zip(probes, sums, strict=True)
    ]
    return tuple(sorted(found, key=lambda noise: -noise.noise_db))


def _opened(proto: ModelProto, threads: int, scratch: Path, embedded_bytes: int) -> Session:
    # optimized, onnxruntime would round the weights once more, and coarser
    options = SessionOptions(threads=threads, optimization=Optimization.NONE)
    with tempfile.TemporaryDirectory(dir=scratch) as directory:
        path = Path(directory) / "switched.onnx"
        external.save(proto, path, embedded_bytes=embedded_bytes)
        return open_session(RuntimeKind.ONNXRUNTIME, path, options)


def _run(session: Session, feeds: Mapping[str, np.ndarray], number: int) -> list[np.ndarray]:
    return list(session.run({**feeds, _SWITCH: np.array(number, np.int64)}).values())


def _powers(got: list[np.ndarray], want: list[np.ndarray]) -> np.ndarray:
    """Sums of squares of error and signal of each output; of what has no distance, counts."""
    found = []
    for array, right in zip(got, want, strict=True):
        if array.shape != right.shape:  # as many rows as were found: all of them wrong
            found.append((float(right.size), float(right.size)))
        elif right.dtype.kind != "f":
            found.append((float((array != right).sum()), float(right.size)))
        else:
            finite = np.isfinite(right)
            wide = right[finite].astype(np.float64)
            error = array[finite] - wide
            power = float(wide @ wide)
            broken = not np.isfinite(error).all()
            found.append((power * _BROKEN if broken else float(error @ error), power))
    return np.array(found)


def decibels(noise: float, signal: float = 1.0) -> float:
    """Noise over signal, finite always."""
    if not noise > 0 or not signal > 0:
        return _LEAST_DB
    return max(_LEAST_DB, float(10 * np.log10(noise / signal)))


def _switchable(
    main: GraphProto, selection: Selection, ranges: Mapping[str, Range], *, per_channel: bool
) -> list[_Probe]:
    """Put every selected node behind an If on its number; what follows reads the If's output."""
    constants = graph.initializers(main)
    chosen = set(selection.nodes)
    probes: list[_Probe] = []
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
            helper.make_node("Equal", [_SWITCH, f"{end}/number"], [f"{end}/is quantized"]),
            helper.make_node(
                "If",
                [f"{end}/is quantized"],
                [end],
                then_branch=_branch(quantized, values, ranges, weights, per_channel=per_channel),
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
        probes.append(_Probe(node=node.name, operator=node.op_type, parameters=parameters))
    del main.node[:]
    main.node.extend(nodes)
    main.input.append(helper.make_tensor_value_info(_SWITCH, TensorProto.INT64, []))
    return probes


def _branch(
    node: NodeProto,
    values: list[str],
    ranges: Mapping[str, Range],
    weights: np.ndarray | None,
    *,
    per_channel: bool,
) -> GraphProto:
    """The node from quantized inputs with quantized weights, and its result rounded."""
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
    # a range that a clamp behind it would cut off is not in the node's own
    nodes += _round_trip(constants, node.output[0], f"{end}/rounded", ranges[end])
    return helper.make_graph(nodes, "quantized", [], [_untyped(f"{end}/rounded")], constants)


def _untyped(name: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, None)


def _round_trip(constants: list[TensorProto], name: str, out: str, found: Range) -> list[NodeProto]:
    """Quantize and dequantize a tensor to the 256 levels of its range."""
    scale = max((found.high - found.low) / _UNSIGNED, 1e-30)
    zero = int(np.clip(round(-found.low / scale), 0, _UNSIGNED))
    constants.append(numpy_helper.from_array(np.float32(scale), f"{out}/scale"))
    constants.append(numpy_helper.from_array(np.uint8(zero), f"{out}/zero"))
    grid = [f"{out}/scale", f"{out}/zero"]
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
