"""Metrics of what is found: boxes, sequences, and whatever a callable of the user's judges."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.build.metrics import METRICS as NAMED
from edgekit.build.metrics import Meter, Metric, MetricOptions, Score, new_meter
from edgekit.build.metrics.detection import (
    Boxes,
    match,
    overlaps,
    read_boxes,
    recognised,
    suppress,
)
from edgekit.build.metrics.options import BoxLayout, CtcOptions, DetectionOptions
from edgekit.build.metrics.sequences import decode, edit_distance
from edgekit_contract.errors import Misused, Refused

Arrays = dict[str, np.ndarray]


def fed(
    name: str, samples: Sequence[tuple[Arrays, Arrays, list[int] | None]], **options: object
) -> Meter:
    meter = new_meter(Metric(name=name, options=MetricOptions(**options)))  # type: ignore[arg-type]
    for got, baseline, labels in samples:
        meter.add(got, baseline, None if labels is None else np.array(labels, np.int64))
    return meter


def found(meter: Meter) -> Score:
    scored = meter.score()
    assert scored is not None
    return scored


# --- detections

BOXES = np.float32([[0, 0, 10, 10], [20, 20, 30, 40], [50, 50, 60, 60]])
SCORES = np.float32([0.9, 0.8, 0.1])
CLASSES = np.array([1, 0, 2])


def separate(boxes: np.ndarray = BOXES, scores: np.ndarray = SCORES) -> Arrays:
    return {"boxes": boxes, "labels": CLASSES[: len(boxes)], "scores": scores}


def joined() -> Arrays:
    return {"out": np.hstack([BOXES, SCORES[:, None], CLASSES[:, None]])[None].astype(np.float32)}


def candidates(*, objectness: bool) -> Arrays:
    """Raw candidates: each box thrice, a little off, with falling scores."""
    rows = []
    for corners, score, kind in zip(BOXES, SCORES, CLASSES, strict=True):
        center = np.hstack([(corners[:2] + corners[2:]) / 2, corners[2:] - corners[:2]])
        for off in range(3):
            share = np.eye(3)[kind] * (1 if objectness else score - off / 50)
            own = [score - off / 50] if objectness else []
            rows.append([*(center + off / 10), *own, *share])
    array = np.float32(rows)[None]
    return {"out": array if objectness else np.swapaxes(array, 1, 2)}


@pytest.mark.parametrize(
    ("outputs", "layout"),
    [
        (separate(), BoxLayout.SEPARATE),
        ({k: v[None] for k, v in separate().items()}, BoxLayout.SEPARATE),
        ({"b": BOXES[None], "s": np.eye(3, dtype=np.float32)[None]}, BoxLayout.SEPARATE),
        (joined(), BoxLayout.CORNERS_SCORE_CLASS),
        ({"out": joined()["out"][0]}, BoxLayout.CORNERS_SCORE_CLASS),
        (candidates(objectness=True), BoxLayout.CENTER_OBJECTNESS_CLASSES),
        (candidates(objectness=False), BoxLayout.CENTER_CLASSES_FIRST),
    ],
)
def test_layout_follows_from_shapes_and_a_model_agrees_with_itself(
    outputs: Arrays, layout: BoxLayout
) -> None:
    assert recognised(outputs, DetectionOptions()).layout is layout
    meter = fed("detection", [(outputs, outputs, None)] * 3)
    assert found(meter).value == 1 and found(meter).rows == 3
    assert meter.remarks() == ()


@pytest.mark.parametrize("objectness", [True, False])
def test_raw_candidates_are_suppressed_to_one_a_thing(objectness: bool) -> None:
    (mine,), (want,) = (
        read_boxes(outputs, recognised(outputs, DetectionOptions()))
        for outputs in (candidates(objectness=objectness), joined())
    )
    assert np.allclose(mine.corners, want.corners) and np.allclose(mine.scores, want.scores)
    assert mine.classes.tolist() == want.classes.tolist() == [1, 0]


def test_value_is_f1_of_the_matches() -> None:
    moved = BOXES.copy()
    moved[1] += 8  # far off: one of two is found, and one box is too many
    samples = [(separate(moved), separate(), None), (separate(), separate(), None)]
    meter = fed("detection", samples)
    assert found(meter).value == pytest.approx(2 * 3 / (4 + 4))
    low, high = found(meter).low, found(meter).high
    assert low is not None and high is not None and low <= 0.75 <= high


def test_box_of_another_class_is_no_match() -> None:
    other = separate() | {"labels": np.array([2, 0, 2])}
    assert found(fed("detection", [(other, separate(), None)])).value == pytest.approx(1 / 2)


def test_models_that_find_different_numbers_of_boxes_are_compared() -> None:
    fewer = separate(BOXES[:1], SCORES[:1])
    none = separate(BOXES[:0], SCORES[:0])
    assert found(fed("detection", [(fewer, separate(), None)])).value == pytest.approx(2 / 3)
    assert found(fed("detection", [(none, separate(), None)])).value == 0


def test_nothing_found_where_nothing_is_is_right_and_told() -> None:
    nothing = separate(BOXES, SCORES / 10)
    meter = fed("detection", [(nothing, nothing, None)] * 2)
    assert found(meter).value == 1
    assert "detects nothing" in meter.remarks()[0]
    assert found(fed("detection", [(separate(), nothing, None)])).value == 0


def test_outputs_that_shapes_do_not_tell_apart_are_named_by_the_user() -> None:
    ssd = {
        "a": BOXES[None],
        "b": CLASSES[None].astype(np.float32),
        "c": SCORES[None],
        "d": np.float32([3]),
    }
    with pytest.raises(Refused, match=r"name them by \[metric.detection\]"):
        fed("detection", [(ssd, ssd, None)])
    named = DetectionOptions(boxes="a", scores="c", classes="b")
    assert found(fed("detection", [(ssd, ssd, None)], detection=named)).value == 1
    wrong = DetectionOptions(boxes="a", scores="b", classes="c")
    with pytest.raises(Refused, match="not between 0 and 1"):
        fed("detection", [(ssd, ssd, None)], detection=wrong)


@pytest.mark.parametrize(
    ("outputs", "options"),
    [
        ({"y": np.zeros((1, 10), np.float32)}, DetectionOptions()),
        ({"y": np.zeros((1, 5, 5), np.float32)}, DetectionOptions()),
        (joined(), DetectionOptions(layout=BoxLayout.SEPARATE)),
        (separate(), DetectionOptions(layout=BoxLayout.CORNERS_SCORE_CLASS)),
        (joined(), DetectionOptions(layout=BoxLayout.CORNERS_SCORE_CLASS, boxes="elsewhere")),
        (separate(), DetectionOptions(scores="boxes")),
        (separate(), DetectionOptions(boxes="nowhere")),
    ],
)
def test_outputs_that_are_no_detections_are_refused(
    outputs: Arrays, options: DetectionOptions
) -> None:
    with pytest.raises(Refused, match="metric"):
        fed("detection", [(outputs, outputs, None)], detection=options)


def test_option_outside_its_range_is_wrong_usage() -> None:
    with pytest.raises(Misused, match="iou is not above 0"):
        DetectionOptions(iou=0)


corner = st.integers(0, 12)


@given(st.lists(st.tuples(corner, corner, corner, corner), min_size=1, max_size=4))
def test_overlap_is_that_of_counted_squares(boxes: list[tuple[int, int, int, int]]) -> None:
    def squares(box: tuple[int, int, int, int]) -> set[tuple[int, int]]:
        return set(itertools.product(range(box[0], box[2]), range(box[1], box[3])))

    array = np.array(boxes, np.float64)
    for i, j in itertools.product(range(len(boxes)), repeat=2):
        a, b = squares(boxes[i]), squares(boxes[j])
        want = len(a & b) / len(a | b) if a | b else 0
        assert overlaps(array, array)[i, j] == pytest.approx(want)


def some_boxes(random: np.random.Generator, count: int) -> Boxes:
    low = random.uniform(0, 6, (count, 2))
    return Boxes(
        corners=np.hstack([low, low + random.uniform(1, 5, (count, 2))]),
        scores=np.sort(random.random(count))[::-1],
        classes=random.integers(0, 2, count),
    )


@given(st.integers(0, 8), st.integers(0, 8), st.integers(0, 1000))
def test_matching_is_greedy_by_score(mine: int, theirs: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    a, b = some_boxes(random, mine), some_boxes(random, theirs)
    shared = overlaps(a.corners, b.corners)
    free, matched = set(range(theirs)), 0
    for i in range(mine):
        able = [j for j in free if a.classes[i] == b.classes[j] and shared[i, j] >= 0.3]
        if able:
            free.remove(max(able, key=lambda j: shared[i, j]))
            matched += 1
    assert match(a, b, 0.3) == matched


@given(st.integers(0, 12), st.integers(0, 1000))
def test_of_boxes_that_overlap_the_best_is_left(count: int, seed: int) -> None:
    boxes = some_boxes(np.random.default_rng(seed), count)
    shared = overlaps(boxes.corners, boxes.corners)
    kept: list[int] = []
    for i in range(count):
        if all(boxes.classes[i] != boxes.classes[j] or shared[i, j] <= 0.4 for j in kept):
            kept.append(i)
    assert np.array_equal(suppress(boxes, 0.4).scores, boxes.scores[kept])


# --- sequences


def steps(*classes: int, of: int = 4) -> np.ndarray:
    """[time, classes] of scores that say these."""
    return np.eye(of, dtype=np.float32)[list(classes)]


def test_runs_are_made_one_and_blanks_are_dropped() -> None:
    (read,) = decode({"y": steps(0, 1, 1, 0, 1, 2, 2, 0, 3)}, MetricOptions())
    assert read.tolist() == [1, 1, 2, 3]
    last = MetricOptions(ctc=CtcOptions(blank=-1))
    (read,) = decode({"y": steps(0, 1, 1, 3, 1, 3)}, last)
    assert read.tolist() == [0, 1, 1]


def test_time_is_the_longer_axis_unless_told() -> None:
    row = steps(1, 2, 3)
    for array in (row, row[None], row[:, None]):
        (read,) = decode({"y": array}, MetricOptions())
        assert read.tolist() == [1, 2, 3]
    (read,) = decode({"y": row.T[None]}, MetricOptions(class_axis=1))
    assert read.tolist() == [1, 2, 3]
    many = decode({"y": row[:, None]}, MetricOptions(ctc=CtcOptions(time_axis=1)))
    assert [read.tolist() for read in many] == [[1], [2], [3]]


words = st.lists(st.integers(1, 3), max_size=7)


@given(words, words)
def test_edit_distance_is_that_of_the_recursion(a: list[int], b: list[int]) -> None:
    table = [[i + j if 0 in {i, j} else 0 for j in range(len(b) + 1)] for i in range(len(a) + 1)]
    for i, j in itertools.product(range(1, len(a) + 1), range(1, len(b) + 1)):
        table[i][j] = min(
            table[i - 1][j] + 1,
            table[i][j - 1] + 1,
            table[i - 1][j - 1] + (a[i - 1] != b[j - 1]),
        )
    assert edit_distance(np.array(a, int), np.array(b, int)) == table[-1][-1]


def test_agreement_of_sequences_is_with_float_or_with_the_labels() -> None:
    right, wrong, other = ({"y": steps(*s)} for s in ((1, 2, 3), (1, 2, 2), (3, 0, 2)))
    meter = fed("ctc", [(right, right, None), (wrong, right, None)])
    assert found(meter).value == pytest.approx((1 + 2 / 3) / 2)
    assert meter.remarks() == ("50.0% of 2 sequences are exactly float32's.",)
    meter = fed("ctc", [(right, other, [1, 2, 3, -1]), (wrong, other, [1, 2, -1, -1])])
    assert found(meter).value == 1
    assert "100.0% of 2 sequences are exactly the labels" in meter.remarks()[0]


@settings(deadline=None)
@given(st.integers(1, 4), st.integers(0, 100))
def test_agreement_of_sequences_is_symmetric_and_1_with_itself(rows: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    a, b = ({"y": random.random((rows, 9, 4)).astype(np.float32)} for _ in range(2))
    assert found(fed("ctc", [(a, a, None)])).value == 1
    forth, back = found(fed("ctc", [(a, b, None)])), found(fed("ctc", [(b, a, None)]))
    assert forth.value == pytest.approx(back.value) and forth.rows == rows


@pytest.mark.parametrize(
    ("shape", "labels", "options", "said"),
    [
        ((1, 10), None, {"class_axis": 2}, "batch, time, classes"),
        ((10,), None, {}, "batch, time, classes"),
        ((1, 9, 1), None, {}, "batch, time, classes"),
        ((1, 9, 4), None, {"ctc": CtcOptions(blank=4)}, "blank is 4, the model has 4"),
        ((1, 9, 4), None, {"ctc": CtcOptions(time_axis=2)}, "axis of the classes"),
        ((2, 9, 4), [1, 2, 3], {}, "3 labels for 2 sequences"),
    ],
)
def test_what_is_no_sequence_is_refused(
    shape: tuple[int, ...], labels: list[int] | None, options: dict[str, object], said: str
) -> None:
    outputs = {"y": np.zeros(shape, np.float32)}
    with pytest.raises(Refused, match=said):
        fed("ctc", [(outputs, outputs, labels)], **options)


# --- the user's own

METRICS = """
import numpy as np
def error(outputs, reference, labels):
    return -float(np.abs(outputs["y"] - reference["y"]).max())
