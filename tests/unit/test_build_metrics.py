"""Metrics against their definitions written out, and what they say of data that do not do."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.build.metrics import (
    METRICS,
    Meter,
    Metric,
    MetricOptions,
    Score,
    new_meter,
    resolve_metric,
    wilson_interval,
)
from edgekit.build.metrics import ranking as ranking_module
from edgekit.build.metrics.intervals import Replicates
from edgekit.build.project import load_project
from edgekit_contract.errors import Misused, Refused

Arrays = dict[str, np.ndarray]


def floats(values: object) -> Arrays:
    return {"y": np.array(values, np.float32)}


def fed(
    name: str,
    samples: Sequence[tuple[Arrays, Arrays, list[int] | None]],
    options: MetricOptions | None = None,
) -> Meter:
    meter = new_meter(Metric(name=name, options=options or MetricOptions()))
    for got, baseline, labels in samples:
        meter.add(got, baseline, None if labels is None else np.array(labels, np.int64))
    return meter


def score(
    name: str,
    got: object,
    baseline: object,
    labels: list[int] | None = None,
    options: MetricOptions | None = None,
) -> float:
    return found(fed(name, [(floats(got), floats(baseline), labels)], options)).value


def found(meter: Meter) -> Score:
    scored = meter.score()
    assert scored is not None
    return scored


def labelled(name: str, scores: np.ndarray, labels: np.ndarray, **options: object) -> Meter:
    """One row a sample, as data come."""
    samples = [
        ({"y": row[None]}, {"y": row[None]}, [int(label)])
        for row, label in zip(scores, labels, strict=True)
    ]
    return fed(name, samples, MetricOptions(**options))  # type: ignore[arg-type]


SMALL = np.float32([[0.1, 0.9], [0.8, 0.2]])


@pytest.mark.parametrize("name", METRICS)
def test_metric_has_no_score_before_the_first_sample(name: str) -> None:
    meter = new_meter(Metric(name=name))
    assert meter.score() is None
    assert meter.remarks() == ()


def test_top1_counts_against_labels_and_agreement_against_float() -> None:
    got, baseline = [[1, 2], [3, 1], [0, 9]], [[1, 2], [1, 3], [0, 9]]
    assert score("top1", got, baseline, [1, 1, 1]) == pytest.approx(2 / 3)
    assert score("agreement", got, baseline) == pytest.approx(2 / 3)


@given(st.integers(6, 9), st.integers(1, 20), st.integers(0, 1000))
def test_top5_is_whether_the_label_is_among_the_first_five_of_a_stable_sort(
    classes: int, rows: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    scores = random.integers(0, 4, (rows, classes)).astype(np.float32)  # many ties
    labels = random.integers(0, classes, rows)
    order = np.argsort(-scores, axis=1, kind="stable")
    for name, top in (("top5", 5), ("top1", 1)):
        hits = sum(label in row[:top] for row, label in zip(order, labels, strict=True))
        assert score(name, scores, scores, labels.tolist()) == pytest.approx(hits / rows)


def test_top5_of_five_classes_is_refused_since_it_is_always_right() -> None:
    with pytest.raises(Refused, match="always right: choose --metric top1"):
        score("top5", np.zeros((1, 5)), np.zeros((1, 5)), [0])


def f1_written_out(labels: np.ndarray, guesses: np.ndarray, classes: Sequence[int]) -> float:
    each = []
    for c in classes:
        hits = int(((labels == c) & (guesses == c)).sum())
        extra = int(((labels != c) & (guesses == c)).sum())
        missed = int(((labels == c) & (guesses != c)).sum())
        each.append(2 * hits / (2 * hits + extra + missed) if hits + extra + missed else 0.0)
    return float(np.mean(each))


@settings(deadline=None)
@given(st.integers(2, 5), st.integers(1, 30), st.integers(0, 1000))
def test_f1_is_the_mean_over_the_classes_of_the_data(classes: int, rows: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    scores = random.standard_normal((rows, classes)).astype(np.float32)
    labels = random.integers(0, classes, rows)
    scored = found(labelled("f1", scores, labels))
    present = sorted(set(labels.tolist()))
    assert scored.value == pytest.approx(f1_written_out(labels, scores.argmax(axis=1), present))
    assert scored.low is not None and scored.high is not None
    assert 0 <= scored.low <= scored.high <= 1 and scored.rows == rows


def test_single_score_is_yes_from_a_half_on_and_logits_from_zero_on() -> None:
    labels = np.array([0, 1, 1, 0])
    chances = np.float32([[0.2], [0.5], [0.4], [0.1]])
    logits = np.float32([[-2.0], [0.1], [-0.1], [-3.0]])
    for scores, told in ((chances, 0), (logits, 1)):
        for name, value in (("top1", 3 / 4), ("f1", 2 / 3)):
            meter = labelled(name, scores, labels)
            assert found(meter).value == pytest.approx(value)
            assert len(meter.remarks()) == told
    assert found(labelled("top1", logits, labels, threshold=-1.0)).value == 1


def test_agreement_of_a_single_score_is_of_yes_and_no() -> None:
    assert score("agreement", [[0.6], [0.4]], [[0.9], [0.51]]) == pytest.approx(1 / 2)


def auc_written_out(scores: np.ndarray, is_class: np.ndarray) -> float:
    pairs = list(itertools.product(scores[is_class], scores[~is_class]))
    return sum((a > b) + (a == b) / 2 for a, b in pairs) / len(pairs)


@settings(deadline=None)
@given(st.integers(2, 40), st.integers(0, 1000))
def test_auc_is_the_share_of_pairs_in_order_with_ties_as_halves(rows: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    scores = random.integers(0, 6, (rows, 1)).astype(np.float32)
    labels = random.integers(0, 2, rows)
    labels[:2] = 0, 1
    want = auc_written_out(scores[:, 0], labels == 1)
    assert found(labelled("auc", scores, labels)).value == pytest.approx(want)
    softmax = np.hstack([1 - scores / 8, scores / 8])
    assert found(labelled("auc", softmax, labels)).value == pytest.approx(want)


@settings(deadline=None)
@given(st.integers(3, 30), st.integers(0, 1000))
def test_auc_of_many_classes_is_the_mean_of_one_against_the_rest(rows: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    scores = random.standard_normal((rows, 4)).astype(np.float32)
    labels = random.integers(0, 3, rows)  # no row of class 3
    labels[:3] = 0, 1, 2
    want = np.mean([auc_written_out(scores[:, c], labels == c) for c in range(3)])
    meter = labelled("auc", scores, labels)
    assert found(meter).value == pytest.approx(want)
    assert any("1 of the 4 classes (3)" in said for said in meter.remarks())


def test_auc_of_one_class_is_refused() -> None:
    with pytest.raises(Refused, match="single class"):
        found(labelled("auc", SMALL, np.array([1, 1])))


def test_auc_interval_is_as_wide_as_auc_scatters_over_data() -> None:
    random = np.random.default_rng(5)
    values, widths = [], []
    for _ in range(200):
        labels = random.integers(0, 2, 80)
        scores = (random.standard_normal(80) + labels).astype(np.float32)
        scored = found(fed("auc", [(floats(scores[:, None]), floats(scores[:, None]), [*labels])]))
        values.append(scored.value)
        assert scored.low is not None and scored.high is not None
        widths.append(scored.high - scored.low)
    assert np.mean(widths) == pytest.approx(2 * 1.96 * np.std(values), rel=0.15)


def test_auc_of_more_rows_than_are_kept_is_of_a_sample_and_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ranking_module, "KEPT", 2000)
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, 20_000)
    scores = (random.standard_normal(20_000) + labels).astype(np.float32)[:, None]
    parts = [
        (floats(scores[i : i + 100]), floats(scores[i : i + 100]), labels[i : i + 100].tolist())
        for i in range(0, 20_000, 100)
    ]
    meter = fed("auc", parts)
    scored = found(meter)
    assert scored.low is not None and scored.high is not None
    assert scored.low < 0.7602 < scored.high  # Phi(1 / sqrt(2))
    assert scored.rows == 20_000 and "2000 rows, drawn from 20000" in meter.remarks()[-1]


def test_r2_sees_a_bias_that_cosine_does_not() -> None:
    baseline = [[100.0], [101.0], [102.0]]
    shifted = [[101.0], [102.0], [103.0]]
    assert score("cosine", shifted, baseline) > 0.99
    assert score("r2", shifted, baseline) < 0


@pytest.mark.parametrize("name", ["r2", "cosine", "mse"])
def test_equal_outputs_score_1_even_where_they_are_constant(name: str) -> None:
    assert score(name, [[0.0, 0.0]], [[0.0, 0.0]]) == 1
    assert score(name, [[5.0, 5.0]], [[5.0, 5.0]]) == 1


@settings(deadline=None)
@given(st.integers(1, 12), st.integers(2, 9), st.floats(1e-4, 1e4), st.integers(0, 1000))
def test_r2_cosine_and_mse_are_those_of_all_elements_at_once(
    samples: int, width: int, scale: float, seed: int
) -> None:
    random = np.random.default_rng(seed)
    y = scale * random.standard_normal((samples, width))
    x = y + 0.3 * scale * random.standard_normal((samples, width))
    meters = {
        name: fed(name, [({"y": a}, {"y": b}, None) for a, b in zip(x, y, strict=True)])
        for name in ("r2", "cosine", "mse")
    }
    error = ((x - y) ** 2).sum()
    want = {
        "r2": max(-1, 1 - error / ((y - y.mean()) ** 2).sum()),
        "cosine": (x * y).sum() / np.sqrt((x * x).sum() * (y * y).sum()),
        "mse": max(-1, 1 - error / (y * y).sum()),
    }
    assert {name: found(m).value for name, m in meters.items()} == pytest.approx(want, abs=1e-9)
    assert f"{((x - y) ** 2).mean():.3g} of 'y'" in meters["mse"].remarks()[0]


def test_worst_output_decides_unless_one_is_named() -> None:
    good = np.arange(10.0)
    outputs, baseline = {"a": good, "b": -good}, {"a": good, "b": good}
    assert found(fed("r2", [(outputs, baseline, None)])).value < 0
    assert found(fed("r2", [(outputs, baseline, None)], MetricOptions(output="a"))).value == 1
    with pytest.raises(Refused, match="outputs are a, b"):
        fed("r2", [(outputs, baseline, None)], MetricOptions(output="c"))


def test_integers_are_left_out_of_r2_and_compared_by_equality_in_agreement() -> None:
    off = {"class": np.array([7, 2]), "scores": SMALL}
    baseline = {"class": np.array([0, 2]), "scores": SMALL}
    assert found(fed("r2", [(off, baseline, None)])).value == 1
    assert found(fed("agreement", [(off, baseline, None)])).value == pytest.approx(1 / 2)
    only = {"class": np.array([0, 2])}
    with pytest.raises(Refused, match=r"'class' is int64.*--metric agreement"):
        fed("r2", [(only, only, None)])


def test_quantized_integers_are_numbers() -> None:
    steps = {"y": np.array([[10, 200]], np.uint8)}
    near = {"y": np.array([[11, 199]], np.uint8)}
    assert 0.99 < found(fed("r2", [(near, steps, None)])).value < 1
    assert found(fed("agreement", [(near, steps, None)])).value == 1


def test_classes_of_a_classical_model_are_compared_with_labels_as_they_are() -> None:
    # scikit-learn's classes need not count from 0: the argmax of the probabilities would be wrong
    outputs = {"label": np.array([3, 7], np.int64), "probabilities": SMALL}
    for name, value in (("top1", 1 / 2), ("f1", 2 / 3)):
        assert found(fed(name, [(outputs, outputs, [3, 3])])).value == pytest.approx(value)
    scores = MetricOptions(output="probabilities")
    assert found(fed("auc", [(outputs, outputs, [1, 0])], scores)).value == 1
    with pytest.raises(Refused, match="without scores"):
        fed("auc", [(outputs, outputs, [3, 3])])


def test_classes_may_be_on_another_axis() -> None:
    picture = np.zeros((1, 3, 4, 5), np.float32)
    picture[0, 2] = 1
    labels = [2] * 20
    outputs = [({"y": picture}, {"y": picture}, labels)]
    assert found(fed("top1", outputs, MetricOptions(class_axis=1))).value == 1
    with pytest.raises(Refused, match="class_axis is 4"):
        fed("top1", outputs, MetricOptions(class_axis=4))


def test_points_of_one_picture_do_not_narrow_the_interval() -> None:
    random = np.random.default_rng(0)
    many = random.standard_normal((10, 1, 500, 3)).astype(np.float32)
    other = random.standard_normal((10, 1, 500, 3)).astype(np.float32)
    meter = fed("agreement", [({"y": a}, {"y": b}, None) for a, b in zip(many, other, strict=True)])
    scored = found(meter)
    assert scored.rows == 5000
    assert (scored.low, scored.high) == pytest.approx(wilson_interval(10 * scored.value, 10))


NAN = float("nan")


def test_elements_and_rows_that_are_nan_in_float32_are_left_out() -> None:
    baseline, got = [[NAN, 2.0], [3.0, 4.0]], [[NAN, 2.0], [4.0, 3.0]]
    assert score("r2", [[NAN, 2.0], [3.0, 4.0]], baseline) == 1
    assert score("agreement", got, baseline) == 0
    meter = fed("top1", [(floats(got), floats(baseline), [1, 0])])
    assert found(meter).value == 1 and found(meter).rows == 1
    assert any("1 of 2 rows were left out" in said for said in meter.remarks())


@pytest.mark.parametrize("name", ["r2", "cosine", "mse", "agreement", "top1"])
def test_output_that_is_nothing_but_nan_is_refused(name: str) -> None:
    meter = fed(name, [(floats([[NAN, NAN]]), floats([[NAN, NAN]]), [1])])
    with pytest.raises(Refused, match="check the model"):
        meter.score()


def test_outputs_without_a_row_are_refused() -> None:
    for name in ("agreement", "r2"):
        with pytest.raises(Refused, match="has no"):
            fed(name, [(floats(np.zeros((0, 3))),) * 2 + (None,)]).score()


def test_outputs_of_another_length_are_refused_with_the_metrics_that_match() -> None:
    for name in ("r2", "agreement"):
        with pytest.raises(Refused, match="such as detection"):
            score(name, [[1.0, 2.0]], [[1.0, 2.0], [3.0, 4.0]])


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([0, 2], "label 2, the model has classes 0 to 1"),
        ([-1, 0], "label -1"),
        ([0], "1 labels for 2 rows"),
        (None, "no labels"),
    ],
)
@pytest.mark.parametrize("name", ["top1", "f1", "auc"])
def test_labels_that_do_not_fit_are_refused(name: str, labels: list[int] | None, said: str) -> None:
    with pytest.raises(Refused, match=said):
        score(name, SMALL, SMALL, labels)


@pytest.mark.parametrize("name", ["top1", "f1", "auc"])
def test_classes_missing_in_the_data_are_told_and_no_failure(name: str) -> None:
    scores = np.eye(9, dtype=np.float32)
    meter = labelled(name, scores[[0, 4]], np.array([0, 4]))
    assert found(meter).value == 1
    assert "7 of the 9 classes (1, 2, 3, 5, 6, …)" in meter.remarks()[0]


def test_auto_follows_from_what_there_is() -> None:
    distribution, logits = floats([[0.25, 0.75]]), floats([[3.0, -1.0]])
    steps = floats([[[0.5, 0.5], [0.1, 0.9]]])
    classical = {"label": np.array([1]), **distribution}
    for outputs, labels, name in (
        (logits, True, "top1"),
        (distribution, False, "agreement"),
        (steps, False, "agreement"),
        (classical, False, "agreement"),
        (logits, False, "r2"),
        (floats([[0.3]]), False, "r2"),
        (floats(1.0), False, "r2"),
    ):
        assert resolve_metric("auto", labelled=labels, outputs=outputs).name == name
    assert resolve_metric("cosine", labelled=True, outputs=logits).name == "cosine"
    options = MetricOptions(output="label")
    kept = resolve_metric("auto", labelled=True, outputs=classical, options=options)
    assert kept.options is options
    with pytest.raises(Misused, match="no_such_module_of_test"):
        resolve_metric("no_such_module_of_test:f", labelled=True, outputs=logits)


@given(st.integers(1, 500), st.data())
def test_wilson_interval_holds_the_share(rows: int, data: st.DataObject) -> None:
    hits = data.draw(st.integers(0, rows))
    low, high = wilson_interval(hits, rows)
    assert 0 <= low <= hits / rows + 1e-12 and hits / rows - 1e-12 <= high <= 1
    assert high > low


def test_wilson_interval_is_that_of_the_tables() -> None:
    low, high = wilson_interval(17, 20)
    assert (round(low, 3), round(high, 3)) == (0.640, 0.948)


def test_bootstrap_interval_of_a_mean_is_that_of_the_normal_distribution() -> None:
    random = np.random.default_rng(3)
    values = random.standard_normal(1000)
    replicates = Replicates()
    for value in values:
        replicates.add(np.array([value, 1.0]))
    low, high = replicates.interval(lambda sums: sums[:, 0] / sums[:, 1])
    assert low is not None and high is not None
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 / np.sqrt(1000), rel=0.2)


@pytest.mark.parametrize("name", ["r2", "cosine", "mse", "f1", "auc"])
def test_same_samples_give_the_same_interval(name: str) -> None:
    random = np.random.default_rng(1)
    samples = [
        (floats(random.standard_normal((1, 3))), floats(random.standard_normal((1, 3))), [i % 3])
        for i in range(20)
    ]
    assert fed(name, samples).score() == fed(name, samples).score()


def test_one_sample_has_no_bootstrap_interval() -> None:
    scored = found(fed("r2", [(floats([[1, 2]]), floats([[1, 3]]), None)]))
    assert scored.low is None and scored.high is None


PAGE = (Path(__file__).parents[2] / "docs" / "build.md").read_text().split("## Metrics")[1]


def test_every_metric_is_in_the_table_of_its_page() -> None:
    table = PAGE.split("`[metric]`")[0]
    rows = re.findall(r"^\| `([\w.:]+)` \|", table, re.MULTILINE)
    assert rows == [*METRICS, "package.module:callable"]


def test_options_that_the_page_shows_are_those_that_there_are(tmp_path: Path) -> None:
    (tmp_path / "edgekit.toml").write_text(PAGE.split("```toml\n")[1].split("```")[0])
    project = load_project(tmp_path / "edgekit.toml")
    assert project.metric == "detection"
    shown = msgspec.to_builtins(project.metric_options)
    assert shown["detection"]["layout"] == "center-classes-first" and shown["class_axis"] == 1
    shown_keys = set(re.findall(r"^(\w+) = ", PAGE, re.MULTILINE)) - {"kind"}
    assert shown_keys == {
        *(shown.keys() - {"detection", "ctc"}), *shown["detection"], *shown["ctc"]
    }  # fmt: skip
