"""Rounding and bias correction: on the grid, never worse than nearest, and without a mean error."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from layer_models import constants_of, model_of, node, one_layer, run, saved
from onnx import ModelProto, TensorProto

from edgekit_converters.conditioning.bias import correct_biases
from edgekit_converters.conditioning.grid import FULL_LEVELS, REDUCED_LEVELS, Grid
from edgekit_converters.conditioning.layers import layers, replace
from edgekit_converters.conditioning.moments import Moments, collect_moments
from edgekit_converters.conditioning.rounding import reconstruct

LAYERS: dict[str, tuple[str, tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "conv": ("Conv", (6, 4, 3, 3), (1, 4, 6, 6), {"pads": [1, 1, 1, 1]}),
    "depthwise": ("Conv", (8, 1, 3, 3), (1, 8, 6, 6), {"group": 8}),
    "grouped": ("Conv", (6, 4, 5), (1, 8, 20), {"group": 2}),
    "transposed": ("ConvTranspose", (4, 5, 3), (1, 4, 12), {"strides": [2]}),
    "gemm": ("Gemm", (16, 6), (24, 16), {"alpha": 0.5}),
    "gemm of transposed": ("Gemm", (6, 16), (16, 24), {"transA": 1, "transB": 1}),
    "matmul": ("MatMul", (80, 6), (1, 24, 80), {}),
}
GRIDS = {
    "per channel": Grid(per_channel=True),
    "per tensor": Grid(per_channel=False),
    "reduced": Grid(per_channel=True, levels=REDUCED_LEVELS),
    "coarse": Grid(per_channel=True, levels=7),
}


def _inputs(shape: tuple[int, ...], count: int = 6) -> list[np.ndarray]:
    """Values that go together, as a network's do, and whose mean is not zero."""
    random = np.random.default_rng(3)
    made = []
    for _ in range(count):
        values = random.standard_normal(shape)
        mixed = values + 2 * np.roll(values, 1, axis=-1) + values.mean(axis=1, keepdims=True) + 1
        made.append(np.maximum(mixed, 0).astype(np.float32))
    return made


def _moments(model: ModelProto, inputs: list[np.ndarray], scratch: Path) -> dict[str, Moments]:
    names = [layer.name for layer in layers(model)]
    feeds = ({"x": values} for values in inputs)
    return collect_moments(saved(model, scratch), names, feeds, threads=1, scratch=scratch)


def _copy(model: ModelProto) -> ModelProto:
    copied = ModelProto()
    copied.CopyFrom(model)
    return copied


def _nearest(model: ModelProto, grid: Grid) -> ModelProto:
    """As the integer conversion rounds the weights."""
    rounded = _copy(model)
    held = {t.name: t for t in rounded.graph.initializer}
    for layer in layers(model):
        matrix = layer.matrix(constants_of(model)[layer.weight])
        replace(held[layer.weight], layer.tensor(grid.nearest(matrix)))
    return rounded


def _errors(changed: ModelProto, model: ModelProto, inputs: list[np.ndarray]) -> np.ndarray:
    """Per output element."""
    return np.stack([run(changed, {"x": x}).astype(float) - run(model, {"x": x}) for x in inputs])


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("case", LAYERS)
def test_outputs_are_nearer_to_the_float_ones_than_with_nearest(
    case: str, grid: str, tmp_path: Path
) -> None:
    operator, weight, shape, attributes = LAYERS[case]
    model, chosen = one_layer(operator, weight, rank=len(shape), **attributes), GRIDS[grid]
    inputs = _inputs(shape)
    rounded = _copy(model)
    moments = _moments(model, inputs, tmp_path)
    assert reconstruct(rounded, moments, nodes=["to y"], grid=chosen) == ["to y"]
    before = np.mean(_errors(_nearest(model, chosen), model, inputs) ** 2)
    after = np.mean(_errors(rounded, model, inputs) ** 2)
    assert after < 0.9 * before
    # the conversion finds the weights on its grid
    np.testing.assert_allclose(
        constants_of(_nearest(rounded, chosen))["w"], constants_of(rounded)["w"], rtol=1e-6
    )


