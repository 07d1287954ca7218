"""Equalization: the same function, with channels that one scale can serve."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from layer_models import constants_of, model_of, node, run, saved
from onnx import ModelProto, load_model

from edgekit_converters.conditioning.equalization import equalize, equalize_file
from edgekit_converters.conditioning.grid import Grid
from edgekit_converters.conditioning.junctions import find_junctions, scale
from edgekit_converters.conditioning.layers import layers, replace

Rewrite = Callable[..., int]


def _normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape)


def _uneven(*shape: int, axis: int = 0, inverse: bool = False) -> np.ndarray:
    """Weights whose channels differ by two orders of magnitude, or undo that."""
    count = shape[axis]
    spread = np.exp(np.random.default_rng(count).uniform(-2.5, 2.5, count))
    shaped = spread.reshape([-1 if a == axis else 1 for a in range(len(shape))])
    return _normal(*shape) / shaped if inverse else _normal(*shape) * shaped


def _convolutions(between: str = "Relu") -> ModelProto:
    """Convolution, depthwise convolution, projection."""
    held = {"w": _uneven(8, 3, 3, 3), "b": _uneven(8), "d": _normal(8, 1, 3, 3),
            "e": _uneven(8), "p": _uneven(4, 8, 1, 1, axis=1, inverse=True)}  # fmt: skip
    held["low"], held["high"] = np.array(0.0), np.array(6.0)
    bounds = " low high" if between == "Clip" else ""
    nodes = [
        node("Conv", "x w b", "c", pads=[1, 1, 1, 1]),
        node(between, "c" + bounds, "r"),
        node("Conv", "r d e", "f", group=8),
        node(between, "f" + bounds, "s"),
        node("Conv", "s p", "y"),
    ]
    return model_of(nodes, held, rank=4)


def _products() -> ModelProto:
    held = {"w": _uneven(6, 12, axis=1), "b": _uneven(12), "slope": np.abs(_normal(12)),
            "v": _uneven(10, 12, axis=1, inverse=True), "u": _normal(10, 3)}  # fmt: skip
    nodes = [
        node("MatMul", "x w", "m"),
        node("Add", "m b", "a"),
        node("PRelu", "a slope", "r"),
        node("Gemm", "r v", "g", transB=1),
        node("MatMul", "g u", "y"),
    ]
    return model_of(nodes, held, rank=2)


def _transposed() -> ModelProto:
    held = {"w": _normal(8, 3, 3), "t": _uneven(8, 6, 3, axis=1), "b": _uneven(6),
            "p": _uneven(2, 6, 1, axis=1, inverse=True)}  # fmt: skip
    nodes = [
        node("Conv", "x w", "c"),
        node("MaxPool", "c", "m", kernel_shape=[2]),
        node("ConvTranspose", "m t b", "u", strides=[2]),
        node("LeakyRelu", "u", "l", alpha=0.1),
        node("Conv", "l p", "y"),
    ]
    return model_of(nodes, held, rank=3)


def _feeds(*shape: int, count: int = 4) -> list[dict[str, np.ndarray]]:
    random = np.random.default_rng(1)
    return [{"x": random.standard_normal(shape).astype(np.float32)} for _ in range(count)]


def _rewritten(
    rewrite: Rewrite, model: ModelProto, feeds: list[dict[str, np.ndarray]], scratch: Path
) -> tuple[int, ModelProto]:
    out = scratch / "out.onnx"
    samples: Iterator[Mapping[str, np.ndarray]] = iter(feeds)
    changed = rewrite(saved(model, scratch), out, samples, threads=1, scratch=scratch)
    return changed, load_model(out) if changed else model


def _same(model: ModelProto, other: ModelProto, feeds: list[dict[str, np.ndarray]]) -> None:
    for feed in feeds:
        want = run(model, feed)
        np.testing.assert_allclose(run(other, feed), want, atol=1e-5 * np.abs(want).max())


def _error_per_tensor(model: ModelProto, feeds: list[dict[str, np.ndarray]]) -> float:
    """Of weights rounded to 8 bits with one scale each."""
    rounded = ModelProto()
    rounded.CopyFrom(model)
    held = {t.name: t for t in rounded.graph.initializer}
    for layer in layers(model):
        matrix = layer.matrix(constants_of(model)[layer.weight])
        nearest = Grid(per_channel=False).nearest(matrix)
        replace(held[layer.weight], layer.tensor(nearest))
    pairs = [(run(rounded, f), run(model, f)) for f in feeds]
    power = sum(float(np.sum(want.astype(float) ** 2)) for _, want in pairs)
    return sum(float(np.sum((got.astype(float) - want) ** 2)) for got, want in pairs) / power


CHAINS: dict[str, tuple[Callable[[], ModelProto], tuple[int, ...], int]] = {
    "convolutions": (_convolutions, (1, 3, 8, 8), 2),
    "products": (_products, (5, 6), 2),
    "transposed": (_transposed, (1, 3, 14), 2),
}


@pytest.mark.parametrize("chain", CHAINS)
def test_an_equalized_model_computes_the_same_and_rounds_better(chain: str, tmp_path: Path) -> None:
    make, shape, junctions = CHAINS[chain]
    model, feeds = make(), _feeds(*shape)
    changed, equalized = _rewritten(equalize_file, model, feeds, tmp_path)
    assert changed == junctions
    _same(model, equalized, feeds)
    assert _error_per_tensor(equalized, feeds) < 0.5 * _error_per_tensor(model, feeds)


def test_weights_alone_are_enough_to_equalize() -> None:
    model, equalized, feeds = _products(), _products(), _feeds(5, 6)
    for copy, tensor in zip(equalized.graph.initializer, model.graph.initializer, strict=True):
        copy.CopyFrom(tensor)
    assert equalize(equalized, {}) == 2
    _same(model, equalized, feeds)


def test_a_balanced_model_is_left_alone(tmp_path: Path) -> None:
    feeds = _feeds(5, 6)
    _, once = _rewritten(equalize_file, _products(), feeds, tmp_path)
    assert equalize_file(
        saved(once, tmp_path), tmp_path / "twice", feeds, threads=1, scratch=tmp_path
    ) == 0  # fmt: skip
    assert not (tmp_path / "twice").exists()


def test_channels_do_not_pass_through_a_clip(tmp_path: Path) -> None:
    feeds = _feeds(1, 3, 8, 8)
    assert _rewritten(equalize_file, _convolutions("Clip"), feeds, tmp_path)[0] == 0


@pytest.mark.parametrize("other", ["Add", "output", "shared"])
def test_what_others_read_is_not_scaled(other: str, tmp_path: Path) -> None:
    held: dict[str, Any] = {"w": _uneven(6, 6, axis=1), "v": _normal(6, 6)}
    reads = "r w" if other == "shared" else "r v"
    nodes = [node("MatMul", "x w", "m"), node("Relu", "m", "r"), node("MatMul", reads, "z")]
    nodes.append(node("Add", "z r" if other == "Add" else "z z", "y"))
    model = model_of(nodes, held, rank=2)
    if other == "output":
        model.graph.output.add().name = "r"
    assert equalize(model, {}) == 0


def test_a_silent_channel_stays_as_it_is(tmp_path: Path) -> None:
    model, feeds = _products(), _feeds(5, 6)
    held = {t.name: t for t in model.graph.initializer}
    for name, column in (("w", (slice(None), 3)), ("b", (3,))):
        values = constants_of(model)[name].copy()
        values[column] = 0
        replace(held[name], values)
    changed, equalized = _rewritten(equalize_file, model, feeds, tmp_path)
    assert changed == 2
    _same(model, equalized, feeds)
    assert np.isfinite(constants_of(equalized)["v"]).all()


def test_one_constant_as_scale_and_bias_becomes_two(tmp_path: Path) -> None:
    held = {"w": _uneven(8, 3, 1, 1), "both": np.abs(_normal(8)) + 0.5, "variance": np.ones(8),
            "mean": np.zeros(8), "v": _uneven(8, 8, 1, 1, axis=1, inverse=True)}  # fmt: skip
    nodes = [
        node("Conv", "x w", "c"),
        node("BatchNormalization", "c both both mean variance", "n"),
        node("Conv", "n v", "y"),
    ]
    model = model_of(nodes, held, rank=4)
    changed = ModelProto.FromString(model.SerializeToString())
    (junction,) = find_junctions(changed)
    scale(changed, [junction], {junction.tensor: np.exp(_normal(8))})
    names = [tensor.name for tensor in changed.graph.initializer]
    assert len(set(names)) == len(names) == len(held) + 2
    _same(model, changed, _feeds(1, 3, 5, 5))
