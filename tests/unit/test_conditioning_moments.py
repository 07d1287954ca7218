"""What layers read: rows that their weights multiply, and moments of these."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from layer_models import constants_of, model_of, node, one_layer, run, saved

from edgekit_converters.conditioning.layers import layers
from edgekit_converters.conditioning.moments import (
    Moments,
    collect_moments,
    damped,
    read_moments,
    write_moments,
)

CASES: dict[str, tuple[str, tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "conv": ("Conv", (5, 3, 3, 3), (2, 3, 6, 7), {}),
    "conv padded, strided": (
        "Conv",
        (5, 3, 3, 2),
        (1, 3, 6, 7),
        {"pads": [1, 0, 2, 1], "strides": [2, 3]},
    ),
    "conv dilated": ("Conv", (4, 2, 3, 3), (1, 2, 8, 8), {"dilations": [2, 1]}),
    "conv grouped": ("Conv", (6, 2, 3, 3), (1, 4, 5, 5), {"group": 2}),
    "conv depthwise": ("Conv", (8, 1, 3, 3), (1, 4, 5, 5), {"group": 4, "pads": [1, 1, 1, 1]}),
    "conv same upper": ("Conv", (2, 2, 3, 2), (1, 2, 7, 6), {"auto_pad": "SAME_UPPER"}),
    "conv same lower": (
        "Conv",
        (2, 2, 2, 4),
        (1, 2, 7, 6),
        {"auto_pad": "SAME_LOWER", "strides": [2, 2]},
    ),
    "conv valid": ("Conv", (2, 2, 3, 3), (1, 2, 7, 6), {"auto_pad": "VALID"}),
    "conv of a sequence": ("Conv", (4, 3, 5), (2, 3, 11), {"pads": [4, 0], "strides": [2]}),
    "conv transposed": ("ConvTranspose", (3, 4, 3, 2), (1, 3, 4, 5), {}),
    "conv transposed, strided": (
        "ConvTranspose",
        (3, 4, 3, 3),
        (1, 3, 4, 4),
        {"strides": [2, 3], "pads": [1, 0, 0, 1], "output_padding": [1, 0], "dilations": [1, 2]},
    ),
    "conv transposed, cut": ("ConvTranspose", (2, 3, 2), (1, 2, 6), {"pads": [2, 2]}),
    "gemm": ("Gemm", (6, 4), (5, 6), {}),
    "gemm of transposed": ("Gemm", (4, 6), (6, 5), {"transA": 1, "transB": 1}),
    "matmul": ("MatMul", (6, 4), (2, 3, 6), {}),
}


@pytest.mark.parametrize("case", CASES)
def test_weights_times_rows_are_what_the_runtime_computes(case: str) -> None:
    operator, weight, shape, attributes = CASES[case]
    model = one_layer(operator, weight, rank=len(shape), **attributes)
    (layer,) = layers(model)
    values = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    matrix = layer.matrix(constants_of(model)["w"])
    got = np.einsum("god,grd->rgo", matrix, layer.rows(values, np.arange))
    got = got.reshape(len(got), -1)
    want = run(model, {"x": values})
    if operator.startswith("Conv"):
        want = np.moveaxis(want, 1, -1)
    assert want.shape[-1] == layer.outputs
    np.testing.assert_allclose(got, want.reshape(-1, want.shape[-1]), atol=1e-4)
    np.testing.assert_array_equal(layer.tensor(matrix), constants_of(model)["w"])


def test_grouped_transposed_convolutions_and_stacked_products_are_no_layers() -> None:
    assert not layers(one_layer("ConvTranspose", (4, 2, 3, 3), group=2))
    assert not layers(one_layer("MatMul", (2, 3, 4)))


def _samples(count: int, *shape: int) -> Iterator[dict[str, np.ndarray]]:
    for seed in range(count):
        yield {"x": np.random.default_rng(seed).standard_normal(shape).astype(np.float32) + 0.5}


def _collect(path: Path, nodes: list[str], count: int, *shape: int) -> dict[str, Moments]:
    return collect_moments(path, nodes, _samples(count, *shape), threads=1, scratch=path.parent)


def test_moments_are_those_of_all_rows_where_there_are_few(tmp_path: Path) -> None:
    path = saved(one_layer("MatMul", (6, 4), rank=3), tmp_path)
    found = _collect(path, ["to y"], 3, 2, 10, 6)["to y"]
    rows = np.concatenate([s["x"].reshape(-1, 6) for s in _samples(3, 2, 10, 6)]).astype(float)
    assert found.rows == 60
    np.testing.assert_allclose(found.gram[0], rows.T @ rows / 60, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.mean[0], rows.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(found.covariance[0], np.cov(rows.T, bias=True), atol=1e-5)


def test_no_more_samples_are_run_than_tell_something(tmp_path: Path) -> None:
    path = saved(one_layer("MatMul", (6, 4), rank=3), tmp_path)

    def seen(least: int) -> int:
        given = iter(_samples(50, 2, 10, 6))
        found = collect_moments(path, ["to y"], given, threads=1, scratch=tmp_path, least=least)
        assert found["to y"].rows == 20 * (50 - len(list(given)))
        return found["to y"].rows

    assert seen(1) == 40 and seen(7) == 140


def test_few_rows_tell_less_than_they_seem_to() -> None:
    random = np.random.default_rng(3)
    mixing = random.standard_normal((32, 32)) @ np.diag(np.geomspace(3, 0.1, 32))
    true = mixing @ mixing.T

    def distance(rows: int, shrunk: bool) -> float:
        drawn = random.standard_normal((rows, 32)) @ mixing.T
        gram = (drawn.T @ drawn / rows)[None]
        return float(np.linalg.norm((damped(gram, rows) if shrunk else gram)[0] - true))

    def mean(rows: int, shrunk: bool) -> float:
        return float(np.mean([distance(rows, shrunk) for _ in range(50)]))

    assert mean(10, True) < 0.9 * mean(10, False)
    assert mean(5000, True) < 1.5 * mean(5000, False)
    few = damped(np.ones((1, 4, 4)), 1)
    assert np.linalg.cond(few[0]) < 20 and np.allclose(np.diagonal(few[0]), 1.01)


def test_moments_of_a_part_of_the_rows_are_near_those_of_all(tmp_path: Path) -> None:
    path = saved(one_layer("Conv", (2, 1, 3, 3)), tmp_path)
    found = _collect(path, ["to y"], 20, 1, 1, 64, 64)["to y"]
    assert found.rows < 20 * 62 * 62 / 10
    np.testing.assert_allclose(found.gram[0], np.eye(9) + 0.25, atol=0.15)


def test_nodes_that_read_the_same_rows_share_moments_in_memory_and_on_disk(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    model = model_of(
        [
            node("MatMul", "x w", "a"),
            node("MatMul", "x v", "b"),
            node("MatMul", "a u", "c"),
            node("Concat", "a b c", "y", axis=-1),
        ],
        {name: random.standard_normal((6, 6)) for name in "wvu"},
        rank=2,
    )
    found = _collect(saved(model, tmp_path), ["to a", "to b", "to c", "to y"], 2, 4, 6)
    assert sorted(found) == ["to a", "to b", "to c"]
    assert found["to a"] is found["to b"]
    write_moments(tmp_path / "moments", found)
    again = read_moments(tmp_path / "moments")
    assert again["to a"] is again["to b"] is not again["to c"]
    for name, moments in found.items():
        np.testing.assert_array_equal(again[name].gram, moments.gram)
        np.testing.assert_array_equal(again[name].mean, moments.mean)
        assert again[name].rows == moments.rows


def test_rows_too_long_are_left_out(tmp_path: Path) -> None:
    path = saved(one_layer("MatMul", (5000, 1)), tmp_path)
    assert _collect(path, ["to y"], 1, 1, 5000) == {}


def test_nodes_that_read_numbers_not_finite_are_left_out(tmp_path: Path) -> None:
    model = model_of(
        [node("Log", "x", "l"), node("MatMul", "l w", "a"), node("MatMul", "x w", "b"),
         node("Add", "a b", "y")],
        {"w": np.eye(4)},
        rank=2,
    )  # fmt: skip
    assert sorted(_collect(saved(model, tmp_path), ["to a", "to b"], 2, 8, 4)) == ["to b"]


def test_without_samples_there_are_no_moments(tmp_path: Path) -> None:
    assert _collect(saved(one_layer("Gemm", (6, 4)), tmp_path), ["to y"], 0, 1, 6) == {}
