"""What a .tflite file holds, as a plan sees it. Runs in a child process.

Read with the runtime's own schema, after the runtime has loaded the file. Source:
tensorflow/lite/schema/schema.fbs (v3).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from edgekit_contract.errors import Refused

__all__ = ["BITS", "LiteRtFacts", "integers", "is_constant", "names", "opened", "read"]

_WEIGHTED: Final[Mapping[str, tuple[str, int]]] = {
    "CONV_2D": ("Conv", 1),
    "DEPTHWISE_CONV_2D": ("Conv", 1),
    "CONV_3D": ("Conv", 1),
    "TRANSPOSE_CONV": ("ConvTranspose", 1),
    "FULLY_CONNECTED": ("Gemm", 1),
    "BATCH_MATMUL": ("MatMul", 1),
    "EMBEDDING_LOOKUP": ("Gather", 1),
    "GATHER": ("Gather", 0),
    "UNIDIRECTIONAL_SEQUENCE_LSTM": ("LSTM", 1),
}
"""Operators that carry weights, ONNX's name for their like, and which input holds them."""
BITS: Final[Mapping[str, int]] = {"INT4": 4, "UINT4": 4, "INT2": 2, "FLOAT16": 16, "BFLOAT16": 16,
    "INT8": 8, "UINT8": 8, "BOOL": 8, "INT16": 16, "UINT16": 16, "INT64": 64, "UINT64": 64,
    "FLOAT64": 64}  # fmt: skip
"""Of one element; others have 32."""


class Layer(msgspec.Struct, frozen=True, kw_only=True):
    """An operator with weights."""

    operator: str
    """As LiteRT names it."""
    parameters: int


class LiteRtFacts(msgspec.Struct, frozen=True, kw_only=True):
    operators: dict[str, int]
    """All operators, and how often each occurs, as LiteRT names them."""
    weighted: dict[str, int]
    """Operators with float32 weights, or float16 that are widened, as ONNX names their like."""
    layers: dict[str, Layer]
    """Those of the main graph by the tensor that each writes, in order: what a tuning spares."""
    parameters: int
    sizes: dict[str, int]
    """Bytes of constants by number format, such as `int8`; most first."""
    keeps_state: bool
    """Whether it has variables."""


def read(path: str) -> Any:
    """Facts of a file, as JSON. Errors: `Refused`."""
    model, codes, kinds = opened(path)
    counts: Counter[str] = Counter()
    weighted: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    layers: dict[str, Layer] = {}
    parameters = 0
    for number, graph in enumerate(model.subgraphs):
        constants = {
            index: tensor
            for index, tensor in enumerate(graph.tensors)
            if is_constant(model.buffers[tensor.buffer])
        }
        floats = {i for i, tensor in constants.items() if kinds[tensor.type] == "FLOAT32"}
        for operator in graph.operators or ():  # constants of float16 are as good: they are widened
            source = (
                constants.get(integers(operator.inputs)[0]) if integers(operator.inputs) else None
            )
            if codes[operator.opcodeIndex] == "DEQUANTIZE" and source is not None:
                floats |= {operator.outputs[0]} if kinds[source.type] == "FLOAT16" else set()
        for tensor in constants.values():
            elements = math.prod(map(int, integers(tensor.shape)))
            parameters += elements
            kind = kinds[tensor.type]
            sizes[kind.lower()] += elements * BITS.get(kind, 32) // 8
        for operator in graph.operators or ():
            name = codes[operator.opcodeIndex]
            counts[name] += 1
            like, place = _WEIGHTED.get(name, ("", 0))
            inputs = integers(operator.inputs)
            if not like or len(inputs) <= place:
                continue
            if inputs[place] in floats:
                weighted[like] += 1
                if not number:
                    written = graph.tensors[operator.outputs[0]].name.decode()
                    shape = integers(graph.tensors[inputs[place]].shape)
                    layers[written] = Layer(operator=name, parameters=math.prod(shape))
    return msgspec.to_builtins(
        LiteRtFacts(
            operators=dict(sorted(counts.items())),
            weighted=dict(weighted),
            layers=layers,
            parameters=parameters,
            sizes=dict(sizes.most_common()),
            keeps_state=counts["VAR_HANDLE"] > 0
            or any(tensor.isVariable for g in model.subgraphs for tensor in g.tensors),
        )
    )


def opened(path: str) -> tuple[Any, list[str], dict[int, str]]:
    """The file as objects of the schema, names of its operator codes, and names of number formats.

    Errors: `Refused` where the runtime is not installed.
    """
    try:
        from ai_edge_litert import schema_py_generated as schema
    except ImportError as error:
        raise Refused("ai-edge-litert is not installed: pip install 'edgekit[tflite]'.") from error
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(Path(path).read_bytes(), 0))
    operators = names(schema.BuiltinOperator)
    codes = [
        operators[max(code.builtinCode, code.deprecatedBuiltinCode)] for code in model.operatorCodes
    ]
    return model, codes, names(schema.TensorType)


def names(numbers: Any) -> dict[int, str]:
    """Of an enumeration of the schema."""
    return {value: name for name, value in vars(numbers).items() if isinstance(value, int)}


def integers(array: Any) -> list[int]:
    """None is empty."""
    return [] if array is None else [int(item) for item in array]


def is_constant(buffer: Any) -> bool:
    """Whether a buffer of the file holds numbers."""
    return (buffer.data is not None and len(buffer.data) > 0) or buffer.offset > 0
