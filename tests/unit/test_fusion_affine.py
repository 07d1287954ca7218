"""Constants behind convolutions."""

from __future__ import annotations

import numpy as np
import pytest
from fusions import fused, normal, parsed
from onnx import ModelProto

SAMPLE = {"x": normal(2, 4, 6, 5)}


def behind(
    tail: str, *, op: str = "Conv", attributes: str = "", **constants: np.ndarray
) -> ModelProto:
    weights = normal(4, 3, 2, 1) if op == "ConvTranspose" else normal(6, 4, 2, 1)
    if "group" in attributes and op == "Conv":
        weights = normal(6, 2, 2, 1)
    shape = "N, K, L, 5" if "Squeeze" not in tail else "N, K, L"
    return parsed(
        f"g (float[N, 4, 6, 5] x) => (float[{shape}] y) {{ c = {op} {attributes} (x, w) {tail} }}",
        **{"w": weights} | constants,
    )


def test_a_constant_per_channel_becomes_the_bias() -> None:
    made = behind("y = Add(b, c)", b=normal(1, 6, 1, 1))
    assert fused(made, SAMPLE) == {"Conv": 1}


def test_factor_and_constant_go_into_weights_and_bias() -> None:
    made = behind(
        "d = Mul(c, k) e = Add(d, b) y = Mul(e, two)",
        k=normal(6, 1, 1), b=normal(6, 1, 1), two=np.float32(2),
    )  # fmt: skip
    assert fused(made, SAMPLE) == {"Conv": 1}


@pytest.mark.parametrize(("op", "attributes", "channels"), [
    ("Conv", "<group = 2>", 6), ("ConvTranspose", "<strides = [2, 1]>", 3),
    ("ConvTranspose", "<group = 2>", 6),
])  # fmt: skip
def test_groups_and_transposed_convolutions_keep_their_order_of_channels(
    op: str, attributes: str, channels: int
) -> None:
    made = behind(
        "d = Mul(c, k) y = Add(d, b)", op=op, attributes=attributes,
        k=normal(channels, 1, 1, seed=3), b=normal(channels, 1, 1),
    )  # fmt: skip
    assert fused(made, SAMPLE, close=1e-4) == {op: 1}


def test_a_squeeze_between_does_not_matter() -> None:
    made = parsed(
        "g (float[N, 4, 6, 1] x) => (float[N, 6, 5] y)"
        " { c = Conv(x, w) s = Squeeze(c, axes) y = Add(s, b) }",
        w=normal(6, 4, 2, 1), axes=np.array([3]), b=normal(1, 6, 1),
    )  # fmt: skip
    assert fused(made, {"x": normal(2, 4, 6, 1)}) == {"Conv": 1, "Squeeze": 1}


@pytest.mark.parametrize("constant", [normal(5), normal(6, 5, 5), normal(2, 1, 1, 1)])
def test_a_constant_that_is_not_per_channel_stays(constant: np.ndarray) -> None:
    assert fused(behind("y = Add(c, b)", b=constant), SAMPLE) == {"Conv": 1, "Add": 1}


def test_a_convolution_that_is_read_elsewhere_stays() -> None:
    made = behind("d = Add(c, b) e = Neg(c) y = Mul(d, e)", b=normal(6, 1, 1))
    assert fused(made, SAMPLE) == {"Conv": 1, "Add": 1, "Neg": 1, "Mul": 1}


def test_weights_that_two_convolutions_share_are_not_scaled() -> None:
    made = behind("d = Conv(x, w) e = Mul(c, k) y = Add(d, e)", k=normal(6, 1, 1))
    assert fused(made, SAMPLE)["Mul"] == 1
