"""How much noise quantization adds at each node: all nodes measured in one pass over few samples.

One model computes every node twice: as it is, and beside that from quantized inputs with quantized
weights. Both see the float model's activations, so what is measured is the node's own noise, and
nothing of the nodes before it. Noise powers relative to the signal add up along a network (Lin,
Talathi and Annapureddy, "Fixed point quantization of deep convolutional networks", ICML 2016,
section 3), which makes them comparable between nodes: the greatest are what to leave out first.

Invariant: the model file is only read; memory is that of the model's activations, since nothing but
two numbers per node leaves the runtime.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import onnx
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from edgekit_contract.profile import RuntimeKind
from edgekit_converters import graph
from edgekit_converters.calibration.estimators import Range
from edgekit_converters.quantization.selection import FIRST_INPUT_ONLY, Selection
from edgekit_runtime.session import Optimization, SessionOptions, open_session

__all__ = ["NodeNoise", "measure_noise"]

_LEAST_DB: Final = -200.0
"""No noise at all."""
_SIGNED, _UNSIGNED = 127, 255
_CHANNEL_AXES: Final = {"Conv": 0, "ConvTranspose": 1, "Gemm": 1, "MatMul": -1}


class NodeNoise(msgspec.Struct, frozen=True, kw_only=True):
    """What quantizing one node adds to its output."""

    node: str
    operator: str
    noise_db: float
    """Noise power over signal power of the node's output: greater is worse."""
    parameters: int


@dataclass(frozen=True, kw_only=True)
class _Probe:
    """A node that is computed twice, and the outputs that tell the sums of squares."""

    node: NodeProto
    noise: str
    signal: str
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
) -> tuple[NodeNoise, ...]:
    """Noise of each selected node that computes something, the noisiest first.

    `ranges` are by observed tensor, as calibration gives them. Errors: those of the runtime.
    """
    proto = onnx.load_model(model)
    sources = {name: ranges[seen] for name, seen in selection.sources.items() if seen in ranges}
    probes = _insert(proto.graph, selection, sources, per_channel=per_channel)
    if not probes:
        return ()
    path = scratch / "probed.onnx"
    onnx.save_model(proto, path)
    sums = np.zeros((len(probes), 2))
    # optimized, onnxruntime would round the weights once more, and coarser
    options = SessionOptions(threads=threads, optimization=Optimization.NONE)
    session = open_session(RuntimeKind.ONNXRUNTIME, path, options)
    for feeds in samples:
        outputs = session.run(feeds)
        sums += [(float(outputs[p.noise]), float(outputs[p.signal])) for p in probes]
    session.close()
    path.unlink()
    found = [
        NodeNoise(
            node=probe.node.name,
            operator=probe.node.op_type,
            noise_db=_decibels(noise, signal),
            parameters=probe.parameters,
        )
        for probe, (noise, signal) in zip(probes, sums, strict=True)
    ]
    return tuple(sorted(found, key=lambda noise: -noise.noise_db))


def _decibels(noise: float, signal: float) -> float:
    if not noise > 0 or not signal > 0:
        return _LEAST_DB
    return max(_LEAST_DB, float(10 * np.log10(noise / signal)))


def _insert(
    main: GraphProto, selection: Selection, ranges: Mapping[str, Range], *, per_channel: bool
) -> list[_Probe]:
    """Add to the graph, beside every selected node, its quantized self and two outputs."""
    constants = graph.initializers(main)
    clamps = {n.input[0]: n for n in main.node if n.op_type in ("Relu", "Clip")}
    chosen = set(selection.nodes)
    quantized: dict[str, str] = {}
    probes: list[_Probe] = []
    added: list[NodeProto] = []

    def fake(name: str) -> str:
        """The tensor as its integers represent it."""
        if name not in quantized:
            quantized[name] = f"{name}/quantized"
            added.extend(_round_trip(main, name, quantized[name], ranges[name]))
        return quantized[name]

    for node in [n for n in main.node if n.name in chosen and n.op_type not in FIRST_INPUT_ONLY]:
        values = [name for name in node.input if name and name not in constants]
        if not all(name in ranges for name in (*values, node.output[0])):
            continue
        beside = NodeProto()
        beside.CopyFrom(node)
        beside.name = f"{node.name}/quantized"
        parameters = 0
        for index, name in enumerate(node.input):
            if name in values:
                beside.input[index] = fake(name)
            elif name and index == 1 and node.op_type in _CHANNEL_AXES:
                beside.input[index] = f"{node.name}/weights"
                weights = numpy_helper.to_array(constants[name])
                parameters = weights.size
                rounded = _rounded(weights, _axis(node, weights) if per_channel else None)
                main.initializer.append(numpy_helper.from_array(rounded, beside.input[index]))
        end = node.output[0]
        beside.output[0] = f"{end}/beside"
        added.append(beside)
        last = beside.output[0]
        clamp = clamps.get(end)
        if clamp is not None and clamp.name in chosen:
            follower = NodeProto()
            follower.CopyFrom(clamp)
            follower.name, follower.input[0] = f"{clamp.name}/beside {node.name}", last
            end, last = clamp.output[0], f"{last}/clamped"
            follower.output[0] = last
            added.append(follower)
        added.extend(_round_trip(main, last, f"{last}/rounded", ranges[node.output[0]]))
        probe = _Probe(
            node=node,
            noise=f"probe noise {len(probes)}",
            signal=f"probe signal {len(probes)}",
            parameters=parameters,
        )
        added += [
            helper.make_node("Sub", [f"{last}/rounded", end], [f"{last}/noise"]),
            helper.make_node("ReduceSumSquare", [f"{last}/noise"], [probe.noise], keepdims=0),
            helper.make_node("ReduceSumSquare", [end], [probe.signal], keepdims=0),
        ]
        probes.append(probe)
    del main.output[:]
    main.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [])
        for probe in probes
        for name in (probe.noise, probe.signal)
    )
    main.node.extend(added)
    return probes


def _round_trip(main: GraphProto, name: str, out: str, found: Range) -> list[NodeProto]:
    """Quantize and dequantize a tensor to the 256 levels of its range."""
    scale = max((found.high - found.low) / _UNSIGNED, 1e-30)
    zero = int(np.clip(round(-found.low / scale), 0, _UNSIGNED))
    main.initializer.append(numpy_helper.from_array(np.float32(scale), f"{out}/scale"))
    main.initializer.append(numpy_helper.from_array(np.uint8(zero), f"{out}/zero"))
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
