"""What counts as the same, when a model is compared with its framework."""

from __future__ import annotations

import numpy as np
import pytest

from edgekit_contract.errors import Refused
from edgekit_converters.sources.agreement import Agreement, Disagrees, add

SCORES = np.random.default_rng(0).standard_normal((200, 10)).astype(np.float32)


def agreement(want: np.ndarray, got: np.ndarray) -> Agreement:
    return add(Agreement(), {"y": want}, {"y": got})


def test_last_bits_are_no_difference_and_are_told() -> None:
    found = agreement(SCORES, SCORES + np.float32(1e-6))
    found.demand("m.pt2", "torch 2.13.0", jumps=False)
    said = found.sentence("torch 2.13.0", "samples of v.npz")
    assert said.startswith(
        "Converted from torch 2.13.0, and compared with it on 1 samples of v.npz: the greatest "
        "difference is 1e-06"
    ) or "9.5e-07" in said or "1.2e-06" in said  # fmt: skip
    assert "of 200 rows of scores 200" in said or "rows of scores" in said


def test_difference_is_named_with_its_output_and_size() -> None:
    other = SCORES.copy()
    other[3, 4] += 0.5
    with pytest.raises(Disagrees, match=r"output 'y' differs by up to 0\.5 .* in 1 of 200 rows"):
        agreement(SCORES, other).demand("m.pt2", "torch", jumps=False)


def test_step_of_a_model_of_steps_is_allowed_in_one_row_of_a_hundred() -> None:
    other = SCORES.copy()
    other[:2] = -other[:2]
    agreement(SCORES, other).demand("m.ubj", "xgboost", jumps=True)
    assert "2 rows are off by a step" in agreement(SCORES, other).sentence("xgboost", "samples")
    other[:3] = -SCORES[:3]
    with pytest.raises(Disagrees):
        agreement(SCORES, other).demand("m.ubj", "xgboost", jumps=True)


def test_other_top_1_counts_only_where_it_is_clear() -> None:
    want = np.array([[1.0, 0.0], [0.5, 0.5 + 1e-7]], np.float32)
    agreement(want, want[:, ::-1][:, ::-1]).demand("m", "torch", jumps=False)
    near = agreement(want, np.array([[1.0, 0.0], [0.5 + 1e-7, 0.5]], np.float32))
    near.demand("m", "torch", jumps=False)
    assert near.outputs["y"].clear == 1


@pytest.mark.parametrize(
    "other",
    [np.zeros((200, 9), np.float32), np.where(SCORES > 2, np.nan, SCORES), SCORES[:100]],
    ids=["shape", "nan", "rows"],
)
def test_other_shape_or_nan_is_a_difference(other: np.ndarray) -> None:
    with pytest.raises(Disagrees, match="another shape, or NaN elsewhere"):
        agreement(SCORES, other).demand("m", "torch", jumps=False)


def test_integers_must_be_the_same() -> None:
    classes = SCORES.argmax(1)
    agreement(classes, classes.astype(np.int32)).demand("m", "torch", jumps=False)
    with pytest.raises(Disagrees, match="in 200 of 200 rows"):
        agreement(classes, classes + 1).demand("m", "torch", jumps=False)


def test_column_is_the_same_as_a_row() -> None:
    agreement(SCORES[:, 0], SCORES[:, :1]).demand("m", "torch", jumps=False)


def test_what_was_not_compared_is_told() -> None:
    found = add(Agreement(), {"label": SCORES}, {"label": SCORES, "probabilities": SCORES})
    assert found.sentence("x", "samples").endswith("; not compared: probabilities.")
    assert "not compared" not in agreement(SCORES, SCORES).sentence("x", "samples")


def test_nothing_to_compare_is_refused() -> None:
    with pytest.raises(Refused, match="could be compared"):
        add(Agreement(), {"label": SCORES}, {"y": SCORES}).demand("m", "torch", jumps=False)
