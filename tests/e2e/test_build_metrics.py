"""Whole builds judged by metrics on models that give classes, boxes and numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from build_requests import host_profile, request
from onnx import TensorProto, helper, numpy_helper
from small_models import write_data, write_small

from edgekit.build import build
from edgekit.build.report import Report
from edgekit_contract.errors import Misused, Refused

QUICK = {"recipes": ("float32*",), "search_time_s": 0.2}


def report(tmp_path: Path, model: Path, **changes: object) -> Report:
    (built,) = build(request(model, tmp_path / "out", **(QUICK | changes))).built
    return built.report


def classifier(path: Path) -> Path:
    """A linear classifier as skl2onnx writes it: classes 3 and 7, and a map of probabilities."""
    nodes = [
        helper.make_node(
            "LinearClassifier",
            ["x"],
            ["label", "scores"],
            domain="ai.onnx.ml",
            coefficients=[-1.0, 0.5, 1.0, -0.5],
            intercepts=[0.0, 0.0],
            classlabels_ints=[3, 7],
            post_transform="SOFTMAX",
        ),
        helper.make_node(
            "ZipMap", ["scores"], ["odds"], domain="ai.onnx.ml", classlabels_int64s=[3, 7]
        ),
        helper.make_node(
            "LabelEncoder",
            ["label"],
            ["kind"],
            domain="ai.onnx.ml",
            keys_int64s=[3, 7],
            values_strings=["cat", "dog"],
        ),
    ]
    odds = helper.make_map_type_proto(
        TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, [])
    )
    graph = helper.make_graph(
        nodes,
        "classical",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 2])],
        [
            helper.make_tensor_value_info("kind", TensorProto.STRING, ["batch"]),
            helper.make_tensor_value_info("label", TensorProto.INT64, ["batch"]),
            helper.make_value_info("odds", helper.make_sequence_type_proto(odds)),
        ],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


def detector(path: Path) -> Path:
    """Ten boxes, their scores and classes, from six numbers a picture."""
    random = np.random.default_rng(0)
    low = random.uniform(0, 50, (10, 2))
    base = np.hstack([low, low + 20]).astype(np.float32)[None]
    weights = {
        "base": base,
        "w": random.standard_normal((6, 10)).astype(np.float32),
        "kinds": random.integers(0, 3, (1, 10)),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["raw"]),
        helper.make_node("Sigmoid", ["raw"], ["scores"]),
        helper.make_node("Unsqueeze", ["raw", "last"], ["shift"]),
        helper.make_node("Add", ["shift", "base"], ["boxes"]),
        helper.make_node("Identity", ["kinds"], ["classes"]),
    ]
    graph = helper.make_graph(
        nodes,
        "detector",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 6])],
        [
            helper.make_tensor_value_info("boxes", TensorProto.FLOAT, [1, 10, 4]),
            helper.make_tensor_value_info("classes", TensorProto.INT64, [1, 10]),
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, 10]),
        ],
        initializer=[
            *(numpy_helper.from_array(array, name) for name, array in weights.items()),
            numpy_helper.from_array(np.array([2], np.int64), "last"),
        ],
    )
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


def labelled_data(path: Path) -> str:
    random = np.random.default_rng(1)
    x = random.standard_normal((40, 2)).astype(np.float32)
    np.savez(path, x=x, labels=np.where(x[:, 0] > 0, 7, 3))
    return str(path)


def test_classical_classes_are_judged_by_equality(tmp_path: Path) -> None:
    model, data = classifier(tmp_path / "m.onnx"), labelled_data(tmp_path / "d.npz")
    found = report(tmp_path, model, validation=data)
    assert found.metric == "top1"
    baseline = found.candidates[0].score
    assert baseline is not None and baseline.value > 0.7 and baseline.rows == 40


def test_detector_is_judged_by_its_boxes(tmp_path: Path) -> None:
    data = str(write_data(tmp_path / "d.npz", 20, x=(6,)))
    found = report(
        tmp_path,
        detector(tmp_path / "m.onnx"),
        validation=data,
        metric="detection",
        recipes=("int8-dynamic/*",),
        profiles=(host_profile(),),
    )
    scores = {c.recipe: c.score for c in found.candidates if c.score is not None}
    assert scores["float32"].value == 1 and scores["float32"].rows == 20
    int8 = [score for recipe, score in scores.items() if recipe.startswith("int8-dynamic")]
    assert int8 and all(0.5 < score.value <= 1 and score.low is not None for score in int8)


def test_own_metric_gets_labels_with_fractions_and_others_say_what_they_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, x = tmp_path / "d.npz", np.random.default_rng(0).normal(size=(20, 10)).astype(np.float32)
    model = write_small("regression", tmp_path)
    given = onnx.load(model).graph.input[0].name
    np.savez(data, **{given: x, "labels": x[:, 0] / 3})
    name = callable_metric(
        tmp_path,
        monkeypatch,
        "assert labels.dtype == 'float64' and labels.shape == (1,)\n"
        "    return -abs(float(next(iter(outputs.values())).ravel()[0]) - labels[0])",
    )
    judged = report(tmp_path, model, validation=str(data), metric=name)
    score = judged.candidates[0].score
    assert score is not None and score.value < 0
    assert report(tmp_path, model, validation=str(data)).metric == "r2"
    with pytest.raises(Refused, match=r"labels with fractions.*numbers of classes"):
        report(tmp_path, model, validation=str(data), metric="top1")


def callable_metric(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> str:
    name = f"metric_{abs(hash(body))}"
    (tmp_path / f"{name}.py").write_text(f"def judge(outputs, reference, labels):\n    {body}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return f"{name}:judge"


def test_build_is_judged_by_the_user_s_own_metric(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = callable_metric(
        tmp_path, monkeypatch, "return -100.0 * float(abs(outputs['y'] - reference['y']).max())"
    )
    data = str(write_data(tmp_path / "d.npz", 20, x=(10,)))
    model = write_small("regression", tmp_path)
    found = report(tmp_path, model, validation=data, metric=name, max_drop=2.5)
    assert found.metric == name
    assert found.candidates[0].score is not None and found.candidates[0].score.value == 0


def test_metric_that_ends_the_interpreter_ends_the_build_with_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = callable_metric(tmp_path, monkeypatch, "raise SystemExit(0)")
    data = str(write_data(tmp_path / "d.npz", 4, x=(10,)))
    with pytest.raises(Refused, match=f"{name}, sample 0: the metric raised SystemExit"):
        report(tmp_path, write_small("regression", tmp_path), validation=data, metric=name)
    assert not list((tmp_path / "out").glob("*"))


def test_metric_that_is_none_is_wrong_usage_and_suggests_the_nearest(tmp_path: Path) -> None:
    model = write_small("regression", tmp_path)
    with pytest.raises(Misused, match=r"did you mean top1.*agreement.*package.module:callable"):
        request(model, tmp_path / "out", metric="top-1")


def test_metric_that_does_not_fit_the_model_is_refused(tmp_path: Path) -> None:
    model = write_small("regression", tmp_path)
    with pytest.raises(Refused, match=r"layout in edgekit\.toml"):
        report(tmp_path, model, metric="detection")
