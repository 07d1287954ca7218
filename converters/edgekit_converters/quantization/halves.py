"""Convolutions in float16, with what lies between them, where the core has such arithmetic.

onnxruntime has float16 kernels for some operators only, on ARM cores with `asimdhp`; around all
others it casts, which costs more than it gains. So only those are taken, from one convolution to
the next, and the model's inputs and outputs stay float32. Found by trying: onnxruntime 1.22.1 and
1.23.2 for aarch64 under qemu's cortex-a76 fuse no cast around the operators named here.

Invariant: a tensor is float16 only between nodes that were taken.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Final

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto

from edgekit_contract.errors import Refused
from edgekit_converters import graph
from edgekit_converters.facts import weighted_nodes
from edgekit_converters.quantization.draft import Draft, Place

__all__ = ["compute_in_half"]

_FLOAT_INPUTS: Final = {
    "Conv": 3,
    "AveragePool": 1,
    "Clip": 3,
    "Flatten": 1,
    "GlobalAveragePool": 1,
    "LeakyRelu": 1,
    "MaxPool": 1,
    "Relu": 1,
    "Reshape": 1,
    "Transpose": 1,
}
"""Operators with float16 kernels, and how many of their first inputs are of the tensor's type."""


def compute_in_half(source: Path, out: Path, *, spared: Collection[str] = ()) -> None:
    """Write `source` with its convolutions in float16. Errors: `Refused` where there are none."""
    model = onnx.load_model(source)
    taken = _taken(model, spared)
    if not taken:
        raise Refused("no convolution could be computed in float16.")
    left = _read_elsewhere(model, taken)

    def change(place: Place, node: NodeProto) -> bool:
        if node.name not in taken:
            return False
        count = _FLOAT_INPUTS[node.op_type]
        inputs = {name: _half(place, name) for name in node.input[:count] if name}
        result = node.output[0]
        narrow = place.fresh(f"{result}_half")
        place.memory["half", result] = narrow
        place.again(node, inputs, outputs=[narrow])
        if result in left:
            place.add("Cast", [narrow], result, outputs=[result], to=TensorProto.FLOAT)
        return True

    draft = Draft(model)
    draft.replace(change)
    draft.save(out)


def _taken(model: ModelProto, spared: Collection[str]) -> frozenset[str]:
    """Convolutions of the outermost graph, and nodes that go on with what they give."""
    weighted = {node.name for node in weighted_nodes(model.graph) if node.op_type == "Conv"}
    taken, narrow = set(), set()
    for node in model.graph.node:
        if (
            node.domain not in graph.ONNX_DOMAINS
            or node.op_type not in _FLOAT_INPUTS
            or node.name in spared
            or len(node.output) != 1
        ):
            continue
        if node.name in weighted or (node.op_type != "Conv" and node.input[0] in narrow):
            taken.add(node.name)
            narrow.add(node.output[0])
    return frozenset(taken)


def _read_elsewhere(model: ModelProto, taken: Collection[str]) -> frozenset[str]:
    """Tensors that other nodes, subgraphs or the caller read."""
    read = {value.name for g in graph.graphs(model.graph) for value in g.output}
    for current in graph.graphs(model.graph):
        for node in current.node:
            if current is not model.graph or node.name not in taken:
                read.update(node.input)
    return frozenset(read)


def _half(place: Place, name: str) -> str:
    """Name of the tensor `name` in float16."""
    key = ("half", name)
    if key not in place.memory:
        values = place.floats(name)
        if values is None:
            place.memory[key] = place.add("Cast", [name], f"{name}_half", to=TensorProto.FLOAT16)
        else:
            with np.errstate(over="ignore"):  # a clip's bound may be infinite
                narrow = values.astype(np.float16)
            place.memory[key] = place.constant(narrow, f"{name}_half")
    half: str = place.memory[key]
    return half
