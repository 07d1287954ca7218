"""Smoothing: the same function, with outliers where 8 bits bear them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from layer_models import constants_of, model_of, node, run, saved
from onnx import ModelProto, load_model

from edgekit_converters.conditioning.layers import layers, replace
from edgekit_converters.conditioning.smoothing import (
    Rows,
    collect_rows,
    error,
    smooth,
    smooth_file,
)
from edgekit_converters.quantization.dynamic import Storage, quantize_dynamic

WIDTH = 16
Feeds = list[dict[str, np.ndarray]]


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape)


def outliers(count: int = WIDTH) -> np.ndarray:
    """Factors of channels: one in eight is forty times as large as the others."""
    return np.where(np.arange(count) % 8 == 3, 40.0, 1.0)


def even_feeds(count: int = 4) -> Feeds:
    random = np.random.default_rng(1)
    return [{"x": random.standard_normal((2, 5, WIDTH)).astype(np.float32)} for _ in range(count)]


def normalized(*, residual: bool = False, written_out: bool = False) -> ModelProto:
    """Two products of a normalization with outliers, which a sum may read, too."""
    held = {"g": outliers(), "b": normal(WIDTH), "q": normal(WIDTH, 12), "k": normal(12, WIDTH).T}
    held["o"] = normal(12, WIDTH)
    if written_out:
        start = [node("Mul", "x g", "m"), node("Add", "m b", "n")]
    else:
        start = [node("LayerNormalization", "x g b", "n", axis=-1)]
    nodes = [
        *start,
        node("MatMul", "n q", "s"),
        node("MatMul", "n k", "t"),
        node("Mul", "s t", "p"),
        node("MatMul", "p o", "z"),
        node("Add", "z n" if residual else "z z", "y"),
    ]
    return model_of(nodes, held, rank=3)


def gated() -> ModelProto:
    """A product of what no constant scales, by weights of one size: a node must divide it."""
    held = {"w": np.sign(normal(WIDTH, 12))}
    return model_of([node("Sigmoid", "x", "s"), node("MatMul", "s w", "y")], held, rank=3)


def smoothed(model: ModelProto, feeds: Feeds, scratch: Path) -> tuple[int, ModelProto]:
    out = scratch / "out.onnx"
    changed = smooth_file(saved(model, scratch), out, iter(feeds), threads=1, scratch=scratch)
    assert out.exists() == bool(changed)
    return changed, load_model(out) if changed else model


def copied(model: ModelProto) -> ModelProto:
    copy = ModelProto()
    copy.CopyFrom(model)
    return copy


def errors(model: ModelProto, feeds: Feeds, scratch: Path) -> dict[str, float]:
    """Simulated, of each layer as it is."""
    found = {}
    rows = collect_rows(model, iter(feeds), threads=1, scratch=scratch)
    for layer in layers(model):
        matrix = layer.matrix(constants_of(model)[layer.weight])[0]
        found[layer.name] = error(rows[layer.input], [matrix], np.ones(layer.width))
    return found


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("written_out", [False, True])
def test_the_function_stays_and_the_simulated_error_falls(
    residual: bool, written_out: bool, tmp_path: Path
) -> None:
    model, feeds = normalized(residual=residual, written_out=written_out), even_feeds()
    changed, other = smoothed(model, feeds, tmp_path)
    assert changed >= 1
    for feed in feeds:
        want = run(model, feed)
        np.testing.assert_allclose(run(other, feed), want, atol=1e-5 * np.abs(want).max())
    before, after = errors(model, feeds, tmp_path), errors(other, feeds, tmp_path)
    assert after["to s"] + after["to t"] < 0.3 * (before["to s"] + before["to t"])
    assert after["to z"] <= before["to z"] * 1.001


@pytest.mark.parametrize("residual", [False, True])
def test_a_node_is_added_only_where_constants_cannot_take_the_factors_in(
    residual: bool, tmp_path: Path
) -> None:
    model = normalized(residual=residual)
    rows = collect_rows(model, iter(even_feeds()), threads=1, scratch=tmp_path)
    other = copied(model)
    assert smooth(other, {"n": rows["n"]}) == ["n"]
    assert len(other.graph.node) - len(model.graph.node) == int(residual)


def test_dynamic_quantization_gains_by_it(tmp_path: Path) -> None:
    feeds = even_feeds(8)
    model = model_of([node("MatMul", "x w", "y")], {"w": normal(WIDTH, 12)}, rank=3)
    for feed in feeds:
        feed["x"] *= outliers().astype(np.float32)
    _, other = smoothed(model, feeds, tmp_path)
    noise = []
    for variant in (model, other):
        out = tmp_path / "quantized.onnx"
        quantize_dynamic(
            saved(variant, tmp_path),
            out,
            per_channel=True,
            reduce_range=False,
            storage=Storage(),
        )
        quantized = load_model(out)
        noise.append(sum(float(np.mean((run(quantized, f) - run(model, f)) ** 2)) for f in feeds))
    assert noise[1] < 0.5 * noise[0]


def test_even_channels_get_no_node_of_their_own(tmp_path: Path) -> None:
    assert smoothed(gated(), even_feeds(16), tmp_path)[0] == 0


def test_a_node_is_added_only_where_it_takes_a_share_of_all_errors() -> None:
    nodes = [
        node("Sigmoid", "x", "s"),
        node("MatMul", "s v", "a"),
        node("Sigmoid", "a", "t"),
        node("MatMul", "t w", "y"),
    ]
    held = {"v": np.sign(normal(WIDTH, WIDTH)), "w": np.sign(normal(WIDTH, 12))}
    for weight in held.values():
        weight[3] /= 100  # else the loud channel is all that counts
    model = model_of(nodes, held, rank=3)
    loud, quiet = rows_of(40.0), rows_of(4.0)
    assert smooth(copied(model), {"s": loud, "t": quiet}) == ["s", "t"]
    assert smooth(copied(model), {"s": loud, "t": quiet}, paid_share=0.03) == ["s"]
    assert smooth(copied(model), {"t": quiet}, paid_share=0.03) == ["t"]


def rows_of(factor: float) -> Rows:
    """Of two samples, with one channel so many times as large as the others."""
    values = normal(64, WIDTH) * np.where(np.arange(WIDTH) == 3, factor, 1.0)
    halves = values.reshape(2, 32, WIDTH)
    return Rows(
        values=values.astype(np.float32),
        samples=np.repeat([0, 1], 32),
        low=halves.min(axis=1).astype(np.float32),
        high=halves.max(axis=1).astype(np.float32),
    )


@pytest.mark.parametrize("seed", range(5))
def test_no_error_grows_whatever_the_model(seed: int, tmp_path: Path) -> None:
    random = np.random.default_rng(seed)
    held = {
        "g": np.exp(random.normal(0, 2, WIDTH)),
        "b": random.normal(0, 1, WIDTH),
        "w": random.normal(0, 1, (WIDTH, 24)) * np.exp(random.normal(0, 1, (WIDTH, 1))),
        "v": random.normal(0, 1, (8, 24)),
        "c": random.normal(0, 1, 8),
    }
    nodes = [
        node("LayerNormalization", "x g b", "n", axis=-1),
        node("MatMul", "n w", "m"),
        node("Relu", "m", "r"),
        node("Flatten", "r", "f", axis=2),
        node("Gemm", "f v c", "y", transB=1, alpha=0.5, beta=2.0),
    ]
    model, feeds = model_of(nodes, held, rank=3), even_feeds()
    changed, other = smoothed(model, feeds, tmp_path)
    before, after = errors(model, feeds, tmp_path), errors(other, feeds, tmp_path)
    assert changed
    assert all(after[name] <= before[name] * 1.001 for name in before)
    want = run(model, feeds[0])
    np.testing.assert_allclose(run(other, feeds[0]), want, atol=1e-5 * np.abs(want).max())


def test_silent_channels_stay_as_they_are(tmp_path: Path) -> None:
    model, feeds = normalized(), even_feeds()
    tensors = {t.name: t for t in model.graph.initializer}
    held = constants_of(model)
    for name in ("g", "b", "q", "k"):
        values = held[name].copy()
        values[5] = 0
        replace(tensors[name], values)
    changed, other = smoothed(model, feeds, tmp_path)
    assert changed
    assert all(np.isfinite(values).all() for values in constants_of(other).values())


def test_weights_that_are_shared_or_read_turned_inputs_are_left_alone(tmp_path: Path) -> None:
    nodes = [node("MatMul", "x w", "a"), node("MatMul", "a w", "b"), node("Add", "a b", "y")]
    shared = model_of(nodes, {"w": normal(WIDTH, WIDTH)}, rank=3)
    turned = model_of(
        [node("Gemm", "x w", "y", transA=1)], {"w": normal(WIDTH, 4) * outliers()[:, None]}, rank=2
    )
    for model in (shared, turned):
        assert collect_rows(model, iter([]), threads=1, scratch=tmp_path) == {}
        assert smoothed(model, even_feeds(), tmp_path)[0] == 0


def test_values_that_are_not_finite_are_not_smoothed(tmp_path: Path) -> None:
    feeds = even_feeds()
    feeds[2]["x"][0, 0, 0] = np.nan
    model = normalized()
    rows = collect_rows(model, iter(feeds), threads=1, scratch=tmp_path)
    assert "n" not in rows
    assert smooth(model, rows) == []


def test_rows_are_bounded_and_bounds_are_of_all_rows(tmp_path: Path) -> None:
    model = model_of([node("MatMul", "x w", "y")], {"w": normal(WIDTH, 4)}, rank=3)
    feeds = [{"x": np.float32(normal(3, 400, WIDTH))} for _ in range(40)]
    feeds[0]["x"][1, 201, 7] = 99.0
    rows = collect_rows(model, iter(feeds), threads=1, scratch=tmp_path)["x"]
    assert isinstance(rows, Rows)
    assert len(rows.values) == len(rows.samples) == 512
    assert len(rows.low) == len(rows.high) == 32
    assert rows.high[0, 7] == 99.0
