"""scikit-learn: fitted estimators from a callable, and skops files.

A skops file holds plain data and names of types; only types that skops itself trusts are made.
Source: skops documentation, "Secure persistence"; skl2onnx, "Supported scikit-learn Models".
"""

from __future__ import annotations

import contextlib
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from onnx import ModelProto

from edgekit_contract.errors import Refused
from edgekit_converters.sources import columns, peek
from edgekit_converters.sources.doors.door import Door, NotConvertible, no_files

__all__ = ["DOORS", "FEATURES", "open_batch", "told_apart_by"]

FEATURES: Final = "features"
"""Name of the one input of models of tables: float32 [batch, columns]."""
_OPSET: Final = {"": 17, "ai.onnx.ml": 3}
_SHOWN: Final = 5
_UNREADABLE: Final = (KeyError, ValueError, TypeError, AttributeError, OSError)
_UNWRITABLE: Final = (
    RuntimeError, NotImplementedError, ValueError, TypeError, LookupError, AttributeError,
    AssertionError,
)  # fmt: skip
_DETAIL_CHARS: Final = 120
_RUNS: Final = {
    "label": ("predict",),
    "probabilities": ("predict_proba", "decision_function"),
    "variable": ("predict", "transform"),
    "transformed_column": ("transform",),
    "scores": ("decision_function", "transform"),
}
"""By an output's name in the ONNX file, the methods whose result it is, the first that there is."""


def _reads(path: Path) -> bool:
    return path.is_file() and "schema.json" in peek.zip_names(path)


def _open_file(path: Path) -> _Estimator:
    from skops import io
    from skops.io.exceptions import UnsupportedTypeException, UntrustedTypesFoundException

    again = "save it again with skops.io.dump"
    try:
        foreign = io.get_untrusted_types(file=path)
    except (*_UNREADABLE, UnsupportedTypeException) as error:
        raise Refused(
            f"{path.name} is no skops file that can be read ({error!r}): {again}."
        ) from error
    if foreign:
        told = ", ".join(foreign[:_SHOWN]) + (", …" if len(foreign) > _SHOWN else "")
        raise Refused(
            f"{path.name} holds types that skops does not trust ({told}): check them, and name a "
            "package.module:callable that loads the model and returns it."
        )
    from sklearn.exceptions import InconsistentVersionWarning

    with warnings.catch_warnings():
        warnings.simplefilter("error", InconsistentVersionWarning)
        try:
            return _Estimator(io.load(path, trusted=[]), path.name)
        except InconsistentVersionWarning as error:
            raise Refused(
                f"{path.name} was saved by scikit-learn {error.original_sklearn_version}, and here "
                f"is {error.current_sklearn_version}: pip install "
                f"scikit-learn=={error.original_sklearn_version}, or fit and save it again."
            ) from error
        except (UntrustedTypesFoundException, UnsupportedTypeException) as error:
            raise Refused(f"{path.name} cannot be opened ({error}): {again}.") from error


def _open_object(value: Any, name: str) -> _Estimator:
    made = _Estimator(value[0] if isinstance(value, tuple) else value, name)
    rows = {FEATURES: told_apart_by(made.columns)}
    with contextlib.suppress(ValueError):  # an encoder of other classes takes no such rows
        made.run(rows)
        made.example = rows
    return made


def told_apart_by(columns: int) -> np.ndarray:
    """Rows that two makings of a model are compared on: ones and twos, which logarithms take."""
    return np.eye(min(columns, 16), columns, dtype=np.float32) + 1