@pytest.mark.parametrize("case", LAYERS)
def test_no_output_is_worse_than_with_nearest_on_the_calibration_rows(
    case: str, tmp_path: Path
) -> None:
    operator, weight, shape, attributes = LAYERS[case]
    model, grid = one_layer(operator, weight, rank=len(shape), **attributes), GRIDS["coarse"]
    moments = _moments(model, _inputs(shape, 1), tmp_path)
    rounded = _copy(model)
    reconstruct(rounded, moments, nodes=["to y"], grid=grid)
    (layer,) = layers(model)
    gram = moments["to y"].gram
    want = layer.matrix(constants_of(model)["w"])

    def loss(of: ModelProto) -> np.ndarray:
        change = layer.matrix(constants_of(of)["w"]) - want
        return np.einsum("god,gde,goe->go", change, gram, change)

    limit = loss(_nearest(model, grid))
    assert (loss(rounded) <= limit + 1e-6 * limit.max()).all()


@pytest.mark.parametrize("levels", [FULL_LEVELS, REDUCED_LEVELS])
def test_steps_are_those_of_the_converter(levels: int) -> None:
    from onnxruntime.quantization.quant_utils import compute_data_quant_params, quantize_nparray

    weight = np.random.default_rng(0).standard_normal((40, 7)).astype(np.float32)
    weight[3] = 0
    weight[4] *= 1e-30
    steps = Grid(per_channel=True, levels=levels).steps(weight[None].astype(np.float64))
    rounded = Grid(per_channel=True, levels=levels).nearest(weight[None].astype(np.float64))[0]
    for row in range(40):
        zero, step = compute_data_quant_params(
            weight[row], TensorProto.INT8, True, reduce_range=levels == REDUCED_LEVELS
        )
        assert steps[0, row, 0] == step
        codes = quantize_nparray(TensorProto.INT8, weight[row], step, zero)
        np.testing.assert_allclose(codes * np.float64(step), rounded[row], rtol=1e-6)


def test_the_largest_weight_stays_though_moving_it_would_mend_the_sum() -> None:
    model = one_layer("MatMul", (3, 1))
    replace(model.graph.initializer[0], np.array([[7.0], [-0.45], [-0.45]]))
    # three inputs that are nearly the same
    moments = Moments(
        gram=np.full((1, 3, 3), 0.99) + 0.01 * np.eye(3), mean=np.zeros((1, 3)), rows=9
    )
    reconstruct(model, {"to y": moments}, nodes=["to y"], grid=GRIDS["coarse"])
    assert sorted(constants_of(model)["w"].ravel()) == [-1, 0, 7]


def test_a_layer_that_saw_nothing_but_zeros_is_rounded_to_nearest(tmp_path: Path) -> None:
    model, grid = one_layer("MatMul", (8, 4)), GRIDS["per channel"]
    rounded = _copy(model)
    moments = _moments(model, [np.zeros((3, 8), np.float32)], tmp_path)
    reconstruct(rounded, moments, nodes=["to y"], grid=grid, corrected=True)
    np.testing.assert_array_equal(
        constants_of(rounded)["w"], constants_of(_nearest(model, grid))["w"]
    )


def test_shared_and_unnamed_weights_and_weights_not_finite_stay(tmp_path: Path) -> None:
    weights = {name: np.random.default_rng(0).standard_normal((6, 6)) for name in "wvu"}
    weights["u"][0, 0] = np.nan
    model = model_of(
        [
            node("MatMul", "x w", "a"),
            node("MatMul", "x w", "b"),
            node("MatMul", "x v", "c"),
            node("MatMul", "x u", "d"),
            node("Sum", "a b c d", "y"),
        ],
        weights,
        rank=2,
    )
    moments = _moments(model, _inputs((4, 6)), tmp_path)
    rounded = _copy(model)
    nodes = ["to a", "to b", "to d"]
    assert reconstruct(rounded, moments, nodes=nodes, grid=GRIDS["per channel"]) == []
    for name, before in constants_of(model).items():
        np.testing.assert_array_equal(constants_of(rounded)[name], before)