def hit(outputs, reference, labels):
    return outputs["y"].argmax() == labels[0]
def nothing(outputs, reference, labels): pass
def text(outputs, reference, labels): return "0.9"
def array(outputs, reference, labels): return outputs["y"]
def huge(outputs, reference, labels):
    return 10**400
def nan(outputs, reference, labels): return np.float32("nan")
def pair(outputs, reference): return 1.0
def end(outputs, reference, labels): raise SystemExit(0)
def broken(outputs, reference, labels): return {}["no\\nkey"]
def write(outputs, reference, labels):
    outputs["y"][:] = 0
    return 1.0
def drop(outputs, reference, labels):
    reference.clear()
    return np.array(1.0)
number = 5
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "metrics_of_test.py").write_text(METRICS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "metrics_of_test", raising=False)
    return "metrics_of_test"


Y = {"y": np.float32([[1, 2]])}


def test_callable_is_judged_by_its_mean_over_the_samples(module: str) -> None:
    far = {"y": np.float32([[1, 5]])}
    scored = found(fed(f"{module}:error", [(Y, Y, None), (far, Y, None)]))
    assert (scored.value, scored.low, scored.high, scored.rows) == (-1.5, -3, 0, 2)
    assert found(fed(f"{module}:hit", [(Y, Y, [1]), (Y, Y, [0])])).value == 1 / 2


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nothing", "gave None"),
        ("text", "gave a str"),
        ("array", r"gave an array of shape \[1, 2\]"),
        ("nan", "gave nan"),
        ("huge", "gave inf"),
        ("pair", "raised TypeError: pair.. takes 2 positional arguments but 3 were given"),
        ("end", "raised SystemExit: 0"),
        ("broken", "raised KeyError: 'no.*key'"),
        ("write", "raised ValueError: assignment destination is read-only"),
    ],
)
def test_callable_that_gives_no_number_is_named_with_its_sample(
    module: str, name: str, said: str
) -> None:
    meter = new_meter(Metric(name=f"{module}:{name}"))
    with pytest.raises(Refused, match=f"^{module}:{name}, sample 0: the metric {said}") as refusal:
        meter.add(Y, Y, None)
    assert "\n" not in str(refusal.value)


