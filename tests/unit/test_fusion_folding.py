"""Copies that go, shapes and constants that are known, and branches that no input takes."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from fusions import fused, normal, outputs, parsed
from onnx import ModelProto

from edgekit_converters import graph
from edgekit_converters.normalization.fusion import fuse

X = {"x": normal(2, 3, 4)}


def model(body: str, shape: str = "N, 3, 4", **constants: np.ndarray) -> ModelProto:
    return parsed(f"g (float[N, 3, 4] x) => (float[{shape}] y) {{ {body} }}", **constants)


@pytest.mark.parametrize(
    ("body", "constants"),
    [
        ("a = Identity(x)", {}),
        ("a = Dropout(x)", {}),
        ("a = Cast <to = 1> (x)", {}),
        ("a = Transpose <perm = [0, 1, 2]> (x)", {}),
        ("a = Slice(x, s, e, k)", {"s": [0, 0], "e": [10**9, 2**31 - 1], "k": [0, 2]}),
        ("a = Slice(x, s, e)", {"s": [0, 0, 0], "e": [2**63 - 1, 3, 9]}),
        ("n = Shape(x) a = Reshape(x, n)", {}),
        ("n = Shape(x) a = Expand(x, n)", {}),
        ("a = Expand(x, n)", {"n": [3, 1]}),
        ("b = Unsqueeze(x, k) a = Squeeze(b, k)", {"k": [1]}),
        ("b = Transpose <perm = [2, 0, 1]> (x) a = Transpose <perm = [1, 2, 0]> (b)", {}),
    ],
)
def test_copies_go(body: str, constants: dict[str, list[int]]) -> None:
    held = {name: np.array(value, np.int64) for name, value in constants.items()}
    assert fused(model(f"{body} y = Neg(a)", **held), X, {"x": normal(1, 3, 4)}) == {"Neg": 1}


@pytest.mark.parametrize(
    ("body", "constants"),
    [
        ("a = Slice(x, s, e, k)", {"s": [0], "e": [1], "k": [0]}),
        ("a = Slice(x, s, e, k)", {"s": [0], "e": [100], "k": [0]}),
        ("a = Slice(x, s, e, k, t)", {"s": [-1], "e": [-100], "k": [1], "t": [-1]}),
        ("a = Expand(x, n)", {"n": [2, 1, 1]}),
        ("a = Transpose <perm = [0, 2, 1]> (x)", {}),
        ("b = Cast <to = 11> (x) a = Cast <to = 1> (b)", {}),
    ],
)
def test_what_moves_or_may_cut_stays(body: str, constants: dict[str, list[int]]) -> None:
    held = {name: np.array(value, np.int64) for name, value in constants.items()}
    made = parsed(f"g (float[N, 3, 4] x) => (float[] y) {{ {body} y = Neg(a) }}", **held)
    assert fused(made, X).total() == len(made.graph.node)


def test_what_the_model_returns_keeps_its_name() -> None:
    made = parsed(
        "g (float[N] x) => (float[N] y, float[N] z) { a = Neg(x) y = Identity(a) z = Identity(x) }"
    )
    assert fused(made, {"x": normal(5)}) == {"Neg": 1, "Identity": 1}


def test_a_target_computed_from_the_shape_is_constant_for_every_length() -> None:
    made = model(
        "n = Shape(x) b = Gather(n, zero) u = Unsqueeze(b, axis) t = Concat <axis = 0> (u, twelve)"
        " y = Reshape(x, t)",
        "N, 12",
        zero=np.array(0), axis=np.array([0]), twelve=np.array([12]),
    )  # fmt: skip
    assert fused(made, X, {"x": normal(7, 3, 4)}) == {"Reshape": 1}


def test_open_lengths_that_stay_on_their_axis_are_copied() -> None:
    made = parsed(
        "g (float[N, M, 12] x) => (float[N, M, 3, 4] y) { n = Shape(x) b = Gather(n, two)"
        " t = Concat <axis = 0> (b, heads) y = Reshape(x, t) }",
        two=np.array([0, 1]), heads=np.array([3, 4]),
    )  # fmt: skip
    assert fused(made, {"x": normal(2, 5, 12)}, {"x": normal(3, 1, 12)}) == {"Reshape": 1}


def test_a_target_with_two_open_lengths_is_computed_as_before() -> None:
    made = parsed(
        "g (float[N, M, 4] x) => (float[M, N, 4] y) { n = Shape(x) t = Gather(n, order)"
        " y = Reshape(x, t) }",
        order=np.array([1, 0, 2]),
    )
    assert fused(made, {"x": normal(2, 5, 4)}, {"x": normal(3, 1, 4)})["Shape"] == 1


def test_operators_on_constants_are_folded_and_random_ones_are_not() -> None:
    made = model(
        "a = Concat <axis = 0> (p, q) b = Transpose <perm = [1, 0]> (a)"
        " r = RandomNormal <shape = [4]> ()"
        " s = Mul(r, zero) c = MatMul(x, b) y = Add(c, s)",
        p=normal(1, 4), q=normal(3, 4), zero=np.float32(0),
    )  # fmt: skip
    assert fused(made, X) == {"MatMul": 1, "RandomNormal": 1, "Mul": 1, "Add": 1}


def test_a_large_weight_in_use_is_not_stored_in_a_second_form() -> None:
    made = parsed(
        "g (int64[N] i) => (float[N, 300] y) { e = Gather(w, i) t = Transpose <perm = [1, 0]> (w)"
        " y = MatMul(e, t) }",
        w=normal(300, 200),
    )
    assert fused(made, {"i": np.array([1, 7])}, close=1e-3)["Transpose"] == 1


NESTED = """g (float[N, 3, L] x, bool flag) => (float[] y) {{
  s = Shape(x) n = Gather(s, at) c = Equal(n, one)
  a = If (c) <then_branch = t () => (float[] p) {{ p = Squeeze(x, axis) }},
              else_branch = f () => (float[] q) {{ q = Identity(x) }}>
  {rest} }}"""
AT = {"at": np.array([-1]), "one": np.array([1]), "axis": np.array([-1])}


def squeezing(rest: str, **constants: np.ndarray) -> ModelProto:
    """The rank of `a` depends on the length of x."""
    return parsed(NESTED.format(rest=rest), **AT, **constants)


def test_a_branch_with_which_the_model_always_fails_is_no_choice() -> None:
    made = squeezing(
        "k = Shape(a) r = Size(k) e = Equal(r, two)"
        " b = If (e) <then_branch = u () => (float[] v) { v = Neg(a) },"
        " else_branch = w () => (float[] z) { z = Abs(a) }>"
        " y = Gemm(b, m)",
        two=np.array(2), m=normal(3, 5),
    )  # fmt: skip
    sample = {"x": normal(2, 3, 1), "flag": np.array(False)}
    assert fused(made, sample) == {"Squeeze": 1, "Neg": 1, "Gemm": 1}
    fuse(made)
    with pytest.raises(Exception, match=r"[Ss]queeze"):
        outputs(made, {"x": normal(2, 3, 2), "flag": np.array(False)})


def test_a_choice_with_which_the_model_can_run_both_ways_stays() -> None:
    made = squeezing("y = Neg(a)")
    samples = [{"x": normal(2, 3, n), "flag": np.array(False)} for n in (1, 4)]
    assert fused(made, *samples)["If"] == 1


def test_a_failure_that_only_another_branch_would_meet_decides_nothing() -> None:
    made = squeezing(
        "y = If (flag) <then_branch = u () => (float[] v) { v = Gemm(a, m) },"
        " else_branch = w () => (float[] z) { z = Neg(a) }>",
        m=normal(3, 5),
    )
    samples = [
        {"x": normal(2, 3, 1), "flag": np.array(True)},
        {"x": normal(2, 3, 1), "flag": np.array(False)},
        {"x": normal(2, 3, 4), "flag": np.array(False)},
    ]
    assert fused(made, *samples)["If"] == 2


def test_equal_names_in_branches_that_never_meet_are_told_apart() -> None:
    made = parsed(
        """g (float[N, 4] x, bool c) => (float[N, K] y) {
             y = If (c) <
               then_branch = t () => (float[] p) <float[4, 2] w = {1,2,3,4,5,6,7,8}> {
                 n = Shape(x) r = Reshape(x, n) a = Neg(r) p = MatMul(a, w) },
               else_branch = f () => (float[] q) <float[4, 1] w = {4,3,2,1}> {
                 a = Abs(x) q = MatMul(a, w) }> }"""
    )
    samples = [{"x": normal(3, 4), "c": np.array(c)} for c in (True, False)]
    assert fused(made, *samples) == {"If": 1, "Neg": 1, "Abs": 1, "MatMul": 2}


def test_a_loop_is_folded_inside_and_still_loops() -> None:
    made = parsed(
        """g (float[N] x, int64 times) => (float[N] y) {
             y = Loop (times, go, x) <body = b
                 (int64 i, bool c, float[N] v) => (bool d, float[N] w) {
               d = Identity(c) s = Shape(v) r = Reshape(v, s) t = Tanh(r) w = Add(t, x) }> }""",
        go=np.array(True),
    )
    samples = [{"x": normal(5), "times": np.array(n)} for n in (0, 1, 3)]
    operators = fused(made, *samples)
    assert operators["Loop"] == 1
    assert operators["Reshape"] == 0


def test_inputs_and_outputs_keep_their_names_and_a_second_run_changes_nothing() -> None:
    made = model("n = Shape(x) a = Reshape(x, n) y = Neg(a)")
    fuse(made)
    assert [v.name for v in (*made.graph.input, *made.graph.output)] == ["x", "y"]
    assert fuse(made) == Counter()
    assert graph.operators(made) == {"Neg": 1}
