"""Conditioned models: computed once, and whole again where a layer is spared."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit_contract.profile import RuntimeKind
from edgekit_converters.conditioning.conditioned import condition
from edgekit_converters.conditioning.grid import Grid
from edgekit_converters.conditioning.moments import collect_moments, write_moments
from edgekit_runtime.session import open_session

NAMES = ("conv", "plain conv", "product", "gemm")


def weight(name: str, *shape: int) -> TensorProto:
    values = np.random.default_rng(len(name)).standard_normal(shape) / np.sqrt(shape[-1])
    return numpy_helper.from_array(values.astype(np.float32), name)


def layered(path: Path) -> Path:
    """With a bias, without one, with an Add for one, and with one that two layers share."""
    nodes = [
        helper.make_node("Conv", ["x", "conv/w", "conv/b"], ["c"], name="conv"),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Conv", ["r", "plain/w"], ["d"], name="plain conv"),
        helper.make_node("GlobalAveragePool", ["d"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "product/w"], ["m"], name="product"),
        helper.make_node("Add", ["shared/b", "m"], ["a"]),
        helper.make_node("Gemm", ["a", "gemm/w", "shared/b"], ["y"], name="gemm"),
    ]
    weights = [
        weight("conv/w", 6, 3, 3, 3), weight("conv/b", 6), weight("plain/w", 5, 6, 1, 1),
        weight("product/w", 5, 4), weight("gemm/w", 4, 4), weight("shared/b", 4),
    ]  # fmt: skip
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "layers",
        [info("x", TensorProto.FLOAT, [1, 3, 8, 8])],
        [info("y", TensorProto.FLOAT, [1, 4])],
        weights,
    )
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


def samples(count: int) -> list[dict[str, np.ndarray]]:
    random = np.random.default_rng(3)
    return [{"x": random.standard_normal((1, 3, 8, 8)).astype(np.float32)} for _ in range(count)]


@pytest.mark.parametrize(
    ("reconstructed", "corrected"), [(True, True), (True, False), (False, True)]
)
def test_model_with_every_layer_spared_is_the_one_that_was_given(
    tmp_path: Path, reconstructed: bool, corrected: bool
) -> None:
    path = layered(tmp_path / "m.onnx")
    moments = tmp_path / "moments.npz"
    write_moments(moments, collect_moments(path, NAMES, samples(8), threads=1, scratch=tmp_path))
    model = onnx.load(path)

    def conditioned(*spared: str) -> np.ndarray:
        found = condition(
            model,
            moments,
            grid=Grid(per_channel=False),
            reconstructed=reconstructed,
            corrected=corrected,
            spared=spared,
        )
        out = tmp_path / "c.onnx"
        onnx.save(found, out)
        return open_session(RuntimeKind.ONNXRUNTIME, out).run(samples(1)[0])["y"]

    given = open_session(RuntimeKind.ONNXRUNTIME, path).run(samples(1)[0])["y"]
    assert not np.array_equal(conditioned(), given)
    assert np.array_equal(conditioned(*NAMES), given)
    # computed once: the second call finds the file
    assert len(list(tmp_path.glob("moments-*.onnx"))) == 1
