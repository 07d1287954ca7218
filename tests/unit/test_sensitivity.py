"""Sensitivity: the noise of each node by itself, and nodes that are left out for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit_contract.profile import RuntimeKind
from edgekit_converters.calibration.estimators import Range
from edgekit_converters.quantization.qdq import Activations, Granularity, quantize_static
from edgekit_converters.quantization.selection import select_static
from edgekit_converters.quantization.sensitivity import NodeNoise, measure_noise
from edgekit_converters.recipes import find_recipe
from edgekit_converters.recipes.recipe import Ingredients
from edgekit_converters.recipes.tuning import Tuning
from edgekit_runtime.session import Optimization, SessionOptions, open_session

CHANNELS = 8


def two_convolutions(path: Path) -> Path:
    """`even` has channels of one magnitude; those of `uneven` span four powers of ten."""
    random = np.random.default_rng(0)
    shape = (CHANNELS, CHANNELS, 3, 3)
    even = random.choice([-1.0, 1.0], shape) / 8
    uneven = random.standard_normal(shape) * np.logspace(0, -4, CHANNELS)[:, None, None, None]
    biases = np.zeros(CHANNELS)
    pads = [1, 1, 1, 1]
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "even/w", "b"], ["h"], name="even", pads=pads),
            helper.make_node("Relu", ["h"], ["r"], name="relu"),
            helper.make_node("Conv", ["r", "uneven/w", "b"], ["g"], name="uneven", pads=pads),
            helper.make_node("Relu", ["g"], ["y"], name="last"),
        ],
        "two",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, CHANNELS, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, CHANNELS, 8, 8])],
        [
            numpy_helper.from_array(np.float32(even), "even/w"),
            numpy_helper.from_array(np.float32(uneven), "uneven/w"),
            numpy_helper.from_array(np.float32(biases), "b"),
        ],
    )
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


def samples(count: int) -> list[dict[str, np.ndarray]]:
    random = np.random.default_rng(1)
    shape = (1, CHANNELS, 8, 8)
    return [{"x": random.standard_normal(shape).astype(np.float32)} for _ in range(count)]


def ranges_of(model: Path) -> dict[str, Range]:
    proto = onnx.load(model)
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in ("h", "r", "g"))
    path = model.with_name("all.onnx")
    onnx.save(proto, path)
    session = open_session(RuntimeKind.ONNXRUNTIME, path)
    found: dict[str, Range] = {}
    for feeds in samples(8):
        for name, array in {**feeds, **session.run(feeds)}.items():
            before = found.get(name, Range(0.0, 0.0))
            found[name] = Range(
                min(before.low, float(array.min())), max(before.high, float(array.max()))
            )
    return found


def noise(model: Path, tmp_path: Path, *, per_channel: bool) -> dict[str, NodeNoise]:
    found = measure_noise(
        model,
        select_static(onnx.load(model)),
        ranges_of(model),
        samples(4),
        per_channel=per_channel,
        threads=1,
        scratch=tmp_path,
    )
    assert list(found) == sorted(found, key=lambda n: -n.noise_db)
    return {n.node: n for n in found}


def test_uneven_channels_are_noisy_with_one_scale_and_quiet_with_a_scale_each(
    tmp_path: Path,
) -> None:
    model = two_convolutions(tmp_path / "m.onnx")
    before = model.read_bytes()
    shared = noise(model, tmp_path, per_channel=False)
    own = noise(model, tmp_path, per_channel=True)
    assert set(shared) == {"even", "uneven"}
    # weights of one magnitude have no rounding error: what is left is that of activations
    assert abs(shared["even"].noise_db - own["even"].noise_db) < 0.5
    assert shared["uneven"].noise_db > own["uneven"].noise_db
    assert all(-80 < found.noise_db < -20 for found in own.values())
    assert own["even"].parameters == CHANNELS * CHANNELS * 9
    assert model.read_bytes() == before


def test_measured_noise_is_that_of_the_quantized_node(tmp_path: Path) -> None:
    """The last node alone quantized, in onnxruntime, has the noise that was foretold."""
    model = two_convolutions(tmp_path / "m.onnx")
    out = tmp_path / "q.onnx"
    quantize_static(
        model,
        out,
        ranges=ranges_of(model),
        activations=Activations.U8,
        granularity=Granularity.PER_CHANNEL,
        reduce_range=False,
        tuning=Tuning(spared=("even",)),
    )
    options = SessionOptions(optimization=Optimization.NONE)
    floats = open_session(RuntimeKind.ONNXRUNTIME, model)
    integers = open_session(RuntimeKind.ONNXRUNTIME, out, options)
    error = power = 0.0
    for feeds in samples(4):
        want, got = floats.run(feeds)["y"], integers.run(feeds)["y"]
        error, power = error + float(((got - want) ** 2).sum()), power + float((want**2).sum())
    told = noise(model, tmp_path, per_channel=True)["uneven"].noise_db
    assert 10 * np.log10(error / power) == pytest.approx(told, abs=1.0)


@pytest.mark.parametrize("spared", ["even", "uneven"])
def test_spared_node_keeps_its_float_weights_through_the_optimizer(
    tmp_path: Path, spared: str
) -> None:
    """onnxruntime would round them to 8 bits, one scale for all, since what they read is in 8."""
    model, out = two_convolutions(tmp_path / "m.onnx"), tmp_path / "q.onnx"
    quantize_static(
        model,
        out,
        ranges=ranges_of(model),
        activations=Activations.U8,
        granularity=Granularity.PER_CHANNEL,
        reduce_range=False,
        tuning=Tuning(spared=(spared,)),
    )
    feeds = samples(1)[0]
    want, got = (
        open_session(RuntimeKind.ONNXRUNTIME, out, SessionOptions(optimization=level)).run(feeds)
        for level in (Optimization.NONE, Optimization.ALL)
    )
    step = float(want["y"].max()) / 255
    assert np.abs(want["y"] - got["y"]).max() <= 1.01 * step
    weights = {t.name: t.data_type for t in onnx.load(out).graph.initializer}
    assert weights[f"{spared}/w"] == TensorProto.FLOAT
    other = "uneven" if spared == "even" else "even"
    assert weights[f"{other}/w_quantized"] == TensorProto.INT8


def test_without_ranges_nodes_are_ranked_by_their_weights_alone(tmp_path: Path) -> None:
    model = two_convolutions(tmp_path / "m.onnx")
    selection = select_static(onnx.load(model))
    found = measure_noise(
        model, selection, {}, samples(1), per_channel=True, threads=1, scratch=tmp_path
    )
    whole = noise(model, tmp_path, per_channel=True)
    assert {n.node for n in found} == {"even", "uneven"}
    assert all(n.noise_db < whole[n.node].noise_db for n in found)


def recurrent(path: Path) -> Path:
    """A table, a recurrent layer, and a product in either branch of an If."""
    random = np.random.default_rng(5)

    def weight(name: str, *shape: int) -> TensorProto:
        return numpy_helper.from_array(random.standard_normal(shape).astype(np.float32) / 4, name)

    def branch(name: str) -> onnx.GraphProto:
        return helper.make_graph(
            [helper.make_node("MatMul", ["last", f"w {name}"], [f"y {name}"], name=name)],
            name,
            [],
            [helper.make_tensor_value_info(f"y {name}", TensorProto.FLOAT, None)],
            [weight(f"w {name}", 24, 24)],
        )

    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["table", "ids"], ["rows"], name="rows"),
            helper.make_node("LSTM", ["rows", "w", "r"], ["", "h"], name="lstm", hidden_size=24),
            helper.make_node("Squeeze", ["h", "first"], ["last"], name="squeeze"),
            helper.make_node("ReduceSum", ["last"], ["sum"], name="sum", keepdims=0),
            helper.make_node("Greater", ["sum", "zero"], ["positive"], name="positive"),
            helper.make_node(
                "If", ["positive"], ["y"], name="if",
                then_branch=branch("then"), else_branch=branch("else"),
            ),
        ],
        "recurrent",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, [5, 1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [
            weight("table", 40, 32),
            weight("w", 1, 96, 32),
            weight("r", 1, 96, 24),
            numpy_helper.from_array(np.array([0], np.int64), "first"),
            numpy_helper.from_array(np.array(0, np.float32), "zero"),
        ],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


def test_tables_recurrent_layers_and_nodes_of_subgraphs_are_ranked(tmp_path: Path) -> None:
    model = recurrent(tmp_path / "m.onnx")
    random = np.random.default_rng(6)
    feeds = [{"ids": random.integers(0, 40, (5, 1))} for _ in range(8)]
    found = measure_noise(
        model, select_static(onnx.load(model)), {}, feeds, per_channel=True, threads=1,
        scratch=tmp_path,
    )  # fmt: skip
    assert {n.node for n in found} == {"rows", "lstm", "then", "else"}
    assert all(-70 < n.noise_db < -20 for n in found)


def test_told_noise_of_a_stored_layer_is_that_of_the_variant(tmp_path: Path) -> None:
    """With all others spared, 8-bit weights of the recurrent layer do what was foretold."""
    model, out = recurrent(tmp_path / "m.onnx"), tmp_path / "q.onnx"
    random = np.random.default_rng(6)
    feeds = [{"ids": random.integers(0, 40, (5, 1))} for _ in range(8)]
    found = measure_noise(
        model, select_static(onnx.load(model)), {}, feeds, per_channel=True, threads=1,
        scratch=tmp_path,
    )  # fmt: skip
    told = {n.node: n.noise_db for n in found}["lstm"]
    find_recipe("int8-weights/per-channel").make(
        Ingredients(
            given=model, normalized=model, ranges={}, out=out,
            tuning=Tuning(spared=("rows", "then", "else")),
        )
    )  # fmt: skip
    floats, stored = (open_session(RuntimeKind.ONNXRUNTIME, path) for path in (model, out))
    error = power = 0.0
    for one in feeds:
        want, got = floats.run(one)["y"], stored.run(one)["y"]
        error, power = error + float(((got - want) ** 2).sum()), power + float((want**2).sum())
    assert error > 0
    assert 10 * np.log10(error / power) == pytest.approx(told, abs=0.5)
