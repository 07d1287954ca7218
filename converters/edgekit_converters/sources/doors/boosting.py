"""XGBoost and LightGBM: their own model files (.json and .ubj, .txt), and models from a callable.

Source: XGBoost documentation, "Introduction to Model IO"; LightGBM, `Booster.save_model`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from edgekit_contract.errors import Refused
from edgekit_converters.sources import peek
from edgekit_converters.sources.doors.door import Door, NotConvertible, no_files, refusing
from edgekit_converters.sources.doors.scikit_learn import FEATURES, open_batch, told_apart_by

__all__ = ["DOORS"]

_OPSET: Final = 15
_PLACE: Final = re.compile(r"^\[[^\]]*\] (\S+:\d+: )?")
_UBJSON_LEARNER: Final = b"learner{"
_AS_CLASSES: Final = frozenset({"binary:logitraw", "binary:hinge", "survival:cox"})
_REMEDY: Final = "train it with another objective or booster, or export it to ONNX yourself"


def _reads_xgboost(path: Path) -> bool:
    start = peek.head(path)
    if start.startswith(b"{L"):  # UBJSON, keys in no order
        return b"learner" in start or b"version" in start or path.suffix == ".ubj"
    return start.lstrip().startswith(b"{") and (b'"learner"' in start or b'"version"' in start)


def _reads_lightgbm(path: Path) -> bool:
    return peek.head(path).startswith(b"tree\n")


def _open_xgboost(path: Path) -> _XGBoost:
    import xgboost

    booster = xgboost.Booster()
    try:
        booster.load_model(path)
    except (xgboost.core.XGBoostError, ValueError, TypeError) as error:
        raise Refused(
            f"{path.name} is no XGBoost model that can be read ({_first_line(error)}): save it "
            "again with booster.save_model."
        ) from error
    return _XGBoost(booster, path.name)


def _open_lightgbm(path: Path) -> _LightGBM:
    import lightgbm

    try:
        booster = lightgbm.Booster(model_file=str(path))
    except (lightgbm.basic.LightGBMError, ValueError, TypeError) as error:
        raise Refused(
            f"{path.name} is no LightGBM model that can be read ({_first_line(error)}): save it "
            "again with booster.save_model."
        ) from error
    return _LightGBM(booster, path.name)


def _first_line(error: Exception) -> str:
    """Less XGBoost's time and place."""
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return _PLACE.sub("", line)[:200].rstrip(".") or type(error).__name__


class _Trees:
    """What both have in common."""

    _converter: str
    """In `onnxmltools`."""

    def __init__(self, booster: Any, title: str, columns: int) -> None:
        if columns < 1:
            raise Refused(f"{title} has no features: train it, and save it again.")
        self._booster, self._title, self._columns = booster, title, columns
        self._remarks: list[str] = []
        self.example: Mapping[str, np.ndarray] | None = {FEATURES: told_apart_by(columns)}

    def export(self, out: Path) -> Sequence[str]:
        import onnxmltools
        from onnxmltools.convert.common.data_types import FloatTensorType

        with refusing(lambda said: NotConvertible(self._title, f"onnxmltools: {said}", _REMEDY)):
            made = getattr(onnxmltools, self._converter)(
                self._booster,
                initial_types=[(FEATURES, FloatTensorType([None, self._columns]))],
                target_opset=_OPSET,
                **self._options(),
            )
        open_batch(made)
        self._name_classes(made)
        out.write_bytes(made.SerializeToString())
        return self._remarks

    def _name_classes(self, made: Any) -> None:
        """Labels are the places of classes, unless more is known."""

    def _options(self) -> dict[str, Any]:
        return {}

    def _outputs(self, scores: np.ndarray, *, classifies: bool) -> Mapping[str, np.ndarray]:
        """By the names of the ONNX file; `scores` [rows] or [rows, classes]."""
        scores = scores.astype(np.float32)
        if not classifies:
            return {"variable": scores.reshape(len(scores), -1)}
        if scores.ndim == 1:
            scores = np.stack([1 - scores, scores], -1)
        return {"label": self._labels(scores.argmax(-1)), "probabilities": scores}

    def _labels(self, places: np.ndarray) -> np.ndarray:
        return places


