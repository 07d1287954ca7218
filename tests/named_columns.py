"""Estimators fitted on DataFrames that scikit-learn ships: diabetes (sex is 1 or 2) and wine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from sklearn.compose import ColumnTransformer, make_column_selector, make_column_transformer
from sklearn.datasets import load_diabetes, load_wine
from sklearn.ensemble import RandomForestClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    MinMaxScaler,
    OneHotEncoder,
    OrdinalEncoder,
    SplineTransformer,
    StandardScaler,
)


def diabetes() -> tuple[Any, Any]:
    """Measurements, and how ill a year later."""
    return load_diabetes(as_frame=True, scaled=False, return_X_y=True)


def wine() -> tuple[Any, Any]:
    return load_wine(as_frame=True, return_X_y=True)


def rows(name: str, path: Path) -> str:
    """DATA of the table that the callable of this name was fitted on."""
    table, _ = wine() if name.startswith("wine") else diabetes()
    np.savez(path, features=table.to_numpy(np.float32))
    return str(path)


def _columns(measured: Any = None, encoder: Any = None, **words: Any) -> Any:
    return ColumnTransformer(
        [
            ("measured", measured or StandardScaler(), ["bmi", "bp", "age"]),
            ("encoded", encoder or OneHotEncoder(handle_unknown="ignore"), ["sex"]),
        ],
        **words,
    )


def _on_diabetes(columns: Any, last: Any = None, **changed: Any) -> Any:
    table, illness = diabetes()
    last = LogisticRegression(max_iter=500) if last is None else last
    return make_pipeline(columns, last).fit(table.assign(**changed), illness > 140)


def diabetes_scaled_and_encoded() -> Any:
    return _on_diabetes(_columns(remainder=MinMaxScaler()))


def diabetes_forest() -> Any:
    forest = RandomForestClassifier(n_estimators=10, random_state=0)
    return _on_diabetes(_columns(encoder=OrdinalEncoder(), remainder="passthrough"), forest)


def diabetes_regression() -> Any:
    filled = make_pipeline(SimpleImputer(), StandardScaler())
    return make_pipeline(_columns(filled), Ridge()).fit(*diabetes())


def diabetes_columns_alone() -> Any:
    return _columns().fit(diabetes()[0])


def wine_backwards() -> Any:
    """All columns, in another order than the table has them."""
    table, classes = wine()
    scaled = ColumnTransformer([("all", MinMaxScaler(), list(table.columns[::-1]))])
    return make_pipeline(scaled, LogisticRegression(max_iter=500)).fit(table, classes)


def wine_slice() -> Any:
    scaled = ColumnTransformer([("some", StandardScaler(), slice("ash", "flavanoids"))])
    return make_pipeline(scaled, LogisticRegression(max_iter=500)).fit(*wine())


def wine_selected() -> Any:
    chosen = make_column_selector(pattern="alcohol|ash|hue")
    scaled = make_column_transformer((StandardScaler(), chosen))
    return make_pipeline(scaled, LogisticRegression(max_iter=500)).fit(*wine())


def words() -> Any:
    told = diabetes()[0]["sex"].map({1: "female", 2: "male"})
    return _on_diabetes(_columns(), sex=told)


def logarithms() -> Any:
    return _on_diabetes(_columns(FunctionTransformer(np.log1p)))


def splines() -> Any:
    return _on_diabetes(_columns(SplineTransformer()))


def words_as_classes() -> Any:
    """A classifier whose classes are text."""
    table, illness = diabetes()
    grades = (illness > 140).map({False: "low", True: "high"})
    return make_pipeline(_columns(), LogisticRegression(max_iter=500)).fit(table, grades)
