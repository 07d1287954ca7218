"""From rows of DATA to feeds of a model: names, types, shapes and numbers checked once, here.

Invariant: a `Sample` fits the model's inputs and holds no NaN and no infinity.
"""

from __future__ import annotations

import hashlib
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from edgekit_contract.errors import Refused
from edgekit_contract.manifest import TensorSpec

__all__ = ["FEEDS_DIGEST", "LABELS", "DataChanged", "DataRejected", "Digest", "Sample", "fit"]

FEEDS_DIGEST: Final = 8
LABELS: Final = "labels"
"""The array that tells the class of each row, unless the model has an input of that name."""

Row = Mapping[str, np.ndarray]


class DataRejected(Refused):
    """DATA that the model cannot take."""


class DataChanged(DataRejected):
    """Figures of passes over DATA can be compared only if all see the same rows."""

    def __init__(self, title: str = "DATA") -> None:
        super().__init__(
            f"{title} gives other rows in another pass: make it give the same rows each time it "
            "is called."
        )


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What one call of the model gets."""

    feeds: dict[str, np.ndarray]
    labels: np.ndarray | None
    """int64, one per row of the batch, or float64, what should come out; None where the data have
    none."""
    rows: int = 1
    """Rows of DATA that it was made of."""
    number: int = 0
    """Its place among the samples of DATA."""

    @property
    def classes(self) -> np.ndarray | None:
        """The labels, if they are the numbers of classes."""
        return self.labels if self.labels is not None and self.labels.dtype.kind == "i" else None

    def digest(self) -> bytes:
        """A few bytes that tell it from another; the first `FEEDS_DIGEST` heed feeds alone."""
        found = hashlib.blake2b(digest_size=FEEDS_DIGEST)
        for name, array in sorted(self.feeds.items()):
            found.update(f"{name}:{array.dtype.str}:{array.shape};".encode())
            found.update(np.ascontiguousarray(array).tobytes())
        labels = b"" if self.labels is None else np.ascontiguousarray(self.labels).tobytes()
        return found.digest() + hashlib.blake2b(labels, digest_size=4).digest()


class Digest:
    """SHA-256 over the samples that were used, in their order: which data made this variant."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add(self, sample: Sample) -> None:
        for name, array in sorted(sample.feeds.items()):
            self._hash.update(f"{name}:{array.dtype.str}:{array.shape};".encode())
            self._hash.update(np.ascontiguousarray(array).tobytes())

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


def fit(
    rows: Iterator[Row], inputs: Sequence[TensorSpec], *, title: str, may_miss: Container[str] = ()
) -> Iterator[Sample]:
    """Samples for a model with these inputs.

    A row's array has the input's rank, or one less: then it is one element of the input's first
    axis, which is 1 long, or as long as the model fixes it (rows are gathered; what is left over at
    the end is dropped). `title` names the data in messages; of the inputs in `may_miss` NaN
    is a missing value. Errors: `DataRejected`.
    """
    batch = 1
    gathered: list[Row] = []
    number = 0
    for index, row in enumerate(rows):
        where = f"{title}, sample {index}"
        checked = {spec.name: _checked(row, spec, where, spec.name in may_miss) for spec in inputs}
        if index == 0:
            batch = _batch(checked, inputs, where)
        if LABELS in row and LABELS not in checked:
            checked[LABELS] = _labels(row[LABELS], where)
        gathered.append(checked)
        if len(gathered) == batch:
            yield replace(_sample(gathered, inputs, where), rows=batch, number=number)
            gathered = []
            number += 1


def _checked(row: Row, spec: TensorSpec, where: str, may_miss: bool) -> np.ndarray:
    if spec.name not in row:
        held = ", ".join(sorted(row)) or "nothing"
        raise DataRejected(
            f"{where} has no array for the input {spec.name!r}; it has {held}: "
            "name the arrays as the model's inputs."
        )
    array = np.asarray(row[spec.name])
    array = _converted(array, spec, where)
    axes = spec.shape if array.ndim == len(spec.shape) else spec.shape[1:]
    fits = len(array.shape) == len(axes) and all(
        isinstance(want, str) or want == have for want, have in zip(axes, array.shape, strict=True)
    )
    if not fits:
        raise DataRejected(
            f"{where} has shape {list(array.shape)} for the input {spec.name!r}; the model takes "
            f"{_shape_text(spec.shape)}, or without the first axis one row of it."
        )
    if array.dtype.kind == "f":
        spoilt = np.isinf(array) if may_miss else ~np.isfinite(array)
        if spoilt.any():
            what = "infinity" if may_miss else "NaN or infinity"
            raise DataRejected(
                f"{where} has {what} in {spec.name!r}, which means nothing to this model and would "
                "spoil every range and comparison: clean the data."
            )
    return array


def _converted(array: np.ndarray, spec: TensorSpec, where: str) -> np.ndarray:
    """In the input's dtype, if its numbers survive that."""
    want = np.dtype(spec.dtype)
    if array.dtype == want:
        return array
    if array.dtype.kind in "biuf" and (want.kind == "f" or array.dtype.kind in "biu"):
        with np.errstate(over="ignore"):
            cast = array.astype(want)
        if want.kind == "f" or np.array_equal(cast, array):
            return cast
    raise DataRejected(
        f"{where} is {array.dtype} for the input {spec.name!r}, which is {spec.dtype}: "
        "convert the array."
    )


def _batch(row: Row, inputs: Sequence[TensorSpec], where: str) -> int:
    """How many rows make a feed."""
    lengths = {
        spec.shape[0]
        for spec in inputs
        if len(spec.shape) == row[spec.name].ndim + 1 and isinstance(spec.shape[0], int)
    }
    if len(lengths) > 1:
        raise DataRejected(f"{where}: the model's inputs take different batches {sorted(lengths)}.")
    batch = lengths.pop() if lengths else 1
    if batch < 1:
        raise DataRejected(f"{where}: the model takes a batch of {batch} rows.")
    whole = [s.name for s in inputs if len(s.shape) == row[s.name].ndim]
    if batch > 1 and whole:
        raise DataRejected(
            f"{where}: the model takes batches of {batch}, but {whole[0]!r} comes as a whole "
            "batch and others as rows: give all as rows."
        )
    return batch


def _labels(value: np.ndarray, where: str) -> np.ndarray:
    labels = np.asarray(value)
    if labels.dtype.kind not in "biuf":
        raise DataRejected(
            f"{where} has a label of type {labels.dtype}: labels are numbers, such as of classes."
        )
    return labels.astype(np.float64 if labels.dtype.kind == "f" else np.int64).reshape(-1)


def _sample(rows: list[Row], inputs: Sequence[TensorSpec], where: str) -> Sample:
    feeds = {}
    for spec in inputs:
        arrays = [row[spec.name] for row in rows]
        whole = arrays[0].ndim == len(spec.shape)
        shapes = {array.shape for array in arrays}
        if len(shapes) > 1:
            raise DataRejected(f"{where}: rows of one batch differ in shape for {spec.name!r}.")
        feeds[spec.name] = np.ascontiguousarray(arrays[0] if whole else np.stack(arrays))
        if whole:  # ascontiguousarray makes an array of a scalar
            feeds[spec.name] = feeds[spec.name].reshape(arrays[0].shape)
    labels = [row[LABELS] for row in rows if LABELS in row]
    named = any(spec.name == LABELS for spec in inputs)
    return Sample(feeds=feeds, labels=np.concatenate(labels) if labels and not named else None)


def _shape_text(shape: tuple[int | str, ...]) -> str:
    return "[" + ", ".join(str(axis) for axis in shape) + "]"
