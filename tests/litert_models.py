"""LiteRT models for tests: one that keeps state, and digits in whole int8."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import numpy as np

_WHOLE_INT8 = """
import sys
import numpy as np
from ai_edge_quantizer import qtyping, quantizer
model, data, out = sys.argv[1:]
images = np.load(data)["image"].astype(np.float32)[:32]
work = quantizer.Quantizer(model)
work.add_static_config(".*", qtyping.TFLOperationName.ALL_SUPPORTED, 8, 8)
ranges = work.calibrate({"serving_default": [{"image": row[None]} for row in images]})
open(out, "wb").write(bytes(work.quantize(ranges).quantized_model))
"""


_HALVES = """
import sys
from ai_edge_quantizer import algorithm_manager, qtyping, quantizer
model, out = sys.argv[1:]
work = quantizer.Quantizer(model)
work.update_quantization_recipe(
    ".*",
    qtyping.TFLOperationName.ALL_SUPPORTED,
    qtyping.OpQuantizationConfig(
        weight_tensor_config=qtyping.TensorQuantizationConfig(
            num_bits=16, dtype=qtyping.TensorDataType.FLOAT
        ),
        compute_precision=qtyping.ComputePrecision.FLOAT,
        explicit_dequantize=True,
    ),
    algorithm_manager.AlgorithmName.FLOAT_CASTING,
)
open(out, "wb").write(bytes(work.quantize().quantized_model))
"""


def halves(python: Path, model: Path, out: Path) -> Path:
    """A float model with its weights in float16."""
    subprocess.run([python, "-I", "-c", _HALVES, model, out], check=True, capture_output=True)
    return out


def whole_int8(python: Path, model: Path, data: Path, out: Path) -> Path:
    """A float model with images in, quantized with its inputs and outputs."""
    subprocess.run(
        [python, "-I", "-c", _WHOLE_INT8, model, data, out], check=True, capture_output=True
    )
    return out


def stateful_file(columns: int) -> bytes:
    """`y = x @ W + s`, after which `s` is `y`: a running sum that starts at 0.

    Source: tensorflow/lite/schema/schema.fbs (v3); CALL_ONCE runs the graph that sets `s`.
    """
    import flatbuffers
    from ai_edge_litert import schema_py_generated as s

    weights = np.random.default_rng(0).normal(size=(columns, columns)).astype(np.float32)
    zeros = np.zeros((1, columns), np.float32)
    model = s.ModelT()
    model.version = 3
    model.buffers = [_buffer(s, b""), _buffer(s, weights.tobytes()), _buffer(s, zeros.tobytes())]
    codes = ["CALL_ONCE", "VAR_HANDLE", "READ_VARIABLE", "FULLY_CONNECTED", "ADD",
             "ASSIGN_VARIABLE"]  # fmt: skip
    model.operatorCodes = [_code(s, name) for name in codes]
    number = {name: index for index, name in enumerate(codes)}
    row, square, handle = [1, columns], [columns, columns], [1]
    main, first = s.SubGraphT(), s.SubGraphT()
    main.tensors = [
        _tensor(s, "x", row), _tensor(s, "W", square, buffer=1),
        _tensor(s, "handle", handle, kind="RESOURCE"),
        _tensor(s, "s", row), _tensor(s, "product", row), _tensor(s, "y", row),
    ]  # fmt: skip
    main.inputs, main.outputs = [0], [5]
    first.tensors = [
        _tensor(s, "handle0", handle, kind="RESOURCE"), _tensor(s, "zeros", row, buffer=2)
    ]  # fmt: skip
    first.inputs, first.outputs = [], []
    variable = s.VarHandleOptionsT()
    variable.sharedName, variable.container = "s", ""
    once = s.CallOnceOptionsT()
    once.initSubgraphIndex = 1
    main.operators = [
        _operator(s, number["CALL_ONCE"], ([], []), "CallOnceOptions", once),
        _operator(s, number["VAR_HANDLE"], ([], [2]), "VarHandleOptions", variable),
        _operator(s, number["READ_VARIABLE"], ([2], [3]), "ReadVariableOptions"),
        _operator(s, number["FULLY_CONNECTED"], ([0, 1, -1], [4]), "FullyConnectedOptions"),
        _operator(s, number["ADD"], ([4, 3], [5]), "AddOptions"),
        _operator(s, number["ASSIGN_VARIABLE"], ([2, 5], []), "AssignVariableOptions"),
    ]
    first.operators = [
        _operator(s, number["VAR_HANDLE"], ([], [0]), "VarHandleOptions", variable),
        _operator(s, number["ASSIGN_VARIABLE"], ([0, 1], []), "AssignVariableOptions"),
    ]
    model.subgraphs = [main, first]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def foreign_file(operator: str) -> bytes:
    """`y = OPERATOR(x)`, an operator that is not built in."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as s

    model, main = s.ModelT(), s.SubGraphT()
    model.version, model.buffers = 3, [_buffer(s, b"")]
    code = _code(s, "CUSTOM")
    code.customCode = operator
    model.operatorCodes = [code]
    main.tensors = [_tensor(s, "x", [1, 4]), _tensor(s, "y", [1, 4])]
    main.inputs, main.outputs = [0], [1]
    foreign = s.OperatorT()
    foreign.opcodeIndex, foreign.inputs, foreign.outputs = 0, [0], [1]
    main.operators = [foreign]
    model.subgraphs = [main]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _buffer(s: Any, data: bytes) -> Any:
    buffer = s.BufferT()
    if data:
        buffer.data = np.frombuffer(data, np.uint8)
    return buffer


def _code(s: Any, name: str) -> Any:
    code = s.OperatorCodeT()
    code.builtinCode = getattr(s.BuiltinOperator, name)
    code.deprecatedBuiltinCode = min(code.builtinCode, 127)
    code.version = 1
    return code


def _tensor(s: Any, name: str, shape: list[int], *, kind: str = "FLOAT32", buffer: int = 0) -> Any:
    tensor = s.TensorT()
    tensor.name, tensor.shape, tensor.buffer = name, shape, buffer
    tensor.type = getattr(s.TensorType, kind)
    return tensor


def _operator(
    s: Any, code: int, edges: tuple[list[int], list[int]], kind: str, options: Any = None
) -> Any:
    operator = s.OperatorT()
    operator.opcodeIndex, (operator.inputs, operator.outputs) = code, edges
    operator.builtinOptionsType = getattr(s.BuiltinOptions, kind)
    operator.builtinOptions = options if options is not None else getattr(s, f"{kind}T")()
    return operator