def test_callable_cannot_spoil_what_other_metrics_see(module: str) -> None:
    baseline = dict(Y)
    assert found(fed(f"{module}:drop", [(Y, baseline, None)] * 2)).value == 1
    assert list(baseline) == ["y"] and Y["y"].flags.writeable


def test_callable_that_is_none_is_wrong_usage(module: str) -> None:
    for name, said in (("number", "not callable"), ("absent", "AttributeError")):
        with pytest.raises(Misused, match=said):
            new_meter(Metric(name=f"{module}:{name}"))


# --- anything at all

DTYPES = ("float32", "float16", "float64", "int64", "uint8", "int8", "bool", "uint32")


@settings(deadline=None, max_examples=150)
@given(
    st.sampled_from(sorted(NAMED)),
    st.lists(
        st.tuples(st.lists(st.integers(0, 7), max_size=4), st.sampled_from(DTYPES)),
        min_size=1,
        max_size=3,
    ),
    st.sampled_from([0.0, 0.5, 1.0]),
    st.one_of(st.none(), st.lists(st.integers(-2, 8), max_size=8)),
    st.integers(0, 1000),
)
def test_outputs_of_any_shape_and_type_give_a_score_or_a_sentence(
    name: str,
    specs: list[tuple[list[int], str]],
    strange: float,
    labels: list[int] | None,
    seed: int,
) -> None:
    random = np.random.default_rng(seed)

    def outputs(spoiled: Arrays | None) -> Arrays:
        arrays = {}
        for index, (shape, dtype) in enumerate(specs):
            array = np.asarray(random.random(shape) * random.choice([1, 50])).astype(dtype)
            if array.dtype.kind == "f":
                where = random.random(shape) < strange / 2
                array[...] = np.where(where, random.choice([np.nan, np.inf, -np.inf]), array)
                if spoiled is not None:  # a variant is out if it is not finite where float32 is
                    want = spoiled[str(index)]
                    array[...] = np.where(np.isfinite(want) != np.isfinite(array), want, array)
            arrays[str(index)] = array
        return arrays

    samples = []
    for _ in range(3):
        baseline = outputs(None)
        samples.append((outputs(baseline), baseline, labels))
    try:
        meter = fed(name, samples)
        scored = meter.score()
    except Refused as error:
        assert str(error).endswith(".") and "\n" not in str(error)
        return
    assert scored is not None and -1 <= scored.value <= 1 + 1e-9
    if scored.low is not None and scored.high is not None:
        assert -1 <= scored.low <= scored.high <= 1 + 1e-9
    assert all(said.endswith(".") for said in meter.remarks())