def _with_bias(operator: str, weight: tuple[int, ...], rank: int, **attributes: Any) -> ModelProto:
    random = np.random.default_rng(5)
    held = {"w": random.standard_normal(weight), "b": random.standard_normal(6)}
    if operator == "MatMul":
        nodes = [node("MatMul", "x w", "p"), node("Add", "b p", "y")]
    else:
        nodes = [node(operator, "x w b", "y", **attributes)]
    return model_of(nodes, held, rank=rank)


BIASED: dict[str, Callable[[], tuple[ModelProto, tuple[int, ...]]]] = {
    "conv": lambda: (_with_bias("Conv", (6, 4, 3, 3), 4), (1, 4, 6, 6)),
    "conv without": lambda: (one_layer("Conv", (6, 4, 3)), (1, 4, 12)),
    "transposed": lambda: (_with_bias("ConvTranspose", (4, 6, 3), 3), (1, 4, 12)),
    "gemm": lambda: (_with_bias("Gemm", (16, 6), 2, alpha=0.5, beta=2.0), (24, 16)),
    "gemm without": lambda: (one_layer("Gemm", (16, 6)), (24, 16)),
    "matmul": lambda: (_with_bias("MatMul", (16, 6), 3), (1, 24, 16)),
}


@pytest.mark.parametrize("reconstructed", [False, True])
@pytest.mark.parametrize("case", BIASED)
def test_biases_take_the_mean_error_of_each_channel_back(
    case: str, reconstructed: bool, tmp_path: Path
) -> None:
    (model, shape), grid = BIASED[case](), GRIDS["coarse"]
    inputs = _inputs(shape)
    names = [layer.name for layer in layers(model)]
    moments = _moments(model, inputs, tmp_path)
    conditioned = _copy(model)
    if reconstructed:
        done = reconstruct(conditioned, moments, nodes=names, grid=grid, corrected=True)
    else:
        done = correct_biases(conditioned, moments, nodes=names, grid=grid)
    assert done == names
    read = {name for node in conditioned.graph.node for name in node.input}
    assert constants_of(conditioned).keys() <= read  # nothing is left behind
    errors = _errors(_nearest(conditioned, grid), model, inputs)
    channel = 2 if case.startswith(("conv", "transposed")) else errors.ndim - 1
    means = np.moveaxis(errors, channel, 0).reshape(errors.shape[channel], -1).mean(axis=1)
    assert np.abs(means).max() < 1e-4 * np.abs(errors).max()


def test_a_bias_of_two_layers_is_corrected_for_each(tmp_path: Path) -> None:
    random = np.random.default_rng(2)
    held = {"w": random.standard_normal((6, 6)), "v": random.standard_normal((6, 6))}
    model = model_of(
        [node("Gemm", "x w b", "h"), node("Gemm", "x v b", "g"), node("Sub", "h g", "y")],
        {**held, "b": random.standard_normal(6)},
        rank=2,
    )
    inputs, grid = _inputs((9, 6)), GRIDS["coarse"]
    conditioned = _copy(model)
    correct_biases(
        conditioned, _moments(model, inputs, tmp_path), nodes=["to h", "to g"], grid=grid
    )
    errors = _errors(_nearest(conditioned, grid), model, inputs)
    assert np.abs(errors.mean(axis=(0, 1))).max() < 1e-4 * np.abs(errors).max()


def test_products_that_nothing_constant_is_added_to_have_no_bias_to_correct(tmp_path: Path) -> None:
    model = one_layer("MatMul", (8, 4))
    moments = _moments(model, _inputs((3, 8)), tmp_path)
    before = model.SerializeToString()
    assert correct_biases(model, moments, nodes=["to y"], grid=GRIDS["coarse"]) == []
    assert model.SerializeToString() == before
