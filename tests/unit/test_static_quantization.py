"""What static quantization makes of small models."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from edgekit_contract.profile import RuntimeKind
from edgekit_converters.calibration.estimators import Range
from edgekit_converters.conditioning.grid import REDUCED_LEVELS, Grid
from edgekit_converters.quantization.qdq import Activations, Granularity, quantize_static
from edgekit_runtime.session import open_session

RANDOM = np.random.default_rng(0)
WEIGHTS = {
    "w": RANDOM.standard_normal((6, 16)).astype(np.float32) * np.logspace(-1, 1, 16, dtype="f"),
    "v": RANDOM.standard_normal((16, 4)).astype(np.float32),
    "row": RANDOM.standard_normal((1, 4)).astype(np.float32),
    "bias": RANDOM.standard_normal(4).astype(np.float32),
}
X = RANDOM.uniform(-1, 1, (32, 6)).astype(np.float32)


def quantized(
    nodes: list[NodeProto],
    directory: Path,
    *,
    granularity: Granularity = Granularity.PER_CHANNEL,
    reduce_range: bool = False,
) -> tuple[ModelProto, Path]:
    """The float model, and the file of the quantized one, with ranges as they are."""
    made = [name for node in nodes for name in node.output]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 6])],
        [helper.make_tensor_value_info(made[-1], TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in WEIGHTS.items()],
    )
    source, out = directory / "m.onnx", directory / "q.onnx"
    opsets = [helper.make_opsetid("", 13)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=7)
    onnx.save_model(model, source)
    watched = ModelProto()
    watched.CopyFrom(model)
    for name in made[:-1]:
        watched.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    onnx.save_model(watched, directory / "watched.onnx")
    seen = open_session(RuntimeKind.ONNXRUNTIME, directory / "watched.onnx").run({"x": X})
    quantize_static(
        source,
        out,
        ranges={
            name: Range(min(0.0, float(v.min())), max(0.0, float(v.max())))
            for name, v in {**seen, "x": X}.items()
        },
        activations=Activations.U8,
        granularity=granularity,
        reduce_range=reduce_range,
    )
    return model, out


def operators_in_the_runtime(path: Path, directory: Path) -> Counter[str]:
    """Of the model as onnxruntime runs it."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(directory / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    optimized = onnx.load_model(directory / "optimized.onnx")
    return Counter(node.op_type for node in optimized.graph.node)


def error(path: Path, other: Path) -> float:
    """Of outputs, as a part of their range."""
    got, want = (next(iter(open_session(RuntimeKind.ONNXRUNTIME, p).run({"x": X}).values()))
                 for p in (path, other))  # fmt: skip
    return float(np.abs(got - want).max() / np.ptp(want))


def test_bias_that_is_a_row_has_a_scale_for_each_column(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="first"),
        helper.make_node("Gemm", ["h", "v", "row"], ["y"], name="second"),
    ]
    _, out = quantized(nodes, tmp_path)
    assert error(out, tmp_path / "m.onnx") < 0.05


@pytest.mark.parametrize(
    ("last", "integer"), [("Gemm", "QGemm"), ("MatMul", "MatMulIntegerToFloat")]
)
def test_result_that_only_floats_read_is_not_rounded(
    last: str, integer: str, tmp_path: Path
) -> None:
    nodes = [
        helper.make_node("Gemm", ["x", "w"], ["h"], name="first"),
        helper.make_node("Relu", ["h"], ["r"], name="relu"),
        helper.make_node(
            last, ["r", "v", "bias"] if last == "Gemm" else ["r", "v"], ["p"], name="second"
        ),
        helper.make_node("Softmax", ["p"], ["y"], name="softmax"),
    ]
    _, out = quantized(nodes, tmp_path)
    rounded = [n for n in onnx.load_model(out).graph.node if n.op_type == "QuantizeLinear"]
    assert len(rounded) == 2  # the input, and what the second product reads
    found = operators_in_the_runtime(out, tmp_path)
    assert found[integer] and not found["MatMul"] and not found["Gemm"]


def test_result_that_integers_read_too_stays_rounded(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="first"),
        helper.make_node("MatMul", ["h", "v"], ["p"], name="second"),
        helper.make_node("ReduceMax", ["h"], ["m"], name="greatest", axes=[1]),
        helper.make_node("Add", ["p", "m"], ["y"], name="sum"),
    ]
    _, out = quantized(nodes, tmp_path)
    rounded = [n for n in onnx.load_model(out).graph.node if n.op_type == "QuantizeLinear"]
    assert len(rounded) == 2
    assert error(out, tmp_path / "m.onnx") < 0.05


@pytest.mark.parametrize("granularity", list(Granularity), ids=lambda g: g.value)
@pytest.mark.parametrize("reduce_range", [False, True], ids=["full", "reduced"])
def test_weights_are_stored_as_integers_on_the_grid(
    granularity: Granularity, reduce_range: bool, tmp_path: Path
) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="first"),
        helper.make_node("Gemm", ["h", "v", "bias"], ["y"], name="second"),
    ]
    _, out = quantized(nodes, tmp_path, granularity=granularity, reduce_range=reduce_range)
    made = onnx.load_model(out)
    held = {t.name: numpy_helper.to_array(t) for t in made.graph.initializer}
    assert not {"w", "v"} & held.keys()
    grid = Grid(
        per_channel=granularity is Granularity.PER_CHANNEL,
        **({"levels": REDUCED_LEVELS} if reduce_range else {}),
    )
    for name in ("w", "v"):
        codes = held[f"{name}_quantized"]
        assert codes.dtype == np.int8
        reader = next(n for n in made.graph.node if n.input[0] == f"{name}_quantized")
        got = (codes.astype(np.float64) - held[reader.input[2]]) * held[reader.input[1]]
        np.testing.assert_allclose(got, grid.nearest(WEIGHTS[name].T[None])[0].T, rtol=1e-6)
