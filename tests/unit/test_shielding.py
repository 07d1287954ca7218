"""The runtime computes with the weights that a recipe made, at every level of its optimizations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit_contract.profile import RuntimeKind
from edgekit_converters.calibration.estimators import Estimator, Range, estimate
from edgekit_converters.calibration.observer import observe
from edgekit_converters.quantization.int16 import quantize_16x8
from edgekit_converters.quantization.selection import select_static
from edgekit_runtime.session import Optimization, SessionOptions, Tensors, open_session

DIGITS = Path(__file__).parents[2] / "examples/digits"
SAMPLES = 24


def outputs(path: Path, feeds: list[Tensors], optimization: Optimization) -> np.ndarray:
    session = open_session(RuntimeKind.ONNXRUNTIME, path, SessionOptions(optimization=optimization))
    found = [next(iter(session.run(one).values())) for one in feeds]
    session.close()
    return np.concatenate(found)


def closeness_db(want: np.ndarray, got: np.ndarray) -> float:
    noise = np.square(got - want).sum()
    return float(10 * np.log10(np.square(want).sum() / max(float(noise), 1e-30)))


def found_ranges(path: Path, feeds: list[Tensors], scratch: Path) -> dict[str, Range]:
    tensors = select_static(onnx.load_model(path)).observed
    seen = observe(path, tensors, feeds, threads=1, scratch=scratch)
    found = {name: estimate(values, Estimator.MINMAX) for name, values in seen.items()}
    return {name: one for name, one in found.items() if one is not None}


@pytest.mark.parametrize("optimization", Optimization)
def test_16_bit_activations_leave_8_bit_weights_as_they_were_stored(
    tmp_path: Path, optimization: Optimization
) -> None:
    path, out = DIGITS / "digits.onnx", tmp_path / "wide.onnx"
    with np.load(DIGITS / "calibration.npz") as data:
        feeds = [{"image": image[None]} for image in data["image"][:SAMPLES]]
    quantize_16x8(path, out, ranges=found_ranges(path, feeds, tmp_path))
    want = outputs(path, feeds, Optimization.NONE)
    assert closeness_db(want, outputs(out, feeds, optimization)) > 35


def chain(directory: Path) -> Path:
    """Convolutions, the first of one channel, and products, the first with an addend."""

    def weight(name: str, *shape: int) -> TensorProto:
        # rows of very different size: one scale for all of them is coarse
        values = np.random.default_rng(len(name)).standard_normal(shape)
        values *= np.logspace(-2, 0, shape[0]).reshape(-1, *[1] * (len(shape) - 1))
        return numpy_helper.from_array(values.astype(np.float32), name)

    nodes = [
        helper.make_node("Conv", ["x", "first"], ["a"], name="first", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "other"], ["c"], name="other", pads=[1, 1, 1, 1], group=64),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("Conv", ["d", "third"], ["e"], name="third"),
        helper.make_node("GlobalAveragePool", ["e"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "wide"], ["m"], name="product"),
        helper.make_node("Add", ["m", "addend"], ["n"]),
        helper.make_node("Relu", ["n"], ["r"]),
        helper.make_node("MatMul", ["r", "narrow"], ["y"], name="last"),
    ]
    for node in nodes:
        node.name = node.name or f"makes {node.output[0]}"
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 24])],
        [
            weight("first", 64, 1, 3, 3),
            weight("other", 64, 1, 3, 3),
            weight("third", 64, 64, 1, 1),
            weight("wide", 64, 96),
            weight("narrow", 96, 24),
            weight("addend", 96),
        ],
    )
    path = directory / "chain.onnx"
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save_model(model, path)
    return path


def chain_feeds() -> list[Tensors]:
    random = np.random.default_rng(0)
    return [{"x": random.standard_normal((1, 1, 8, 8), np.float32)} for _ in range(SAMPLES)]


def test_one_channel_and_a_product_with_an_addend_are_shielded_from_the_optimizer(
    tmp_path: Path,
) -> None:
    path, out, feeds = chain(tmp_path), tmp_path / "wide.onnx", chain_feeds()
    quantize_16x8(path, out, ranges=found_ranges(path, feeds, tmp_path))
    plain, optimized = (outputs(out, feeds, o) for o in (Optimization.NONE, Optimization.ALL))
    assert closeness_db(plain, optimized) > 80