class _Estimator:
    def __init__(self, model: Any, title: str) -> None:
        from sklearn.exceptions import NotFittedError
        from sklearn.utils.validation import check_is_fitted

        if not hasattr(model, "fit"):
            raise Refused(
                f"{title} holds a {type(model).__qualname__}, which is no estimator: "
                "give one that is fitted."
            )
        try:
            check_is_fitted(model)
        except NotFittedError as error:
            raise Refused(
                f"{title} is a {type(model).__qualname__} that is not fitted: call its fit first."
            ) from error
        self._model, self._title = model, title
        columns.check_numbers(model, title)
        self._names = columns.names_of(model)
        self._numbered, self._chooses = columns.by_number(model)
        count = getattr(model, "n_features_in_", None)
        if not isinstance(count, int | np.integer) or count < 1:
            raise Refused(
                f"{title} does not say how many columns it takes (n_features_in_): "
                "fit it on an array of numbers."
            )
        self.columns = int(count)
        self.example: Mapping[str, np.ndarray] | None = None

    def export(self, out: Path) -> Sequence[str]:
        from skl2onnx import convert_sklearn
        from skl2onnx.common.data_types import FloatTensorType
        from skl2onnx.common.exceptions import (
            MissingConverter,
            MissingShapeCalculator,
        )
        from sklearn.base import is_classifier

        model = self._numbered
        # of a branch with all columns, skl2onnx does not see that their order is another
        width = self.columns + columns.reorders_all(model, self.columns)
        try:
            with _plain_numbers():
                made = convert_sklearn(
                    model,
                    initial_types=[(FEATURES, FloatTensorType([None, width]))],
                    options={id(model): {"zipmap": False}} if is_classifier(model) else None,
                    target_opset=_OPSET,
                )
        except (MissingConverter, MissingShapeCalculator) as error:
            raise NotConvertible(
                self._title,
                f"skl2onnx has no converter for {_culprit(model, str(error))}",
                "use an estimator that docs of skl2onnx list, or register a converter and export "
                "it to ONNX yourself",
            ) from error
        except _UNWRITABLE as error:
            raise NotConvertible(
                self._title,
                f"skl2onnx, at a {_reached(model, error)}: {str(error)[:_DETAIL_CHARS]}",
                "fit it with another estimator in its place, or export it to ONNX yourself",
            ) from error
        open_batch(made)
        made.graph.input[0].type.tensor_type.shape.dim[1].dim_value = self.columns
        out.write_bytes(made.SerializeToString())
        return [columns.sentence(self._names)] if self._names else []

    def run(self, feeds: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        table = feeds[FEATURES]
        if self._chooses:
            table = columns.table(table, self._names)
        outputs = {}
        for name, methods in _RUNS.items():
            for method in methods:
                if hasattr(self._model, method):
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore")  # columns had names when it was fitted
                        found = _dense(getattr(self._model, method)(table))
                    if isinstance(found, np.ndarray) and found.dtype.kind in "biuf":
                        is_double = found.dtype == np.float64
                        outputs[name] = found.astype(np.float32) if is_double else found
                    break
        return outputs


@contextlib.contextmanager
def _plain_numbers() -> Iterator[None]:
    """Have skl2onnx give lists of attributes as Python's numbers: those of HistGradientBoosting's
    trees have booleans among them, which ONNX does not take for numbers."""
    from skl2onnx.common import _container

    make_node = _container.make_node

    def made(*arguments: Any, **attributes: Any) -> Any:
        plain = {
            name: [int(v) if isinstance(v, bool | np.bool_) else v for v in value]
            if isinstance(value, list)
            else value
            for name, value in attributes.items()
        }
        return make_node(*arguments, **plain)

    _container.make_node = made
    try:
        yield
    finally:
        _container.make_node = make_node


def _dense(found: Any) -> Any:
    """An array of a DataFrame and of a sparse matrix, too."""
    for method in ("to_numpy", "toarray"):
        if hasattr(found, method):
            return getattr(found, method)()
    return found


def open_batch(model: ModelProto) -> None:
    """Call the first axis the batch: exporters leave it without a name, or say that it is 1."""
    for value in (*model.graph.input, *model.graph.output):
        if axes := value.type.tensor_type.shape.dim:
            axes[0].Clear()
            axes[0].dim_param = "batch"


def _culprit(model: Any, said: str) -> str:
    """The class that a converter is missing for, as scikit-learn's users know it."""
    parts = said.partition("<class '")[2].partition("'")[0]
    return parts.rpartition(".")[2] or type(model).__qualname__


def _reached(model: Any, error: Exception) -> str:
    """The class of the estimator that the converter was at."""
    found = model
    for frame, _ in traceback.walk_tb(error.__traceback__):
        for name in ("operator", "op", "model"):
            at = frame.f_locals.get(name)
            at = getattr(at, "raw_operator", at)
            found = at if hasattr(at, "get_params") else found
    return type(found).__qualname__


DOORS: Final = (
    Door(
        name="scikit-learn",
        extra="sklearn",
        modules=("sklearn", "skl2onnx", "skops"),
        packages=("scikit-learn", "skl2onnx"),
        reads=_reads,
        files=no_files,
        holds=frozenset({"sklearn.base.BaseEstimator"}),
        open_file=_open_file,
        open_object=_open_object,
        jumps=True,
    ),
)
