"""Streams: channels that layers share through sums, levelled so that one scale serves them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from layer_models import model_of, node, run, saved
from onnx import ModelProto, NodeProto, helper, load_model

from edgekit_converters.conditioning.equalization import equalize_file
from edgekit_converters.conditioning.junctions import collect_peaks
from edgekit_converters.conditioning.streams import find_streams

CHANNELS = 8


def _normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape)


def _held() -> dict[str, np.ndarray]:
    spread = np.logspace(-1.5, 1.5, CHANNELS)
    return {
        "a": _normal(CHANNELS, 3, 1, 1) * spread.reshape(-1, 1, 1, 1),
        "a bias": _normal(CHANNELS) * spread,
        "b": _normal(CHANNELS, CHANNELS, 3, 3),
        "c": _normal(CHANNELS, CHANNELS, 1, 1) * spread.reshape(-1, 1, 1, 1),
        "shift": _normal(CHANNELS, 1, 1) * spread.reshape(-1, 1, 1),
        "d": _normal(4, CHANNELS, 1, 1),
    }


def _residual(*, activation: bool = False) -> list[NodeProto]:
    """A layer, a block beside which its result is added, and a layer."""
    make = helper.make_node
    return [
        make("Conv", ["x", "a", "a bias"], ["first"], name="first"),
        make("Conv", ["first", "b"], ["wide"], name="wide", pads=[1, 1, 1, 1]),
        make("Relu", ["wide"], ["clamped"], name="clamped"),
        make("Conv", ["clamped", "c"], ["second"], name="second"),
        make("Add", ["first", "second"], ["sum"], name="sum"),
        make("Add", ["sum", "shift"], ["moved"], name="moved"),
        make("Relu" if activation else "Identity", ["moved"], ["last"], name="last"),
        make("Conv", ["last", "d"], ["y"], name="to y"),
    ]


def _model(nodes: Sequence[NodeProto], **changed: np.ndarray) -> ModelProto:
    return model_of(nodes, {**_held(), **changed}, rank=4)


def _feeds() -> list[dict[str, np.ndarray]]:
    random = np.random.default_rng(1)
    return [{"x": random.standard_normal((1, 3, 6, 6)).astype(np.float32)} for _ in range(4)]


@pytest.mark.parametrize("activation", [False, True], ids=["linear", "rectified"])
@pytest.mark.parametrize("with_weights", [False, True], ids=["levelled", "equalized"])
def test_what_is_added_to_each_other_is_scaled_together(
    activation: bool, with_weights: bool, tmp_path: Path
) -> None:
    model, out = _model(_residual(activation=activation)), tmp_path / "out.onnx"
    changed = equalize_file(
        saved(model, tmp_path),
        out,
        _feeds(),
        threads=1,
        scratch=tmp_path,
        with_weights=with_weights,
    )
    assert changed == 2  # the sum, and what is inside the block
    for feed in _feeds():
        want = run(model, feed)
        np.testing.assert_allclose(run(load_model(out), feed), want, atol=1e-4 * np.abs(want).max())


def test_levelled_channels_are_equally_large(tmp_path: Path) -> None:
    model, out = _model(_residual()), tmp_path / "out.onnx"
    equalize_file(
        saved(model, tmp_path), out, _feeds(), threads=1, scratch=tmp_path, with_weights=False
    )
    levelled = load_model(out)

    def unevenness(of: ModelProto) -> dict[str, float]:
        peaks = collect_peaks(of, find_streams(of), _feeds(), threads=1, scratch=tmp_path)
        return {name: float(values.max() / values.min()) for name, values in peaks.items()}

    before, after = unevenness(model), unevenness(levelled)
    assert after["clamped"] == pytest.approx(1, rel=1e-4)  # one tensor of its own: exactly
    of_the_sum = {"first", "second", "sum", "moved"} & before.keys()
    assert len(of_the_sum) >= 3
    for name in of_the_sum:
        assert after[name] < before[name] / 10


def _spoiled(how: str) -> tuple[list[NodeProto], dict[str, Any]]:
    nodes = _residual()
    make = helper.make_node
    match how:
        case "clipped":
            nodes[6] = make("Clip", ["moved"], ["last"], name="last")
        case "multiplied":
            nodes[4] = make("Mul", ["first", "second"], ["sum"], name="sum")
        case "of another layer's weights":
            nodes[7] = make("Conv", ["last", "c"], ["y"], name="to y")
        case "broadcast":
            return nodes, {"c": _normal(1, CHANNELS, 1, 1)}
    return nodes, {}


@pytest.mark.parametrize(
    "how", ["clipped", "multiplied", "of another layer's weights", "broadcast", "returned"]
)
def test_sum_whose_channels_others_need_as_they_are_is_no_stream(how: str) -> None:
    nodes, changed = _spoiled(how)
    model = _model(nodes, **changed)
    if how == "returned":
        model.graph.output.append(helper.make_tensor_value_info("sum", 1, None))
    assert all("sum" not in stream.rounded for stream in find_streams(model))


def test_tensor_that_a_subgraph_reads_is_no_stream() -> None:
    branch = helper.make_graph(
        [helper.make_node("Identity", ["sum"], ["seen"])],
        "branch",
        [],
        [helper.make_tensor_value_info("seen", 1, None)],
    )
    nodes = [
        *_residual()[:-1],
        helper.make_node(
            "If", ["yes"], ["chosen"], name="if", then_branch=branch, else_branch=branch
        ),
        helper.make_node("Conv", ["last", "d"], ["y"], name="to y"),
    ]
    assert all("sum" not in stream.rounded for stream in find_streams(_model(nodes)))


def test_a_chain_of_products_is_a_stream_for_each_link() -> None:
    held = {"u": _normal(6, 12), "v": _normal(12, 10), "w": _normal(10, 3)}
    nodes = [node("MatMul", "x u", "m"), node("MatMul", "m v", "n"), node("MatMul", "n w", "y")]
    streams = find_streams(model_of(nodes, held, rank=2))
    assert [(s.tensor, s.channels) for s in streams] == [("m", 12), ("n", 10)]
