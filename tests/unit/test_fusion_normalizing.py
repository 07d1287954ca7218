"""LayerNormalization and Softmax in pieces."""

from __future__ import annotations

import numpy as np
import pytest
from fusions import fused, normal, parsed
from onnx import ModelProto

EPSILON = np.float32(1e-5)
LAST = np.array([-1])
SAMPLES = (
    {"x": normal(2, 4, 6)},
    {"x": normal(3, 4, 6, scale=100)},
    {"x": normal(1, 4, 6, scale=1e-3)},
)

CENTERED = {
    "division": "m = ReduceMean <axes = [-1]> (x) d = Sub(x, m) s = Pow(d, two)"
    " v = ReduceMean <axes = [-1]> (s) e = Add(v, epsilon) r = Sqrt(e) n = Div(d, r)"
    " a = Mul(n, scale) y = Add(a, bias)",
    "reciprocal, operands turned": "m = ReduceMean <axes = [2]> (x) d = Sub(x, m) s = Mul(d, d)"
    " v = ReduceMean <axes = [2]> (s) e = Add(epsilon, v) r = Sqrt(e) i = Reciprocal(r)"
    " k = Mul(scale, i) a = Mul(k, d) y = Add(bias, a)",
}
MOMENTS = (
    "p = ReduceSum <keepdims = 0> (x, last) m = Mul(p, part) q = Mul(x, x)"
    " o = ReduceSum <keepdims = 0> (q, last) w = Mul(o, part) g = Mul(m, m) v = Sub(w, g)"
    " f = Max(zero, v) h = Unsqueeze(f, last) c = Unsqueeze(m, last) e = Add(h, epsilon)"
    " r = Sqrt(e) i = Reciprocal(r) k = Mul(i, scale) d = Sub(x, c) a = Mul(d, k) y = Add(a, bias)"
)
CONSTANTS = {
    "two": np.float32(2), "epsilon": EPSILON, "last": LAST, "zero": np.float32(0),
    "scale": normal(6, seed=1), "bias": normal(6, seed=2),
}  # fmt: skip


def model(body: str, *, opset: int = 17, **changed: np.ndarray) -> ModelProto:
    words = set(body.replace("(", " ").replace(")", " ").replace(",", " ").split())
    used = {n: v for n, v in (CONSTANTS | changed).items() if n in words}
    text = f"g (float[N, 4, 6] x) => (float[N, 4, 6] y) {{ {body} }}"
    return parsed(text, opset=opset, **used)


@pytest.mark.parametrize("spelling", CENTERED)
@pytest.mark.parametrize("opset", [13, 17])
def test_layer_normalization_is_one_node(spelling: str, opset: int) -> None:
    made = model(CENTERED[spelling], opset=opset)
    assert fused(made, *SAMPLES, close=1e-4) == {"LayerNormalization": 1}


def test_layer_normalization_by_moments_and_sums_is_one_node() -> None:
    made = model(MOMENTS, part=np.float32(1 / 6))
    assert fused(made, SAMPLES[0], SAMPLES[2], close=1e-3) == {"LayerNormalization": 1}


def test_layer_normalization_along_another_axis_is_one_node_between_transposes() -> None:
    body = CENTERED["division"].replace("[-1]", "[1]")
    made = model(body, scale=normal(4, 1), bias=normal(1, 4, 1))
    assert fused(made, *SAMPLES, close=1e-4) == {"LayerNormalization": 1, "Transpose": 2}


def test_scale_and_bias_may_be_missing() -> None:
    body = CENTERED["division"].replace("n = Div", "y = Div").split(" a = ")[0]
    assert fused(model(body), *SAMPLES, close=1e-4) == {"LayerNormalization": 1}


@pytest.mark.parametrize(
    ("body", "changed"),
    [
        (CENTERED["division"].replace("Sub(x, m)", "Add(x, m)"), {}),
        (CENTERED["division"].replace("Pow(d, two)", "Pow(x, two)"), {}),
        (CENTERED["division"].replace("v = ReduceMean <axes = [-", "v = ReduceMean <axes = ["), {}),
        (MOMENTS, {"part": np.float32(1 / 5)}),
        (CENTERED["division"], {"epsilon": np.float32(0.5)}),
    ],
)  # fmt: skip
def test_what_is_nearly_layer_normalization_stays(
    body: str, changed: dict[str, np.ndarray]
) -> None:
    operators = fused(model(body, **changed), SAMPLES[0])
    assert "LayerNormalization" not in operators
    assert operators["Sqrt"] == 1


def test_a_scale_per_place_stays_behind() -> None:
    made = model(CENTERED["division"], scale=normal(4, 6))
    assert fused(made, *SAMPLES, close=1e-4) == {"LayerNormalization": 1, "Mul": 1, "Add": 1}


def test_an_opset_is_raised_only_for_layer_normalization() -> None:
    from edgekit_converters import graph
    from edgekit_converters.normalization.fusion import fuse

    plain = model("y = Identity(x)", opset=13)
    fuse(plain)
    assert graph.opset(plain) == 13


def test_an_opset_is_not_raised_where_an_operator_would_mean_another_thing() -> None:
    made = parsed(
        "g (float[1, 4, 8, 6] x, float[2, 4] rois, int64[2] b)"
        " => (float[2, 4, 1, 1] o, float[1, 4, 8, 6] y)"
        f" {{ o = RoiAlign (x, rois, b) {CENTERED['division']} }}",
        opset=13,
        **{n: CONSTANTS[n] for n in ("two", "epsilon", "scale", "bias")},
    )
    boxes = np.array([[0, 0, 4, 4], [1, 1, 5, 5]], np.float32)
    sample = {"x": normal(1, 4, 8, 6), "rois": boxes, "b": np.zeros(2, np.int64)}
    assert "LayerNormalization" not in fused(made, sample)


STABLE = (
    "m = ReduceMax <axes = [-1]> (x) c = Max(low, m) d = Sub(x, c) p = Exp(d)"
    " s = ReduceSum (p, last) y = Div(p, s)"
)


def test_softmax_is_one_node() -> None:
    made = model(STABLE, low=np.float32(-np.inf))
    assert fused(made, *SAMPLES) == {"Softmax": 1}


def test_softmax_along_another_axis_is_one_node() -> None:
    body = STABLE.replace("[-1]", "[1]").replace("c = Max(low, m) ", "").replace("c)", "m)")
    assert fused(model(body, last=np.array([1])), *SAMPLES) == {"Softmax": 1}


@pytest.mark.parametrize(
    "body",
    [
        STABLE.replace("Exp(d)", "Exp(x)").replace("Div(p, s)", "Div(s, p)"),
        STABLE.replace("Sub(x, c)", "Sub(c, x)"),
        STABLE.replace("y = Div(p, s)", "t = Add(s, one) y = Div(p, t)"),
    ],
)
def test_what_is_nearly_softmax_stays(body: str) -> None:
    made = model(body, low=np.float32(-np.inf), one=np.float32(1))
    assert fused(made, SAMPLES[0])["Exp"] == 1
