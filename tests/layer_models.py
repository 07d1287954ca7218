"""ONNX models of one layer and of short chains, with random weights, and running them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper


def model_of(
    nodes: Sequence[NodeProto],
    constants: Mapping[str, np.ndarray],
    *,
    rank: int,
) -> ModelProto:
    """A model of opset 17 from `x`, of that rank and any lengths, to `y`."""
    axes = [f"axis {index}" for index in range(rank)]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, axes)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    held = [numpy_helper.from_array(np.float32(v), name) for name, v in constants.items()]
    graph = helper.make_graph(nodes, "layers", [x], [y], initializer=held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def node(operator: str, inputs: str, output: str, **attributes: Any) -> NodeProto:
    """A node named `to OUTPUT`; `inputs` are separated by blanks."""
    return helper.make_node(operator, inputs.split(), [output], name=f"to {output}", **attributes)


def one_layer(
    operator: str, weight: tuple[int, ...], *, rank: int | None = None, **attributes: Any
) -> ModelProto:
    """`y` of `x`, by a layer without a bias."""
    values = np.random.default_rng(0).standard_normal(weight)
    nodes = [node(operator, "x w", "y", **attributes)]
    return model_of(nodes, {"w": values}, rank=rank or len(weight))


def run(model: ModelProto, feeds: Mapping[str, np.ndarray]) -> np.ndarray:
    """The first output."""
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    settings.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), settings, providers=["CPUExecutionProvider"]
    )
    return np.asarray(session.run(None, dict(feeds))[0])


def constants_of(model: ModelProto) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}


def saved(model: ModelProto, directory: Path) -> Path:
    path = directory / "model.onnx"
    onnx.save_model(model, path)
    return path
