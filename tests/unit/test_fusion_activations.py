"""Gelu in pieces, and maxima of activations."""

from __future__ import annotations

import math

import numpy as np
import pytest
from fusions import fused, normal, parsed
from onnx import ModelProto

HALF, ONE, SQRT2 = np.float32(0.5), np.float32(1), np.float32(math.sqrt(2))
CUBE, STRETCH = np.float32(0.044715), np.float32(math.sqrt(2 / math.pi))
EDGES = np.array([[0.0, -0.0, 1e-30, -1e-8, 5.5, -5.5, 88.0, -88.0, 3e4, -3e4]], np.float32)
SAMPLES = ({"x": normal(4, 10, scale=3)}, {"x": EDGES})

ERF = {
    "half last": "a = Div(x, sqrt2) b = Erf(a) c = Add(b, one) d = Mul(x, c) y = Mul(d, half)",
    "half first": "a = Mul(half, x) b = Div(x, sqrt2) c = Erf(b) d = Add(one, c) y = Mul(d, a)",
    "half of sum": "a = Div(x, sqrt2) b = Erf(a) c = Add(one, b) d = Mul(c, half) y = Mul(x, d)",
}
TANH = {
    "powers": "p = Pow(x, three) q = Mul(p, cube) r = Add(x, q) s = Mul(r, stretch) t = Tanh(s)"
    " u = Add(t, one) v = Mul(half, x) y = Mul(v, u)",
    "products": "p = Mul(cube, x) q = Mul(x, p) r = Mul(x, q) s = Add(x, r) t = Mul(stretch, s)"
    " u = Tanh(t) v = Add(one, u) w = Mul(half, v) y = Mul(x, w)",
    "factored": "p = Mul(x, x) q = Mul(p, cube) r = Add(q, one) s = Mul(stretch, x)"
    " t = Mul(r, s) u = Tanh(t) v = Add(u, one) w = Mul(x, v) y = Mul(w, half)",
}
CONSTANTS = {
    "half": HALF, "one": ONE, "sqrt2": SQRT2, "cube": CUBE, "stretch": STRETCH,
    "three": np.float32(3),
}  # fmt: skip


def model(body: str, **changed: object) -> ModelProto:
    used = {n: v for n, v in (CONSTANTS | changed).items() if n in body}
    return parsed(f"g (float[N, M] x) => (float[N, M] y) {{ {body} }}", **used)


@pytest.mark.parametrize("spelling", ERF)
def test_gelu_by_erf_is_one_node_in_every_spelling(spelling: str) -> None:
    assert fused(model(ERF[spelling]), *SAMPLES) == {"com.microsoft:Gelu": 1}


@pytest.mark.parametrize("spelling", TANH)
def test_gelu_by_tanh_is_one_node_in_every_spelling(spelling: str) -> None:
    assert fused(model(TANH[spelling]), *SAMPLES, close=1e-4) == {"com.microsoft:FastGelu": 1}


def test_constants_may_have_axes_of_length_one() -> None:
    fitted = model(ERF["half last"], half=HALF.reshape(1, 1), one=ONE.reshape(1))
    assert fused(fitted, *SAMPLES) == {"com.microsoft:Gelu": 1}


@pytest.mark.parametrize(
    "changed",
    [
        {"sqrt2": np.float32(1.5)},
        {"one": np.float32(0.99)},
        {"half": np.float32(0.25)},
        {"half": HALF.reshape(1, 1, 1)},
        {"half": np.full(10, 0.5, np.float32)},
    ],
)
def test_what_is_nearly_gelu_stays(changed: dict[str, np.ndarray]) -> None:
    rank = max(2, np.ndim(changed.get("half", 0)))
    shape = "1, N, M" if rank == 3 else "N, M"
    body = ERF["half last"]
    constants = {n: v for n, v in (CONSTANTS | changed).items() if n in ("half", "one", "sqrt2")}
    near = parsed(f"g (float[N, M] x) => (float[{shape}] y) {{ {body} }}", **constants)
    operators = fused(near, {"x": normal(4, 10)})
    assert "com.microsoft:Gelu" not in operators
    assert operators["Erf"] == 1


def test_gelu_whose_middle_is_read_elsewhere_stays() -> None:
    watched = parsed(
        f"g (float[N, M] x) => (float[N, M] y, float[N, M] b) {{ {ERF['half last']} }}",
        half=HALF, one=ONE, sqrt2=SQRT2,
    )  # fmt: skip
    assert fused(watched, *SAMPLES)["Erf"] == 1


def test_gelu_inside_a_branch_is_fused() -> None:
    nested = parsed(
        """g (float[N, M] x, bool c) => (float[N, M] y) {
             y = If (c) <
               then_branch = t () => (float[N, M] p) {
                 a = Div(x, sqrt2) b = Erf(a) d = Add(b, one) e = Mul(x, d) p = Mul(e, half) },
               else_branch = f () => (float[N, M] q) { q = Neg(x) }> }""",
        half=HALF, one=ONE, sqrt2=SQRT2,
    )  # fmt: skip
    samples = [{"x": normal(2, 3), "c": np.array(c)} for c in (True, False)]
    assert fused(nested, *samples)["com.microsoft:Gelu"] == 1


GELU_THEN = TANH["products"].replace("y = ", "z = ")


def pooled(tail: str, body: str = "z = Sigmoid(x)") -> ModelProto:
    text = f"g (float[N, 3, L] x) => (float[N, 3, K] y) {{ {body} {tail} }}"
    used = {n: v for n, v in CONSTANTS.items() if n in body and n not in ("sqrt2", "three")}
    return parsed(text, **used)


WIDE = [{"x": normal(2, 3, 50, scale=4)}, {"x": -np.abs(normal(2, 3, 50, scale=4))},
        {"x": np.full((1, 3, 1), -0.7, np.float32)}]  # fmt: skip


@pytest.mark.parametrize(
    "tail",
    [
        "y = GlobalMaxPool(z)",
        "y = ReduceMax <axes = [2]> (z)",
        "y = ReduceMax <axes = [-1]> (z)",
    ],
)
def test_the_maximum_of_a_rising_activation_is_taken_before_it(tail: str) -> None:
    assert fused(pooled(tail), *WIDE) == {"ReduceMax": 1, "Sigmoid": 1}


def test_the_maximum_of_gelu_is_at_one_of_the_ends() -> None:
    operators = fused(pooled("y = GlobalMaxPool(z)", GELU_THEN), *WIDE, close=1e-4)
    assert operators == {"ReduceMax": 1, "ReduceMin": 1, "com.microsoft:FastGelu": 2, "Max": 1}


@pytest.mark.parametrize("activation", ["Abs", "Neg", "Cos", "Relu"])
def test_the_maximum_of_other_functions_stays_behind_them(activation: str) -> None:
    operators = fused(pooled("y = GlobalMaxPool(z)", f"z = {activation}(x)"), *WIDE)
    assert operators == {activation: 1, "GlobalMaxPool": 1}


def test_an_activation_that_is_read_elsewhere_stays_whole() -> None:
    both = parsed(
        "g (float[N, 3, L] x) => (float[N, 3, 1] y, float[N, 3, L] z)"
        " { z = Sigmoid(x) y = GlobalMaxPool(z) }"
    )
    assert fused(both, *WIDE)["GlobalMaxPool"] == 1
