"""One-hot products as look-ups, and tables that hold what follows them."""

from __future__ import annotations

import numpy as np
import pytest
from fusions import fused, normal, parsed
from onnx import ModelProto

TABLE = normal(7, 5)
INSIDE = np.array([[0, 6, 3], [1, 1, 5]])
OUTSIDE = np.array([[-1, 7, 2**31 - 1], [-(2**31), -7, 3]])


def one_hot(
    kind: str = "int64", column: str = "Unsqueeze(ids, last)", tail: str = "y = MatMul(h, table)",
    **changed: np.ndarray,
) -> ModelProto:  # fmt: skip
    constants = {
        "last": np.array([-1], np.int64),
        "numbers": np.arange(7, dtype=kind).reshape(1, 1, 7),
        "table": TABLE,
    } | changed
    return parsed(
        f"g ({kind}[N, 3] ids) => (float[N, 3, 5] y)"
        f" {{ c = {column} e = Equal(c, numbers) h = Cast <to = 1> (e) {tail} }}",
        **constants,
    )


@pytest.mark.parametrize("kind", ["int64", "int32"])
def test_a_one_hot_product_is_a_lookup_and_other_numbers_give_zeros(kind: str) -> None:
    samples = [{"ids": ids.astype(kind)} for ids in (INSIDE, OUTSIDE)]
    assert fused(one_hot(kind), *samples) == {"Clip": 1, "Gather": 1}


def test_a_column_that_is_broadcast_before_is_looked_up_as_well() -> None:
    made = parsed(
        "g (int64[N, 3] ids) => (float[N, 3, 5] y) {"
        " s = Shape(ids) n = Slice(s, zero, first) t = Concat <axis = 0> (n, three, first)"
        " r = Reshape(ids, open) c = Expand(r, t) e = Equal(numbers, c)"
        " h = Cast <to = 1> (e) y = MatMul(h, table) }",
        zero=np.array([0]), first=np.array([1]), three=np.array([3]),
        open=np.array([-1, 3, 1]), numbers=np.arange(7).reshape(1, 1, 7), table=TABLE,
    )  # fmt: skip
    operators = fused(made, {"ids": INSIDE}, {"ids": OUTSIDE})
    assert operators == {"Clip": 1, "Gather": 1}


@pytest.mark.parametrize(
    "changed",
    [
        {"numbers": np.array([0, 1, 2, 3, 4, 6, 5]).reshape(1, 1, 7)},
        {"numbers": np.arange(1, 8).reshape(1, 1, 7)},
        {"table": np.where(TABLE[2, 2] == TABLE, np.float32(np.inf), TABLE)},
    ],
)
def test_a_product_that_is_not_quite_a_lookup_stays(changed: dict[str, np.ndarray]) -> None:
    operators = fused(one_hot(**changed), {"ids": INSIDE})
    assert operators["MatMul"] == 1
    assert "Gather" not in operators


def test_numbers_along_another_axis_are_not_a_one_hot_row() -> None:
    made = parsed(
        "g (int64[N, 7] ids) => (float[N, 1, 5] y) {"
        " c = Unsqueeze(ids, middle) e = Equal(c, numbers) h = Cast <to = 1> (e)"
        " y = MatMul(h, table) }",
        middle=np.array([1]), numbers=np.arange(7).reshape(1, 1, 7), table=TABLE,
    )  # fmt: skip
    ids = np.random.default_rng(0).integers(0, 7, (2, 7))
    assert fused(made, {"ids": ids})["MatMul"] == 1


def lookup(tail: str, shape: str = "N, 3, 5", **constants: np.ndarray) -> ModelProto:
    return parsed(
        f"g (int64[N, 3] ids) => (float[{shape}] y) {{ e = Gather(table, ids) {tail} }}",
        table=TABLE,
        **constants,
    )


def test_what_follows_a_lookup_goes_into_the_table() -> None:
    made = lookup(
        "a = Mul(e, scale) b = Add(bias, a) c = Sub(one, b) y = Tanh(c)",
        scale=normal(5), bias=normal(1, 1, 5), one=np.float32(1),
    )  # fmt: skip
    assert fused(made, {"ids": INSIDE}) == {"Gather": 1}


@pytest.mark.parametrize(
    ("tail", "constants"),
    [
        ("y = Add(e, places)", {"places": normal(3, 5)}),
        ("y = Softmax(e)", {}),
        ("a = Tanh(e) y = Add(a, e)", {}),
        ("y = CumSum(e, axis)", {"axis": np.array(1)}),
    ],
)
def test_what_depends_on_the_place_or_on_other_rows_stays_behind(
    tail: str, constants: dict[str, np.ndarray]
) -> None:
    made = lookup(tail, **constants)
    assert fused(made, {"ids": INSIDE}).total() == len(made.graph.node)


def test_a_constant_that_adds_an_axis_stays_behind() -> None:
    made = lookup("y = Add(e, bias)", "1, N, 3, 5", bias=normal(1, 1, 1, 5))
    assert fused(made, {"ids": INSIDE}) == {"Gather": 1, "Add": 1}


def test_a_table_with_another_reader_stays_one_table() -> None:
    tied = parsed(
        "g (int64[N, 3] ids) => (float[N, 3, 300] y) { e = Gather(table, ids) a = Tanh(e)"
        " t = Transpose <perm = [1, 0]> (table) y = MatMul(a, t) }",
        table=normal(300, 200),
    )
    operators = fused(tied, {"ids": INSIDE}, close=1e-3)
    assert operators == {"Gather": 1, "Tanh": 1, "Transpose": 1, "MatMul": 1}
