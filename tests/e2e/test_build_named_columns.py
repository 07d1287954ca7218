"""Estimators fitted on DataFrames, with columns chosen by name, give what scikit-learn gives."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from doors import DOORS, assert_compared, built, through_the_door
from parts import need_package

from edgekit.release.keys import new_key
from edgekit_contract.errors import Refused
from edgekit_contract.profile import RuntimeKind
from edgekit_converters.isolation import Workshop
from edgekit_runtime.session import open_session


@pytest.fixture(scope="module")
def workshop() -> Iterator[Workshop]:
    with Workshop(warm=()) as opened:
        yield opened


@pytest.fixture(autouse=True)
def _needed() -> None:
    for module in ("sklearn", "skl2onnx", "skops", "pandas"):
        need_package(module, install=DOORS)


@pytest.mark.parametrize(
    "name",
    [
        "diabetes_scaled_and_encoded", "diabetes_forest", "diabetes_regression",
        "diabetes_columns_alone", "wine_backwards", "wine_slice", "wine_selected",
        "words_as_classes",
    ],
)  # fmt: skip
def test_columns_by_name_are_one_matrix_in_their_order(
    name: str, tmp_path: Path, workshop: Workshop
) -> None:
    import named_columns

    data = named_columns.rows(name, tmp_path / "v.npz")
    found = through_the_door(f"named_columns:{name}", data, tmp_path, workshop)
    assert_compared(found.normalized.remarks, "scikit-learn 1", min(256, found.count))
    table = (named_columns.wine if name.startswith("wine") else named_columns.diabetes)()[0]
    assert any(", ".join(table.columns) in text for text in found.normalized.remarks)
    assert found.source.signature.inputs[0].shape == ("batch", table.shape[1])

    model = getattr(named_columns, name)()
    method = next(m for m in ("predict_proba", "predict", "transform") if hasattr(model, m))
    session = open_session(RuntimeKind.ONNXRUNTIME, found.source.path)
    got = session.run({"features": table.to_numpy(np.float32)})
    output = "probabilities" if method == "predict_proba" else next(iter(got))
    wanted = getattr(model, method)(table)
    assert np.mean(np.abs(got[output].reshape(wanted.shape) - wanted) < 1e-3) > 0.99


def test_skops_file_of_columns_by_name_is_built(tmp_path: Path) -> None:
    import named_columns
    from skops import io

    io.dump(named_columns.diabetes_scaled_and_encoded(), tmp_path / "m.skops")
    data = named_columns.rows("diabetes", tmp_path / "v.npz")
    key = new_key(tmp_path / "k", None)
    report, manifest = built(tmp_path / "m.skops", tmp_path, key, validation=data)
    assert_compared(report.remarks, "scikit-learn 1", 256)
    assert [tensor.shape for tensor in manifest.inputs] == [("batch", 10)]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        (
            "words",
            "named_columns:words has a OneHotEncoder 'encoded' of the columns 'sex' that takes "
            "words, and edgekit runs models whose values are numbers: write a number for each word "
            "into the table, fit on that, and send numbers to the device.",
        ),
        ("logarithms", "skl2onnx, at a FunctionTransformer: "),
        ("splines", "skl2onnx has no converter for SplineTransformer"),
    ],
)
def test_what_cannot_be_converted_is_named(
    name: str, told: str, tmp_path: Path, workshop: Workshop
) -> None:
    import named_columns

    data = named_columns.rows(name, tmp_path / "v.npz")
    with pytest.raises(Refused) as caught:
        through_the_door(f"named_columns:{name}", data, tmp_path, workshop)
    assert told in str(caught.value)


def test_columns_by_name_without_pandas_name_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    from edgekit_converters.sources import columns

    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(Refused, match="pip install pandas"):
        columns.table(np.zeros((1, 2)), ["a", "b"])
