"""Weights stored in fewer bits, and what the runtime computes with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit_contract.errors import Refused
from edgekit_contract.profile import RuntimeKind
from edgekit_converters import graph
from edgekit_converters.conditioning.moments import Moments
from edgekit_converters.quantization.weight_only import Products, halve_weights, narrow_weights
from edgekit_runtime.session import Optimization, SessionOptions, open_session


def weight(name: str, *shape: int) -> TensorProto:
    values = np.random.default_rng(len(name) + shape[0]).standard_normal(shape) / 8
    return numpy_helper.from_array(values.astype(np.float32), name)


def written(directory: Path, name: str, nodes, inputs, *outputs_and_weights) -> Path:
    output, weights = outputs_and_weights
    inner = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info(n, kind, shape) for n, kind, shape in inputs],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, output)],
        weights,
    )
    model = helper.make_model(inner, opset_imports=[helper.make_opsetid("", 13)], ir_version=7)
    onnx.checker.check_model(model)
    onnx.save_model(model, directory / f"{name}.onnx")
    return directory / f"{name}.onnx"


def convolutions(directory: Path) -> Path:
    make = helper.make_node
    return written(
        directory,
        "convolutions",
        [
            make("Conv", ["x", "w", "b"], ["c"], name="conv", pads=[1, 1, 1, 1]),
            make("Relu", ["c"], ["r"], name="relu"),
            make("Conv", ["r", "d"], ["e"], name="depthwise", group=96, pads=[1, 1, 1, 1]),
            make("ConvTranspose", ["e", "t"], ["u"], name="up", strides=[2, 2]),
            make("GlobalAveragePool", ["u"], ["p"], name="pool"),
            make("Flatten", ["p"], ["f"], name="flat"),
            make("Gemm", ["f", "g"], ["y"], name="last", alpha=0.5),
        ],
        [("x", TensorProto.FLOAT, [1, 8, 10, 10])],
        [1, 80],
        [
            weight("w", 96, 8, 3, 3),
            weight("b", 96),
            weight("d", 96, 1, 3, 3),
            weight("t", 96, 64, 2, 2),
            weight("g", 64, 80),
        ],
    )


def recurrent(directory: Path, operator: str) -> Path:
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[operator]
    return written(
        directory,
        operator,
        [helper.make_node(operator, ["x", "w", "r"], ["y", ""], name="cell", hidden_size=48)],
        [("x", TensorProto.FLOAT, [6, 1, 40])],
        [6, 1, 1, 48],
        [weight("w", 1, 48 * gates, 40), weight("r", 1, 48 * gates, 48)],
    )


def words(directory: Path) -> Path:
    """A table that is an output layer, too, and a weight with a row count no block divides."""
    make = helper.make_node
    return written(
        directory,
        "words",
        [
            make("Gather", ["table", "ids"], ["e"], name="rows"),
            make("ReduceMean", ["e"], ["m"], name="mean", axes=[1], keepdims=0),
            make("MatMul", ["m", "w"], ["h"], name="first"),
            make("Gemm", ["h", "v", "b"], ["l"], name="second", transB=1, beta=0.5),
            make("Gemm", ["l", "table"], ["y"], name="tied", transB=1),
        ],
        [("ids", TensorProto.INT64, ["batch", "length"])],
        ["batch", 300],
        [weight("table", 300, 96), weight("w", 96, 72), weight("v", 96, 72), weight("b", 96)],
    )


def narrowed(path: Path, products: Products | None = None, **changes) -> Path:
    out = path.with_suffix(".narrow.onnx")
    narrow_weights(path, out, products=products, **changes)
    return out


def outputs(path: Path, optimization: Optimization = Optimization.ALL) -> np.ndarray:
    session = open_session(
        RuntimeKind.ONNXRUNTIME, path, SessionOptions(threads=1, optimization=optimization)
    )
    random, feeds = np.random.default_rng(4), {}
    for spec in session.inputs:
        shape = [axis if isinstance(axis, int) else 7 for axis in spec.shape]
        is_float = spec.dtype == "float32"
        values = random.standard_normal(shape) if is_float else random.integers(0, 300, shape)
        feeds[spec.name] = values.astype(spec.dtype)
    return session.run(feeds)["y"]


def error(path: Path, out: Path) -> float:
    """Root mean square, as a part of the outputs'."""
    want = outputs(path)
    return float(np.sqrt(np.mean((outputs(out) - want) ** 2) / np.mean(want**2)))


