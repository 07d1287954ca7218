"""What lets a model tell of its tensors while it runs: big ones never leave the runtime. Pure.

Invariant: probes only read: what the model computes stays as it was. Extremes are of all values of
a tensor, however few of them are given out.

Two things make probes cheap. Pooling is an operator that ONNX Runtime has for its blocked layout
(NCHWc): the greatest value by GlobalMaxPool, an even selection by a MaxPool of single places with
strides; other readers would have the whole tensor reordered first. And a probe runs right after
what it reads, while that is in the cache, and lets it go (`interleave`); the runtime's own order
has most probes at the end, until when all tensors are held.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from onnx import (
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    ValueInfoProto,
    helper,
    numpy_helper,
)

from edgekit_converters import graph
from edgekit_converters.calibration.statistics import COUNTED

__all__ = [
    "Outputs",
    "Probe",
    "Telling",
    "add_probes",
    "interleave",
    "outputs",
    "probe_for",
    "rectified",
]

_SMALL: Final = 1 << 14
"""Values of a tensor that is given out whole: less work than probing it."""
_LEAST_PLACES: Final = 4
"""Along each spatial axis: fewer would weigh the border, where padding has its say, too much."""
_POOLED_RANK: Final = 4
_RECTIFIERS: Final = frozenset({"Relu", "Sigmoid", "Softmax"})
_PREFIX: Final = "edgekit-probe/"
_ALL: Final = f"{_PREFIX}all"
_FIRST: Final = f"{_PREFIX}first"
_END: Final = f"{_PREFIX}end"


class Telling(enum.Enum):
    """How a tensor is told of."""

    WHOLE = "whole"
    POOLED = "pooled"
    """The greatest value and a grid of places by pooling, for batches of images."""
    FLAT = "flat"
    """Extremes by reduction, every n-th value by slicing."""


@dataclass(frozen=True, kw_only=True)
class Probe:
    telling: Telling = Telling.WHOLE
    step: int = 1
    """Along each spatial axis (pooled), or along all values (flat)."""
    rectified: bool = False
    """No value is below zero: the least need not be looked for."""
    samples: bool = True
    """Some of the values are wanted, too, not only the extremes."""


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """Names of the outputs that tell of a tensor."""

    high: str | None
    """Its maximum is the tensor's."""
    low: str | None
    values: str | None
    """Some of its values, or, where there is no `high`, all."""


def probe_for(shape: tuple[int, ...], *, rectified: bool, samples: bool = True) -> Probe:
    """The cheapest way to tell of a tensor of this shape."""
    size = int(np.prod(shape, dtype=np.int64))
    if size <= _SMALL:
        return Probe()
    if len(shape) == _POOLED_RANK:
        most = min(shape[2:]) // _LEAST_PLACES
        for step in range(2, most + 1):
            places = -(-shape[2] // step) * -(-shape[3] // step)
            if step == most or shape[0] * shape[1] * places <= COUNTED:
                return Probe(
                    telling=Telling.POOLED, step=step, rectified=rectified, samples=samples
                )
    step = size // COUNTED | 1
    return Probe(telling=Telling.FLAT, step=step, rectified=rectified, samples=samples)


def rectified(within: GraphProto) -> frozenset[str]:
    """Tensors that by their operator hold nothing below zero."""
    floors = {
        tensor.name
        for tensor in within.initializer
        if tensor.data_type == TensorProto.FLOAT and _scalar(tensor) >= 0
    }
    return frozenset(
        node.output[0]
        for node in within.node
        if node.domain in graph.ONNX_DOMAINS
        and (
            node.op_type in _RECTIFIERS
            or (node.op_type == "Clip" and len(node.input) > 1 and node.input[1] in floors)
        )
    )


def _scalar(tensor: TensorProto) -> float:
    """The value of a float scalar that is kept in the model itself; else minus infinity."""
    if tensor.dims or tensor.data_location == TensorProto.EXTERNAL:
        return -np.inf
    return float(numpy_helper.to_array(tensor))


def outputs(name: str, probe: Probe) -> Outputs:
    if probe.telling is Telling.WHOLE:
        return Outputs(high=None, low=None, values=name)
    return Outputs(
        high=f"{_PREFIX}high/{name}",
        low=None if probe.rectified else f"{_PREFIX}low/{name}",
        values=f"{_PREFIX}values/{name}" if probe.samples else None,
    )


def add_probes(model: ModelProto, plan: Mapping[str, Probe]) -> None:
    """Let the model, of opset 13 or newer, give out what `outputs` names."""
    within = model.graph
    returned = {value.name for value in within.output}
    for name, value in ((_ALL, -1), (_FIRST, 0), (_END, np.iinfo(np.int64).max)):
        within.initializer.append(helper.make_tensor(name, TensorProto.INT64, [1], [value]))
    for name, probe in plan.items():
        told = outputs(name, probe)
        if told.values is None:
            pass
        elif probe.telling is Telling.POOLED:
            strides = [probe.step, probe.step]
            single = {"kernel_shape": [1, 1], "strides": strides}
            _append(within, "MaxPool", [name], told.values, **single)
        elif probe.telling is Telling.FLAT:
            flat, step = f"{_PREFIX}flat/{name}", f"{_PREFIX}step/{name}"
            tensor = helper.make_tensor(step, TensorProto.INT64, [1], [probe.step])
            within.initializer.append(tensor)
            _append(within, "Reshape", [name, _ALL], flat)
            _append(within, "Slice", [flat, _FIRST, _END, _FIRST, step], told.values)
        if told.low is not None:
            _append(within, "ReduceMin", [name], told.low, keepdims=0)
        if told.high is not None and told.low is None and probe.telling is Telling.POOLED:
            _append(within, "GlobalMaxPool", [name], told.high)
        elif told.high is not None:
            _append(within, "ReduceMax", [name], told.high, keepdims=0)
        # the runtime infers the type of an output that states none
        named = (told.high, told.low, told.values)
        within.output.extend(ValueInfoProto(name=n) for n in named if n and n not in returned)


def _append(
    within: GraphProto, operator: str, inputs: list[str], output: str, **attributes: Any
) -> None:
    within.node.append(helper.make_node(operator, inputs, [output], **attributes))


def interleave(model: ModelProto, returned: frozenset[str]) -> None:
    """Put each node that no `returned` output needs right after what it reads."""
    nodes = list(model.graph.node)  # in topological order
    needed = set(returned)
    needing = []
    for node in reversed(nodes):
        if needed & set(node.output):
            needed |= _read(node)
            needing.append(node)
    apart = {id(node) for node in needing}
    readers: dict[str, list[NodeProto]] = {}
    made = {output for node in nodes for output in node.output}
    missing: dict[int, int] = {}
    for node in nodes:
        if id(node) not in apart:
            inputs = _read(node) & made
            missing[id(node)] = len(inputs)
            for name in inputs:
                readers.setdefault(name, []).append(node)
    ordered = [node for node in nodes if missing.get(id(node)) == 0]
    for node in reversed(needing):
        pending = [node]
        while pending:
            current = pending.pop()
            ordered.append(current)
            for output in current.output:
                for reader in readers.get(output, ()):
                    missing[id(reader)] -= 1
                    if not missing[id(reader)]:
                        pending.append(reader)
    del model.graph.node[:]
    model.graph.node.extend(ordered)


def _read(node: NodeProto) -> set[str]:
    """What a node reads, its subgraphs included."""
    return graph.read_names(ModelProto(graph=GraphProto(node=[node]))) - {""}
