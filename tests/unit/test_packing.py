"""Codes in fewer bits than a byte, and what the nodes that unpack them compute."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgekit_contract.profile import RuntimeKind
from edgekit_converters.conditioning.moments import Moments
from edgekit_converters.quantization.blockwise import channelwise, quantized
from edgekit_converters.quantization.draft import Draft
from edgekit_converters.quantization.packing import WHOLE, PackedRows, pack, unpacked
from edgekit_runtime.session import open_session


def unpacked_by_runtime(values: np.ndarray, bits: int, path: Path, rows: np.ndarray) -> np.ndarray:
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["n"])
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, None)
    whole = helper.make_graph([helper.make_node("Add", ["ids", "ids"], ["out"])], "g", [ids], [out])
    model = helper.make_model(whole, opset_imports=[helper.make_opsetid("", 13)])
    draft = Draft(model)

    def change(place, node):
        some = PackedRows.stored(place, values, bits).rows(place, "ids")
        place.add("Identity", [some], "out", outputs=["out"])
        return True

    draft.replace(change)
    draft.save(path)
    session = open_session(RuntimeKind.ONNXRUNTIME, path)
    return session.run({"ids": rows})["out"]


@pytest.mark.parametrize("bits", [4, 5, 6, 7, 8])
@pytest.mark.parametrize("columns", [16, 13, 3, 60])
def test_values_come_out_of_words_within_half_a_step(
    bits: int, columns: int, tmp_path: Path
) -> None:
    step = 2.0**-bits
    # the outermost half steps are off by up to a whole one
    values = np.random.default_rng(bits).uniform(step / 2, 1 - step / 2, (9, columns))
    rows = np.array([0, 8, 3, -1], np.int64)
    got = unpacked_by_runtime(values, bits, tmp_path / "m.onnx", rows)
    assert np.array_equal(got, unpacked(pack(values, bits), bits, columns)[rows])
    assert np.abs(got / WHOLE - values[rows]).max() < step / 2 + 1e-6
    stored = sum(t.ByteSize() for t in onnx.load_model(tmp_path / "m.onnx").graph.initializer)
    assert stored < 4 * 9 * -(-columns // (32 // bits)) + 200


def test_ends_of_the_range_stay_within_a_step() -> None:
    values = np.concatenate([np.zeros((1, 20)), np.full((1, 20), 1 - 1e-9)])
    got = unpacked(pack(values, 4), 4, 20) / WHOLE
    assert np.abs(got - values).max() <= 1 / 16


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("rows", [64, 50])
def test_more_bits_lose_less(symmetric: bool, rows: int) -> None:
    weight = np.random.default_rng(0).standard_normal((rows, 24))
    errors = [
        float(
            np.mean((quantized(weight, bits=b, block=16, symmetric=symmetric).values - weight) ** 2)
        )
        for b in (4, 5, 6, 8)
    ]
    assert errors[0] < 0.01
    assert all(wide < narrow / 2.5 for narrow, wide in pairwise(errors))


def test_zero_and_tiny_weights_come_out_finite() -> None:
    weight = np.zeros((32, 4))
    weight[:, 1], weight[:, 2], weight[3, 3] = 1e-30, 1e5, -1e5
    blocks = quantized(weight, bits=4, block=16, symmetric=True)
    assert np.isfinite(blocks.values).all()
    assert np.allclose(blocks.values[:, 2:], weight[:, 2:], rtol=0.07)
    assert not blocks.values[:, 0].any()
    codes, steps = channelwise(weight, (0,), levels=127)
    assert np.allclose(codes * steps, weight, atol=1e-20)


def test_rounding_by_moments_changes_outputs_less() -> None:
    random = np.random.default_rng(1)
    inputs = random.standard_normal((500, 48)) @ random.standard_normal((48, 48))
    weight = random.standard_normal((48, 20))
    gram = inputs.T @ inputs / len(inputs)
    moments = Moments(gram=gram[None], mean=inputs.mean(axis=0)[None], rows=len(inputs))

    def error(seen: Moments | None) -> float:
        made = quantized(weight, bits=4, block=16, symmetric=False, moments=seen).values
        return float(np.mean((inputs @ (made - weight)) ** 2))

    assert error(moments) < 0.75 * error(None)


def test_moments_without_an_inverse_round_to_nearest() -> None:
    weight = np.random.default_rng(2).standard_normal((32, 8))
    bad = Moments(gram=np.full((1, 32, 32), np.nan), mean=np.zeros((1, 32)), rows=1)
    blocks = quantized(weight, bits=4, block=16, symmetric=True, moments=bad)
    assert np.isfinite(blocks.values).all()
