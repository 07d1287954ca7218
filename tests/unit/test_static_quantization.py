"""What static quantization makes of small models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgekit_contract.profile import RuntimeKind
from edgekit_converters.calibration.estimators import Range
from edgekit_converters.quantization.qdq import Activations, Granularity, quantize_static
from edgekit_runtime.session import open_session


def test_bias_that_is_a_row_has_a_scale_for_each_column(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    weights = {
        "w": random.standard_normal((6, 4)).astype(np.float32),
        "b": random.standard_normal((1, 4)).astype(np.float32),
    }
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "w", "b"], ["y"], name="product")],
        "row",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    source, out = tmp_path / "m.onnx", tmp_path / "q.onnx"
    opsets = [helper.make_opsetid("", 13)]
    onnx.save_model(helper.make_model(graph, opset_imports=opsets, ir_version=7), source)
    x = random.uniform(-1, 1, (32, 6)).astype(np.float32)
    want = open_session(RuntimeKind.ONNXRUNTIME, source).run({"x": x})["y"]
    quantize_static(
        source,
        out,
        ranges={"x": Range(-1, 1), "y": Range(float(want.min()), float(want.max()))},
        activations=Activations.S8,
        granularity=Granularity.PER_CHANNEL,
        reduce_range=False,
    )
    got = open_session(RuntimeKind.ONNXRUNTIME, out).run({"x": x})["y"]
    assert np.abs(got - want).max() < 0.05 * np.ptp(want)
