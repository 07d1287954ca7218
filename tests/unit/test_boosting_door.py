"""XGBoost and LightGBM: what an estimator answers, its ONNX file does, early stopping and all."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from parts import need_package

from edgekit_contract.profile import RuntimeKind
from edgekit_converters.sources.doors import boosting
from edgekit_converters.sources.doors.door import NotConvertible
from edgekit_runtime.session import open_session

DOORS = "'edgekit[boosting]'"


@pytest.fixture(scope="module")
def table() -> tuple[np.ndarray, np.ndarray]:
    """Noisy: the best rounds are the first few."""
    random = np.random.default_rng(0)
    features = random.normal(size=(400, 5)).astype(np.float32)
    return features, (features[:, 0] + 2 * random.normal(size=400) > 0).astype(int)


def needed(module: str) -> Any:
    for name in (module, "onnxmltools"):
        need_package(name, install=DOORS)
    return importlib.import_module(module)


def written(opened: Any, features: np.ndarray, directory: Path) -> tuple[dict, dict, list[str]]:
    """What the ONNX file gives, what the door compares that with, and what it remarks."""
    remarks = list(opened.export(directory / "m.onnx"))
    feeds = {"features": features}
    session = open_session(RuntimeKind.ONNXRUNTIME, directory / "m.onnx")
    return session.run(feeds), dict(opened.run(feeds)), remarks


@pytest.mark.parametrize("as_file", [False, True])
def test_an_estimator_that_stopped_early_uses_its_best_rounds(
    table: tuple[np.ndarray, np.ndarray], as_file: bool, tmp_path: Path
) -> None:
    xgboost = needed("xgboost")
    features, classes = table
    made = xgboost.XGBClassifier(n_estimators=60, early_stopping_rounds=5, learning_rate=0.5)
    made.fit(
        features[:200], classes[:200], eval_set=[(features[200:], classes[200:])], verbose=False
    )
    assert made.best_iteration + 1 < made.get_booster().num_boosted_rounds()
    opened = boosting._xgboost_object(made, "m")
    if as_file:
        made.save_model(tmp_path / "m.ubj")
        opened = boosting._open_xgboost(tmp_path / "m.ubj")
    got, want, remarks = written(opened, features, tmp_path)
    assert np.abs(got["probabilities"] - made.predict_proba(features)).max() < 1e-5
    assert np.abs(want["probabilities"] - made.predict_proba(features)).max() < 1e-5
    assert remarks == []


def test_a_booster_that_stopped_early_uses_all_rounds_and_says_so(
    table: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    xgboost = needed("xgboost")
    data = xgboost.DMatrix(table[0], label=table[1])
    held_out = xgboost.DMatrix(table[0], label=1 - table[1])
    made = xgboost.train(
        {"objective": "binary:logistic"},
        data,
        20,
        evals=[(held_out, "others")],
        early_stopping_rounds=3,
        verbose_eval=False,
    )
    got, _, remarks = written(boosting._xgboost_object(made, "m"), table[0], tmp_path)
    assert np.abs(got["probabilities"][:, 1] - made.predict(data)).max() < 1e-5
    (said,) = remarks
    assert "uses all its 4 rounds" in said and "booster[:1]" in said


def test_softmax_gives_probabilities_and_all_outputs_are_compared(
    table: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    """onnxmltools writes the margins of multi:softmax as probabilities."""
    xgboost = needed("xgboost")
    three = table[1] + (table[0][:, 1] > 0)
    data = xgboost.DMatrix(table[0], label=three)
    made = xgboost.train({"objective": "multi:softmax", "num_class": 3}, data, 5)
    labels = made.predict(data)
    got, want, _ = written(boosting._xgboost_object(made, "m"), table[0], tmp_path)
    assert got["label"].tolist() == labels.tolist()
    assert np.abs(got["probabilities"].sum(axis=1) - 1).max() < 1e-5
    assert want.keys() == got.keys()
    assert np.abs(got["probabilities"] - want["probabilities"]).max() < 1e-5


def test_a_model_of_several_targets_is_refused(table: tuple[np.ndarray, np.ndarray]) -> None:
    xgboost = needed("xgboost")
    made = xgboost.XGBRegressor(n_estimators=3).fit(table[0], table[0][:, :2])
    with pytest.raises(NotConvertible, match="models of one target, and this has 2"):
        boosting._xgboost_object(made, "m")


@pytest.mark.parametrize("objective", ["binary:logitraw", "binary:hinge", "rank:pairwise"])
def test_an_objective_that_becomes_another_is_refused(
    objective: str, table: tuple[np.ndarray, np.ndarray]
) -> None:
    xgboost = needed("xgboost")
    made = xgboost.train({"objective": objective}, xgboost.DMatrix(table[0], label=table[1]), 2)
    with pytest.raises(NotConvertible, match=f"writes {objective} as probabilities of classes"):
        boosting._xgboost_object(made, "m")


def test_classes_keep_their_numbers(table: tuple[np.ndarray, np.ndarray], tmp_path: Path) -> None:
    lightgbm = needed("lightgbm")
    for classes in (np.where(table[1], 7, 3), np.where(table[1], 7, 3) + 10 * (table[0][:, 1] > 0)):
        made = lightgbm.LGBMClassifier(n_estimators=5, verbose=-1).fit(table[0], classes)
        got, want, remarks = written(boosting._lightgbm_object(made, "m"), table[0], tmp_path)
        assert got["label"].tolist() == made.predict(table[0]).tolist() == want["label"].tolist()
        assert remarks == []


def test_classes_of_words_are_counted_and_that_is_told(
    table: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    lightgbm = needed("lightgbm")
    words = np.where(table[1], "cat", "dog")
    made = lightgbm.LGBMClassifier(n_estimators=5, verbose=-1).fit(table[0], words)
    got, _, remarks = written(boosting._lightgbm_object(made, "m"), table[0], tmp_path)
    assert set(got["label"].tolist()) <= {0, 1}
    assert remarks == ["label counts classes from 0, in their order: 0 is cat, 1 is dog."]
