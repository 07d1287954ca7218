"""8-bit weights in 4 to 6 bits: what is stored, and what the runtime makes of it while it loads."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

from edgekit_converters.conditioning.moments import Moments
from edgekit_converters.quantization.draft import Draft, Place
from edgekit_converters.quantization.folding import Packed, pack, unfold

BITS = (4, 5, 6)


def weights(rows: int = 128, columns: int = 24) -> np.ndarray:
    """Some columns and rows much larger than others, and off zero."""
    random = np.random.default_rng(rows + columns)
    spread = np.exp(random.normal(0, 1, columns)) * np.exp(random.normal(0, 0.3, (rows, 1)))
    matrix: np.ndarray = (random.standard_normal((rows, columns)) + 0.2) * spread
    return matrix


def seen_by(matrix: np.ndarray, inputs: int = 600) -> tuple[np.ndarray, Moments]:
    """Correlated rows that it multiplies, and their moments."""
    random, width = np.random.default_rng(3), len(matrix)
    rows = random.standard_normal((inputs, width)) @ random.standard_normal((width, width))
    gram = rows.T @ rows / inputs
    return rows, Moments(gram=gram[None], mean=rows.mean(axis=0)[None], rows=inputs)


def written(packed: Packed, path: Path) -> Path:
    """A model whose output is `rows of bytes @ packed weights`."""
    rows = packed.weights.shape[0]
    x = helper.make_tensor_value_info("x", TensorProto.UINT8, ["n", rows])
    y = helper.make_tensor_value_info("y", TensorProto.INT32, None)
    product = helper.make_node("MatMulInteger", ["x", "w"], ["y"])
    model = helper.make_model(
        helper.make_graph([product], "g", [x], [y]), opset_imports=[helper.make_opsetid("", 13)]
    )

    def change(place: Place, node: NodeProto) -> bool:
        place.add("MatMulInteger", ["x", unfold(place, packed)], "y", outputs=["y"])
        return True

    draft = Draft(model)
    draft.replace(change)
    draft.save(path)
    return path


def opened(
    path: Path, level: onnxruntime.GraphOptimizationLevel, optimized: Path | None = None
) -> onnxruntime.InferenceSession:
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    settings.intra_op_num_threads = 1
    settings.graph_optimization_level = level
    if optimized is not None:
        settings.optimized_model_filepath = str(optimized)
    return onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("levels", [127, 64])
@pytest.mark.parametrize(("shape", "block"), [((128, 24), 64), ((100, 7), 32), ((37, 3), 128)])
def test_the_runtime_folds_what_was_packed_exactly(
    bits: int, levels: int, shape: tuple[int, int], block: int, tmp_path: Path
) -> None:
    packed = pack(weights(*shape), bits=bits, block=block, levels=levels)
    path, optimized = written(packed, tmp_path / "m.onnx"), tmp_path / "optimized.onnx"
    opened(path, onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL, optimized)
    left = onnx.load_model(optimized).graph
    assert [node.op_type for node in left.node] == ["MatMulInteger"]
    folded = {t.name: numpy_helper.to_array(t) for t in left.initializer}[left.node[0].input[1]]
    assert folded.dtype == np.int8
    assert np.array_equal(folded, packed.weights)
    assert np.abs(packed.weights.astype(int)).max() <= levels


@pytest.mark.parametrize("bits", BITS)
def test_without_optimization_the_same_comes_out(bits: int, tmp_path: Path) -> None:
    packed = pack(weights(), bits=bits, block=32, levels=127)
    path = written(packed, tmp_path / "m.onnx")
    session = opened(path, onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL)
    (got,) = session.run(None, {"x": np.eye(128, dtype=np.uint8)})
    assert np.array_equal(got, packed.weights)


@pytest.mark.parametrize(("bits", "part"), [(4, 4.9), (5, 5.9), (6, 6.9)])
def test_a_weight_takes_its_bits_and_a_little(bits: int, part: float, tmp_path: Path) -> None:
    matrix = weights(512, 256)
    path = written(pack(matrix, bits=bits, block=64, levels=127), tmp_path / "m.onnx")
    assert path.stat().st_size * 8 < part * matrix.size


def test_values_are_near_and_more_bits_are_nearer() -> None:
    matrix = weights(256, 32)
    power = np.mean(matrix**2, axis=0)
    errors = []
    for bits in BITS:
        packed = pack(matrix, bits=bits, block=64, levels=127)
        errors.append(np.mean((packed.weights * packed.steps - matrix) ** 2, axis=0) / power)
    assert errors[0].max() < 0.03
    assert all(wide.mean() < narrow.mean() / 2.5 for narrow, wide in pairwise(errors))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("rows", [96, 75])
def test_rounding_by_moments_changes_outputs_less(bits: int, rows: int) -> None:
    matrix = weights(rows, 200)  # of a few columns chance decides
    inputs, moments = seen_by(matrix)

    def error(seen: Moments | None) -> float:
        packed = pack(matrix, bits=bits, block=32, levels=127, moments=seen)
        return float(np.mean((inputs @ (packed.weights * packed.steps - matrix)) ** 2))

    assert error(moments) < 0.65 * error(None)


def test_rounding_to_levels_is_taken_back_too() -> None:
    matrix = weights(96, 20)
    inputs, moments = seen_by(matrix)
    # with so few levels the second rounding is the coarser one
    packed = pack(matrix, bits=6, block=32, levels=20, moments=moments)
    fine = pack(matrix, bits=6, block=32, levels=127, moments=moments)
    twice = np.rint(fine.weights * fine.steps / packed.steps).clip(-20, 20)

    def error(values: np.ndarray) -> float:
        return float(np.mean((inputs @ (values * packed.steps - matrix)) ** 2))

    assert error(packed.weights) < 0.7 * error(twice)


def test_zero_and_tiny_and_huge_weights_come_out_finite(tmp_path: Path) -> None:
    matrix = np.zeros((64, 5))
    matrix[:, 1], matrix[:, 2], matrix[3, 3], matrix[:, 4] = 1e-42, 1e5, -1e5, -3.0
    packed = pack(matrix, bits=4, block=32, levels=127)
    values = packed.weights * packed.steps
    assert np.isfinite(values).all()
    assert not values[:, 0].any() and not np.delete(values[:, 3], 3).any()
    assert np.allclose(values[:, 2:], matrix[:, 2:], rtol=0.01)
    session = opened(
        written(packed, tmp_path / "m.onnx"), onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    )
    (got,) = session.run(None, {"x": np.eye(64, dtype=np.uint8)})
    assert np.array_equal(got, packed.weights)


def test_moments_without_an_inverse_round_to_nearest() -> None:
    matrix = weights(64, 8)
    bad = Moments(gram=np.full((1, 64, 64), np.nan), mean=np.zeros((1, 64)), rows=1)
    packed = pack(matrix, bits=5, block=32, levels=127, moments=bad)
    assert np.mean((packed.weights * packed.steps - matrix) ** 2) < 0.02 * np.mean(matrix**2)
