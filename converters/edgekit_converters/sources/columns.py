"""Columns of tables by name, as estimators of scikit-learn are fitted on a DataFrame.

Invariant: nothing here changes the estimator that is given. A model that goes out takes one matrix
of numbers, its columns in the order of `feature_names_in_`.
Source: scikit-learn documentation, `ColumnTransformer.transformers_` and `feature_names_in_`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np

from edgekit_contract.errors import Refused

__all__ = ["by_number", "check_numbers", "names_of", "reorders_all", "sentence", "table"]

_SHOWN: Final = 40


def names_of(model: Any) -> list[str]:
    """Names of the columns that an estimator was fitted on; none: an array."""
    return [str(name) for name in getattr(model, "feature_names_in_", ())]


def sentence(names: Sequence[str]) -> str:
    """For the report: which column is where."""
    told = ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
    return f"Columns of the input are numbers, in the order of feature_names_in_: {told}."


def by_number(model: Any) -> tuple[Any, bool]:
    """A copy that finds columns by number; whether it found any by name before."""
    numbered, changed = copy.deepcopy(model), False
    for part in _parts(numbered):
        for name, worker, columns in _branches(part):
            numbers = _numbers(columns, names_of(part))
            if numbers is not None:
                at = [entry[0] for entry in part.transformers_].index(name)
                part.transformers_[at] = (name, worker, numbers)
                changed = True
    return numbered, changed


def reorders_all(numbered: Any, count: int) -> bool:
    """Whether a transformer takes all `count` columns in an order of its own."""
    return any(
        isinstance(columns, list) and len(columns) == count and columns != list(range(count))
        for part in _parts(numbered)
        for _, _, columns in _branches(part)
    )


def check_numbers(model: Any, title: str) -> None:
    """Errors: `Refused`, naming the transformer that takes words."""
    for part in _parts(model):
        for name, worker, columns in _branches(part):
            wordy = next((found for found in _parts(worker) if _takes_words(found)), None)
            if wordy is not None:
                raise _words(wordy, title, f" {name!r} of the columns {_shown(columns)}")
    for part in _parts(model):
        if _takes_words(part):
            raise _words(part, title, "")


def table(features: np.ndarray, names: Sequence[str]) -> Any:
    """A DataFrame of these columns. Errors: `Refused` where pandas is missing."""
    try:
        import pandas
    except ImportError as error:
        raise Refused(
            "the model was fitted on a DataFrame, and pandas is not installed: pip install pandas."
        ) from error
    return pandas.DataFrame(features, columns=list(names))


def _words(part: Any, title: str, where: str) -> Refused:
    return Refused(
        f"{title} has a {type(part).__qualname__}{where} that takes words, and edgekit runs models "
        "whose values are numbers: write a number for each word into the table, fit on that, and "
        "send numbers to the device."
    )


def _takes_words(part: Any) -> bool:
    """By what it has learnt of its inputs: classes, fillings, a vocabulary."""
    if hasattr(part, "vocabulary_"):
        return True
    learnt = (*getattr(part, "categories_", ()), getattr(part, "statistics_", ()))
    return any(isinstance(item, str) for array in learnt for item in np.asarray(array).ravel())


def _branches(part: Any) -> Sequence[tuple[str, Any, Any]]:
    """Of a ColumnTransformer those that do something: name, transformer, columns."""
    listed = getattr(part, "transformers_", None)
    if not isinstance(listed, list):
        return ()
    return [entry for entry in listed if entry[1] is not None and not _is_dropped(entry[1])]


def _is_dropped(worker: Any) -> bool:
    return isinstance(worker, str) and worker == "drop"


def _numbers(columns: Any, names: Sequence[str]) -> list[int] | None:
    """None where they are numbers already."""
    if isinstance(columns, str):
        return [names.index(columns)]
    if isinstance(columns, slice):
        ends = (columns.start, columns.stop)
        if not any(isinstance(end, str) for end in ends):
            return None
        first = 0 if columns.start is None else names.index(columns.start)
        last = len(names) - 1 if columns.stop is None else names.index(columns.stop)
        return list(range(first, last + 1, columns.step or 1))  # pandas includes the last
    if isinstance(columns, Sequence | np.ndarray) or hasattr(columns, "tolist"):
        listed = list(columns)
        if listed and all(isinstance(column, str) for column in listed):
            return [names.index(column) for column in listed]
    return None


def _shown(columns: Any) -> str:
    listed = [columns] if isinstance(columns, str) else list(columns)
    return ", ".join(repr(str(column)) for column in listed[:5]) + (
        ", …" if len(listed) > 5 else ""
    )


def _parts(model: Any) -> Iterator[Any]:
    """An estimator and all that it is made of."""
    waiting, seen = [model], set()
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Mapping):
            waiting.extend(value.values())
        elif isinstance(value, list | tuple):
            waiting.extend(value)
        elif hasattr(value, "get_params") and not isinstance(value, type):
            yield value
            waiting.extend(vars(value).values())
