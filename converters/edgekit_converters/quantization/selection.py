"""Which nodes are quantized, and which tensors must be observed for that. Pure.

Invariant: only operators that carry weights are chosen, and what must travel with them: activations
that a quantized range replaces, and operators that only move values. Everything else stays float.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from edgekit_converters import graph
from edgekit_converters.facts import weighted_nodes

__all__ = [
    "DYNAMIC_OPERATORS",
    "FIRST_INPUT_ONLY",
    "STATIC_OPERATORS",
    "Selection",
    "float_results",
    "select_static",
    "weighted_names",
]

STATIC_OPERATORS: Final = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
DYNAMIC_OPERATORS: Final = frozenset({"Gemm", "LSTM", "MatMul"})
"""Not Conv: onnxruntime's ConvInteger is slower than its float32 Conv wherever it was measured."""

_GIVE_FLOATS: Final = frozenset({"Gemm", "MatMul"})
_CLAMPS: Final = frozenset({"Relu", "Clip"})
_MOVES: Final = frozenset({"Flatten", "MaxPool", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
"""Their outputs are values of their inputs: one range serves both."""
FIRST_INPUT_ONLY: Final = _CLAMPS | _MOVES
"""Operators whose further inputs are bounds and shapes, not values."""
_INTEGER: Final = frozenset(
    "Add AveragePool Concat GlobalAveragePool LeakyRelu MatMul Mul Sigmoid Softmax".split()
)
"""Operators without weights of their own that the runtime computes in integers where both sides
are quantized (onnxruntime/core/optimizer/qdq_transformer/selectors_actions)."""


@dataclass(frozen=True, kw_only=True)
class Selection:
    nodes: tuple[str, ...]
    """Names of the nodes to quantize."""
    sources: Mapping[str, str]
    """Each tensor that needs a range, and the tensor whose observed range it takes."""

    @property
    def observed(self) -> tuple[str, ...]:
        """Tensors to observe, each once."""
        return tuple(dict.fromkeys(self.sources.values()))


def select_static(
    model: ModelProto, *, wide: bool = False, spared: Collection[str] = ()
) -> Selection:
    """What static quantization takes of the outermost graph of a normalized model.

    `wide` also takes operators without weights that touch a quantized tensor; `spared` nodes stay
    float.
    """
    current = model.graph
    constants = graph.initializers(current)
    kept = frozenset(spared)
    weighted = [
        node
        for node in weighted_nodes(current)
        if node.op_type in STATIC_OPERATORS and node.name not in kept and _is_plain(node, constants)
    ]
    producers = {output: node for node in current.node for output in node.output}
    consumers: dict[str, list[NodeProto]] = {}
    for node in current.node:
        for name in node.input:
            consumers.setdefault(name, []).append(node)
    returned = {value.name for value in current.output}
    chosen = {node.name for node in weighted}
    quantized = {name for node in weighted for name in (node.input[0], node.output[0])}
    for node in current.node:  # in topological order
        if node.name in kept or node.domain not in graph.ONNX_DOMAINS:
            continue
        if node.op_type in _CLAMPS | _MOVES and node.input[0] in quantized:
            chosen.add(node.name)
            quantized.add(node.output[0])
        elif wide and node.op_type in _INTEGER and quantized & {*node.input, *node.output}:
            chosen.add(node.name)
            quantized |= {*node.output, *(n for n in node.input if n and n not in constants)}

    def source(name: str) -> str:
        """The tensor to observe in place of `name`."""
        users = consumers.get(name, [])
        if len(users) == 1 and users[0].op_type in _CLAMPS and name not in returned:
            # What the clamp cuts off need not be represented; and the pair stays fused.
            return source(users[0].output[0])
        producer = producers.get(name)
        if producer is not None and producer.op_type in _MOVES:
            return source(producer.input[0])
        return name

    return Selection(
        nodes=tuple(node.name for node in current.node if node.name in chosen),
        sources={name: source(name) for name in sorted(quantized)},
    )


def float_results(current: GraphProto, nodes: Collection[str]) -> frozenset[str]:
    """Those of the quantized nodes whose results none of them reads, and that can give floats.

    onnxruntime's integer products of matrices do where nothing rounds what they give (QGemm and
    MatMulIntegerToFloat); its convolutions do not.
    """
    wanted = frozenset(nodes)
    read = {name for node in current.node if node.name in wanted for name in node.input}
    return frozenset(
        node.name
        for node in current.node
        if node.name in wanted and node.op_type in _GIVE_FLOATS and node.output[0] not in read
    )


def weighted_names(model: ModelProto) -> tuple[str, ...]:
    """Nodes of the outermost graph that multiply by weights, in topological order."""
    kinds = STATIC_OPERATORS | DYNAMIC_OPERATORS
    return tuple(node.name for node in weighted_nodes(model.graph) if node.op_type in kinds)


def _is_plain(node: NodeProto, constants: Mapping[str, TensorProto]) -> bool:
    """Whether the activation is a float tensor of its own and the bias, if any, a constant."""
    if node.input[0] in constants:
        return False
    has_bias = len(node.input) > 2 and node.input[2]
    return not has_bias or node.input[2] in constants