@pytest.mark.parametrize("make", [convolutions, words])
def test_stored_weights_take_a_quarter_and_change_little(make, tmp_path: Path) -> None:
    path = make(tmp_path)
    out = narrowed(path)
    assert out.stat().st_size < 0.45 * path.stat().st_size
    assert error(path, out) < 0.01
    assert np.allclose(outputs(out), outputs(out, Optimization.NONE), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("operator", ["LSTM", "GRU", "RNN"])
def test_recurrent_weights_are_stored_narrow(operator: str, tmp_path: Path) -> None:
    path = recurrent(tmp_path, operator)
    out = narrowed(path)
    assert out.stat().st_size < 0.4 * path.stat().st_size
    assert error(path, out) < 0.02


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("integer", [True, False])
def test_products_in_blocks_are_near(
    bits: int, symmetric: bool, integer: bool, tmp_path: Path
) -> None:
    path = words(tmp_path)
    out = narrowed(path, Products(bits=bits, block=32, symmetric=symmetric, integer=integer))
    counted = graph.operators(onnx.load_model(out))
    assert counted["com.microsoft:MatMulNBits"] == 3
    assert not {"MatMul", "Gemm"} & set(counted)
    assert error(path, out) < {4: 0.2, 8: 0.015}[bits]


def test_rounding_by_moments_changes_outputs_less(tmp_path: Path) -> None:
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="only")
    inputs = [("x", TensorProto.FLOAT, ["rows", 64])]
    path = written(tmp_path, "one", [node], inputs, ["rows", 80], [weight("w", 64, 80)])
    random = np.random.default_rng(0)
    rows = random.standard_normal((400, 64)) @ random.standard_normal((64, 64))
    seen = Moments(gram=(rows.T @ rows / 400)[None], mean=rows.mean(0)[None], rows=400)

    def run(model: Path) -> np.ndarray:
        return open_session(RuntimeKind.ONNXRUNTIME, model).run({"x": rows.astype("f4")})["y"]

    def loss(moments: dict[str, Moments], products: Products | None) -> float:
        return float(np.mean((run(narrowed(path, products, moments=moments)) - run(path)) ** 2))

    for products in (Products(bits=4, block=32), None):
        assert loss({"only": seen}, products) < 0.9 * loss({}, products)


def test_spared_node_stays_float32_or_keeps_8_bits(tmp_path: Path) -> None:
    path = words(tmp_path)
    spared = frozenset({"first"})
    kept = onnx.load_model(narrowed(path, spared=spared))
    first = next(n for n in kept.graph.node if n.name == "first")
    assert first.input[1] == "w"
    mixed = onnx.load_model(narrowed(path, Products(bits=4, block=32), spared=spared))
    counted = graph.operators(mixed)
    assert (counted["MatMul"], counted["com.microsoft:MatMulNBits"]) == (1, 2)
    assert any(
        t.data_type == TensorProto.INT8 and t.dims == [96, 72] for t in mixed.graph.initializer
    )


@pytest.mark.parametrize("make", [convolutions, words])
def test_float16_halves_the_file_and_changes_nothing_visible(make, tmp_path: Path) -> None:
    path = make(tmp_path)
    out = tmp_path / "half.onnx"
    halve_weights(path, out)
    assert out.stat().st_size < 0.58 * path.stat().st_size
    assert error(path, out) < 1e-3
    assert outputs(out).dtype == np.float32


def test_values_that_float16_does_not_hold_stay(tmp_path: Path) -> None:
    path = words(tmp_path)
    model = onnx.load_model(path)
    for tensor in model.graph.initializer:
        if tensor.name in ("w", "v"):
            factor = {"w": 1e9, "v": 1e-9}[tensor.name]
            scaled = (numpy_helper.to_array(tensor) * factor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(scaled, tensor.name))
    onnx.save_model(model, path)
    halve_weights(path, tmp_path / "half.onnx")
    kept = graph.initializers(onnx.load_model(tmp_path / "half.onnx").graph)
    assert {"w", "v"} <= set(kept) and "table" not in kept
    assert error(path, tmp_path / "half.onnx") < 1e-3


def test_model_without_large_weights_is_refused(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "tiny",
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="only")],
        [("x", TensorProto.FLOAT, [1, 4])],
        [1, 4],
        [weight("w", 4, 4)],
    )
    with pytest.raises(Refused, match="worth"):
        narrowed(path)
    with pytest.raises(Refused, match="worth"):
        halve_weights(path, tmp_path / "half.onnx")
