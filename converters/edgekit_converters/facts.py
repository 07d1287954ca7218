"""What a plan needs to know of a model, read once from its graph."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import onnx
from onnx import GraphProto, NodeProto, TensorProto

from edgekit_converters import external, graph
from edgekit_runtime.backend_onnxruntime import is_ort_format

__all__ = ["WEIGHTED_INPUTS", "ModelFacts", "read_facts", "weight_bytes", "weighted_nodes"]

WEIGHTED_INPUTS: Final[Mapping[str, int]] = {
    "Conv": 1,
    "ConvTranspose": 1,
    "Gemm": 1,
    "MatMul": 1,
    "LSTM": 1,
    "GRU": 1,
    "RNN": 1,
    "Gather": 0,
}
"""Operators that carry weights, and which input holds them."""
_BITS: Final[Mapping[int, int]] = {
    TensorProto.INT4: 4,
    TensorProto.UINT4: 4,
    **{
        kind: onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize * 8
        for kind in (
            TensorProto.FLOAT, TensorProto.UINT8, TensorProto.INT8, TensorProto.UINT16,
            TensorProto.INT16, TensorProto.INT32, TensorProto.INT64, TensorProto.BOOL,
            TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.UINT32, TensorProto.UINT64,
            TensorProto.BFLOAT16,
        )
    },
}  # fmt: skip
"""Of one element."""


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """A model as a plan sees it. Of a LiteRT model, operators are as LiteRT names them."""

    size_bytes: int
    """With the data beside the file."""
    opset: int | None = None
    ir: int | None = None
    operators: Mapping[str, int] = field(default_factory=dict)
    """All operators, subgraphs included, and how often each occurs."""
    weighted: Mapping[str, int] = field(default_factory=dict)
    """Operators of the outermost graph that hold float32 weights, and how often; ONNX's names,
    for a LiteRT model those of their like."""
    nested_weighted: Mapping[str, int] = field(default_factory=dict)
    """The same inside subgraphs (If, Loop, Scan)."""
    other_weights: tuple[str, ...] = ()
    """Number formats other than float32 that such operators' weights have, such as `float16`."""
    parameters: int = 0
    """Elements of all initializers."""
    may_miss: frozenset[str] = frozenset()
    """Inputs to which NaN is a missing value."""


def read_facts(path: Path) -> ModelFacts:
    """Facts of a closed, normalized ONNX file (weights are initializers).

    One of onnxruntime's own format has only its size.
    """
    if is_ort_format(path):
        return ModelFacts(size_bytes=path.stat().st_size)
    model = onnx.load_model(path, load_external_data=False)
    nested: dict[str, int] = {}
    outer = _names_of_floats(model.graph)
    for inner in graph.graphs(model.graph):
        if inner is not model.graph:
            for node in weighted_nodes(inner, known=outer):
                nested[node.op_type] = nested.get(node.op_type, 0) + 1
    weighted: dict[str, int] = {}
    for node in weighted_nodes(model.graph):
        weighted[node.op_type] = weighted.get(node.op_type, 0) + 1
    return ModelFacts(
        size_bytes=external.size_bytes(path),
        opset=graph.opset(model),
        ir=model.ir_version,
        operators=dict(sorted(graph.operators(model).items())),
        weighted=weighted,
        nested_weighted=nested,
        other_weights=_other_weights(model.graph),
        parameters=sum(math.prod(t.dims) for g in graph.graphs(model.graph) for t in g.initializer),
        may_miss=graph.inputs_for_missing(model),
    )


def weight_bytes(path: Path) -> dict[str, int]:
    """Bytes of an ONNX model's initializers by number format, such as `int8`; most first.

    Nothing is known of a file of onnxruntime's own format.
    """
    if is_ort_format(path):
        return {}
    model = onnx.load_model(path, load_external_data=False)
    found: Counter[str] = Counter()
    for current in graph.graphs(model.graph):
        for tensor in current.initializer:
            kind = TensorProto.DataType.Name(tensor.data_type).lower()
            bits = _BITS.get(tensor.data_type, 32)
            found[kind] += math.prod(tensor.dims) * bits // 8
    return dict(found.most_common())


def weighted_nodes(current: GraphProto, *, known: frozenset[str] = frozenset()) -> list[NodeProto]:
    """Nodes of one graph whose weights are float32 initializers of it, or among `known`."""
    floats = _names_of_floats(current) | known
    return [
        node
        for node in current.node
        if node.domain in graph.ONNX_DOMAINS
        and (at := WEIGHTED_INPUTS.get(node.op_type)) is not None
        and len(node.input) > at
        and node.input[at] in floats
    ]


def _names_of_floats(current: GraphProto) -> frozenset[str]:
    return frozenset(t.name for t in current.initializer if t.data_type == TensorProto.FLOAT)


def _other_weights(main: GraphProto) -> tuple[str, ...]:
    kinds = {t.name: t.data_type for g in graph.graphs(main) for t in g.initializer}
    found = {
        kinds[node.input[at]]
        for current in graph.graphs(main)
        for node in current.node
        if node.domain in graph.ONNX_DOMAINS
        and (at := WEIGHTED_INPUTS.get(node.op_type)) is not None
        and len(node.input) > at
        and node.input[at] in kinds
    }
    return tuple(sorted(TensorProto.DataType.Name(kind).lower() for kind in found & _OTHERS))


_OTHERS: Final = frozenset({TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE})
