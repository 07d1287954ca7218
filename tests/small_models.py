"""Small ONNX models of every kind that has broken a quantizer, made on the spot."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper


def _weight(name: str, *shape: int) -> TensorProto:
    values = np.random.default_rng(len(name)).standard_normal(shape) / np.sqrt(shape[-1])
    return numpy_helper.from_array(values.astype(np.float32), name)


def _float(name: str, *shape: int | str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape))


def _model(
    nodes: Sequence[NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    weights: Sequence[TensorProto] = (),
    *,
    opset: int = 17,
) -> ModelProto:
    graph = helper.make_graph(nodes, "small", inputs, outputs, initializer=weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def constant_nodes() -> ModelProto:
    """Weights held in Constant nodes, of opset 9."""
    return _model(
        [
            helper.make_node("Constant", [], ["w"], value=_weight("w", 6, 3, 3, 3)),
            helper.make_node("Constant", [], ["b"], value=_weight("b", 6)),
            helper.make_node("Conv", ["x", "w", "b"], ["c"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["c"], ["r"]),
            helper.make_node("GlobalAveragePool", ["r"], ["p"]),
            helper.make_node("Flatten", ["p"], ["f"]),
            helper.make_node("Constant", [], ["v"], value=_weight("v", 6, 4)),
            helper.make_node("MatMul", ["f", "v"], ["y"]),
        ],
        [_float("x", "batch", 3, 8, 8)],
        [_float("y", "batch", 4)],
        opset=9,
    )


def several_outputs() -> ModelProto:
    """MatMul and Gemm, three outputs, of which one is an integer."""
    return _model(
        [
            helper.make_node("MatMul", ["x", "w"], ["h"]),
            helper.make_node("Relu", ["h"], ["hidden"]),
            helper.make_node("Gemm", ["hidden", "v", "b"], ["scores"], transB=1, alpha=1.0),
            helper.make_node("ArgMax", ["scores"], ["class"], axis=1, keepdims=0),
        ],
        [_float("x", "batch", 16)],
        [
            _float("scores", "batch", 5),
            _float("hidden", "batch", 12),
            helper.make_tensor_value_info("class", TensorProto.INT64, ["batch"]),
        ],
        [_weight("w", 16, 12), _weight("v", 5, 12), _weight("b", 5)],
    )


def lstm() -> ModelProto:
    return _model(
        [
            helper.make_node("LSTM", ["x", "w", "r", "b"], ["s", "h", ""], hidden_size=8),
            helper.make_node("Squeeze", ["h", "zero"], ["flat"]),
            helper.make_node("MatMul", ["flat", "v"], ["y"]),
        ],
        [_float("x", 5, 1, 6)],
        [_float("y", 1, 3)],
        [
            _weight("w", 1, 32, 6),
            _weight("r", 1, 32, 8),
            _weight("b", 1, 64),
            numpy_helper.from_array(np.array([0], np.int64), "zero"),
            _weight("v", 8, 3),
        ],
    )


def gru() -> ModelProto:
    return _model(
        [helper.make_node("GRU", ["x", "w", "r"], ["y", ""], hidden_size=8)],
        [_float("x", 5, 1, 6)],
        [_float("y", 5, 1, 1, 8)],
        [_weight("w", 1, 24, 6), _weight("r", 1, 24, 8)],
    )


def regression() -> ModelProto:
    """One number out."""
    return _model(
        [
            helper.make_node("Gemm", ["x", "w", "b"], ["h"]),
            helper.make_node("Tanh", ["h"], ["t"]),
            helper.make_node("Gemm", ["t", "v"], ["y"]),
        ],
        [_float("x", "batch", 10)],
        [_float("y", "batch", 1)],
        [_weight("w", 10, 8), _weight("b", 8), _weight("v", 8, 1)],
    )


def branches() -> ModelProto:
    """If: weights in Constant nodes of both branches, under the same names."""

    def branch(scale: float) -> GraphProto:
        weight = numpy_helper.to_array(_weight("w", 6, 4)) * scale
        return helper.make_graph(
            [
                helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(weight)),
                helper.make_node("MatMul", ["x", "w"], [f"out{scale:.0f}"]),
            ],
            f"branch{scale:.0f}",
            [],
            [_float(f"out{scale:.0f}", "batch", 4)],
        )

    return _model(
        [
            helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
            helper.make_node("Greater", ["sum", "zero"], ["positive"]),
            helper.make_node(
                "If", ["positive"], ["y"], then_branch=branch(1.0), else_branch=branch(2.0)
            ),
        ],
        [_float("x", "batch", 6)],
        [_float("y", "batch", 4)],
        [numpy_helper.from_array(np.array(0, np.float32), "zero")],
    )


def dynamic_axes() -> ModelProto:
    """Convolution over a sequence of any length."""
    return _model(
        [
            helper.make_node("Conv", ["x", "w", "b"], ["c"], pads=[1, 1]),
            helper.make_node("Clip", ["c", "low", "high"], ["r"]),
            helper.make_node("ReduceMean", ["r"], ["m"], axes=[2], keepdims=0),
            helper.make_node("Gemm", ["m", "v"], ["y"]),
        ],
        [_float("x", "batch", 4, "length")],
        [_float("y", "batch", 3)],
        [
            _weight("w", 8, 4, 3),
            _weight("b", 8),
            numpy_helper.from_array(np.array(0, np.float32), "low"),
            numpy_helper.from_array(np.array(6, np.float32), "high"),
            _weight("v", 8, 3),
        ],
    )


def shared_weights() -> ModelProto:
    """One weight and one bias used twice, and a tensor named as a copy of the bias would be."""
    return _model(
        [
            helper.make_node("Gemm", ["x", "w", "b"], ["h"]),
            helper.make_node("Relu", ["h"], ["b1"]),
            helper.make_node("Gemm", ["b1", "w", "b"], ["b2"]),
            helper.make_node("Gemm", ["b2", "w", "b"], ["y"]),
        ],
        [_float("x", "batch", 9)],
        [_float("y", "batch", 9)],
        [_weight("w", 9, 9), _weight("b", 9)],
    )


def integer_inputs() -> ModelProto:
    """Token numbers into an embedding that the output layer shares, transposed."""
    return _model(
        [
            helper.make_node("Gather", ["table", "ids"], ["e"]),
            helper.make_node("ReduceMean", ["e"], ["m"], axes=[1], keepdims=0),
            helper.make_node("Gemm", ["m", "table"], ["l"], transB=1),
            helper.make_node("Softmax", ["l"], ["y"], axis=-1),
        ],
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "length"])],
        [_float("y", "batch", 20)],
        [_weight("table", 20, 16)],
    )


def depthwise_residual() -> ModelProto:
    """Depthwise convolution with a residual sum, and a transposed convolution."""
    return _model(
        [
            helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1], group=4),
            helper.make_node("Add", ["c", "x"], ["a"]),
            helper.make_node("ConvTranspose", ["a", "t"], ["y"], strides=[2, 2]),
        ],
        [_float("x", 1, 4, 8, 8)],
        [_float("y", 1, 2, 16, 16)],
        [_weight("w", 4, 1, 3, 3), _weight("t", 4, 2, 2, 2)],
    )


def classical() -> ModelProto:
    """No weight anywhere: a scaler and an activation."""
    return _model(
        [
            helper.make_node("Sub", ["x", "mean"], ["d"]),
            helper.make_node("Sigmoid", ["d"], ["y"]),
        ],
        [_float("x", "batch", 4)],
        [_float("y", "batch", 4)],
        [_weight("mean", 4)],
    )


SMALL_MODELS: Mapping[str, Callable[[], ModelProto]] = {
    made.__name__: made
    for made in (
        constant_nodes,
        several_outputs,
        lstm,
        gru,
        regression,
        branches,
        dynamic_axes,
        shared_weights,
        integer_inputs,
        depthwise_residual,
        classical,
    )
}


def write_small(name: str, directory: Path) -> Path:
    """The file of a small model, checked by ONNX itself."""
    model = SMALL_MODELS[name]()
    onnx.checker.check_model(model)
    path = directory / f"{name}.onnx"
    onnx.save_model(model, path)
    return path


def write_data(path: Path, rows: int, **shapes: tuple[int, ...]) -> Path:
    """An .npz of standard normal float32 arrays with `rows` rows."""
    random = np.random.default_rng(rows)
    arrays = {n: random.standard_normal((rows, *s)).astype(np.float32) for n, s in shapes.items()}
    with path.open("wb") as stream:
        np.savez(stream, **arrays)
    return path