class _XGBoost(_Trees):
    _converter = "convert_xgboost"

    def __init__(self, booster: Any, title: str) -> None:
        booster, remarks = _until_the_best(booster, title)
        booster.feature_names = None  # the converter takes numbers only
        booster.feature_types = None
        super().__init__(booster, title, int(booster.num_features()))
        self._remarks += remarks
        learner = json.loads(booster.save_config())["learner"]
        self._objective = str(learner["objective"]["name"])
        targets = int(learner["learner_model_param"].get("num_target", 1))
        if targets > 1:
            raise NotConvertible(
                title,
                f"onnxmltools writes models of one target, and this has {targets}",
                "train one for each, or export it to ONNX yourself",
            )
        if self._objective in _AS_CLASSES or self._objective.startswith("rank:"):
            raise NotConvertible(
                title, f"onnxmltools writes {self._objective} as probabilities of classes", _REMEDY
            )
        if self._objective == "multi:softmax":  # whose margins the converter calls probabilities
            self._objective = "multi:softprob"
            booster.set_param({"objective": self._objective})

    def run(self, feeds: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        import xgboost

        found = self._booster.predict(xgboost.DMatrix(feeds[FEATURES]))
        classifies = self._objective in ("binary:logistic", "multi:softprob")
        return self._outputs(found, classifies=classifies)


def _until_the_best(booster: Any, title: str) -> tuple[Any, list[str]]:
    """A booster as the estimator of scikit-learn's kind that it is of uses it: with the rounds up
    to the best one, where training was stopped early. A `Booster` of its own uses all.

    Source: XGBModel._get_iteration_range, and `Booster.predict`.
    """
    best = booster.attr("best_iteration")
    kind = json.loads(booster.save_config())["learner"]["gradient_booster"]["name"]
    if best is None or kind == "gblinear":  # which has no rounds to leave out
        return booster, []
    rounds = int(best) + 1
    if booster.attr("scikit_learn") is not None:
        return booster[:rounds], []
    return booster, [
        f"{title} was stopped early and uses all its {booster.num_boosted_rounds()} rounds, as its "
        f"predict does: save booster[:{rounds}] for the best ones alone."
    ]


class _LightGBM(_Trees):
    _converter = "convert_lightgbm"

    def __init__(self, booster: Any, title: str, classes: np.ndarray | None = None) -> None:
        """`classes` are what an estimator of scikit-learn's kind calls them, in their order."""
        super().__init__(booster, title, int(booster.num_feature()))
        self._classes = classes
        if classes is not None and classes.dtype.kind not in "iu":
            said = ", ".join(f"{place} is {name}" for place, name in enumerate(classes[:9]))
            self._remarks.append(f"label counts classes from 0, in their order: {said}.")
            self._classes = None
        lines = booster.model_to_string(num_iteration=1).splitlines()
        said = next((line for line in lines if line.startswith("objective=")), "objective=")
        self._objective = said.partition("=")[2].partition(" ")[0]

    def _options(self) -> dict[str, Any]:
        return {"zipmap": False}

    def _name_classes(self, made: Any) -> None:
        if self._classes is not None:
            for node in made.graph.node:
                for attribute in node.attribute:
                    if attribute.name == "classlabels_int64s":
                        attribute.ints[:] = [int(name) for name in self._classes]

    def _labels(self, places: np.ndarray) -> np.ndarray:
        return places if self._classes is None else self._classes[places].astype(np.int64)

    def run(self, feeds: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        found = np.asarray(self._booster.predict(feeds[FEATURES].astype(np.float64)))
        classifies = self._objective in ("binary", "multiclass", "multiclassova")
        return self._outputs(found, classifies=classifies)


def _xgboost_object(value: Any, name: str) -> _XGBoost:
    if not hasattr(value, "get_booster"):
        return _XGBoost(value, name)
    booster = value.get_booster()
    booster.set_attr(scikit_learn="{}")  # as `save_model` of such an estimator does
    return _XGBoost(booster, name)


def _lightgbm_object(value: Any, name: str) -> _LightGBM:
    return _LightGBM(getattr(value, "booster_", value), name, getattr(value, "classes_", None))


DOORS: Final = (
    Door(
        name="XGBoost",
        extra="boosting",
        modules=("xgboost", "onnxmltools"),
        packages=("xgboost", "xgboost-cpu", "onnxmltools"),
        reads=_reads_xgboost,
        files=no_files,
        holds=frozenset({"xgboost.core.Booster", "xgboost.sklearn.XGBModel"}),
        open_file=_open_xgboost,
        open_object=_xgboost_object,
        jumps=True,
    ),
    Door(
        name="LightGBM",
        extra="boosting",
        modules=("lightgbm", "onnxmltools"),
        packages=("lightgbm", "onnxmltools"),
        reads=_reads_lightgbm,
        files=no_files,
        holds=frozenset({"lightgbm.basic.Booster", "lightgbm.sklearn.LGBMModel"}),
        open_file=_open_lightgbm,
        open_object=_lightgbm_object,
        jumps=True,
    ),
)
