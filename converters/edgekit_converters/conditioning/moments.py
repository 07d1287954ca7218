"""Moments of what weighted nodes read: the second moments and the mean of their input rows.

With them the change of a layer's output that a change of its weights makes is a quadratic form,
known without the data (the layer-wise objective of Nagel et al., "Up or down? Adaptive rounding for
post-training quantization", ICML 2020, and of Frantar and Alistarh, "Optimal brain compression",
arXiv 2208.11580).

Invariant: memory is flat in the number of samples: one sample's inputs of the weighted nodes, fewer
than `_WAITING_ROWS` rows a node that are not counted yet, and float64 second moments of at most
`_GRAM_BYTES` for all nodes together; nodes that read the same rows share them. Which rows are
looked at follows from the sample's number alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import onnx

from edgekit_contract import limits
from edgekit_converters.conditioning.layers import Layer, layers
from edgekit_converters.conditioning.probe import readings
from edgekit_converters.tensorfile import read_tensors, write_tensors

__all__ = ["Moments", "collect_moments", "damped", "read_moments", "write_moments"]

_MIN_ROWS: Final = 64
_MAX_ROWS: Final = 256
"""Rows of one sample that are looked at: twice the width within these bounds."""
_MAX_WIDTH: Final = 4096
"""Rows longer than this would need second moments of more than 128 MiB for one node."""
_GRAM_BYTES: Final = 768 * limits.MIB
_WAITING_ROWS: Final = 128
"""Together they are one product; to add what a few rows come to takes longer than to find it."""
_ENOUGH_ROWS: Final = 4
"""Rows per element of a node's rows that tell nearly all."""
_DAMPING: Final = 0.01
"""Of the mean diagonal: directions that calibration has not seen are not free."""
_INDEX: Final = "nodes"


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Of the rows that a node's weights multiply."""

    gram: np.ndarray
    """Mean of `row row^T`: float64 [group, width, width]."""
    mean: np.ndarray
    """Float64 [group, width]."""
    rows: int

    @property
    def covariance(self) -> np.ndarray:
        """Second moments about the mean: what is left where a bias absorbs the mean."""
        spread: np.ndarray = self.gram - self.mean[:, :, None] * self.mean[:, None, :]
        return spread


def damped(hessian: np.ndarray, rows: int) -> np.ndarray:
    """Second moments [group, width, width] of `rows` rows as far as so few tell them: what goes
    together by chance, where a row is longer than there are rows, does not.

    Half as many rows as a row is long count as seen whose elements are unrelated, a shrinkage
    towards the diagonal (Schäfer and Strimmer, "A shrinkage approach to large-scale covariance
    matrix estimation", Stat. Appl. Genet. Mol. Biol. 4(1), 2005, target D).
    """
    width = hessian.shape[-1]
    diagonal = np.einsum("gdd->gd", hessian)
    part = width / (width + 2 * rows)
    floor = _DAMPING * diagonal.mean(axis=1, keepdims=True)
    shrunk: np.ndarray = (1 - part) * hessian
    shrunk += np.eye(width) * (part * diagonal + floor)[:, None]
    return shrunk


class _Sum:
    def __init__(self, layer: Layer) -> None:
        self.layer = layer
        self.gram = np.zeros((layer.groups, layer.width, layer.width))
        self.mean = np.zeros((layer.groups, layer.width))
        self.rows = 0
        self._waiting: list[np.ndarray] = []

    @property
    def is_enough(self) -> bool:
        return self.rows >= _ENOUGH_ROWS * self.layer.width

    def add(self, values: np.ndarray, seed: int) -> None:
        most = min(max(_MIN_ROWS, 2 * self.layer.width), _MAX_ROWS)
        rows = self.layer.rows(values, lambda total: _spread(total, most, seed))
        self._waiting.append(np.ascontiguousarray(rows, np.float32))
        self.rows += rows.shape[1]
        if sum(rows.shape[1] for rows in self._waiting) >= _WAITING_ROWS:
            self._count()

    def _count(self) -> None:
        rows = np.concatenate(self._waiting, axis=1)
        self._waiting.clear()
        # float32 within a product, float64 across products
        self.gram += np.matmul(rows.swapaxes(1, 2), rows)
        self.mean += np.matmul(np.ones((1, rows.shape[1]), np.float32), rows)[:, 0]

    def moments(self) -> Moments | None:
        if self._waiting:
            self._count()
        if not self.rows or not np.isfinite(self.gram).all():
            return None
        return Moments(gram=self.gram / self.rows, mean=self.mean / self.rows, rows=self.rows)


def _spread(total: int, most: int, seed: int) -> np.ndarray:
    """Positions evenly over `total`, jittered, or else all would be of one column of an image."""
    if total <= most:
        return np.arange(total)
    jitter = np.random.default_rng(seed).random(most)
    return ((np.arange(most) + jitter) * (total / most)).astype(np.int64)


def collect_moments(
    model: Path,
    nodes: Sequence[str],
    samples: Iterable[Mapping[str, np.ndarray]],
    *,
    threads: int,
    scratch: Path,
    least: int | None = None,
) -> dict[str, Moments]:
    """Moments of each named node of a normalized ONNX model over the samples' feeds: all, or at
    least `least` and then as many as it takes until more would tell little.

    Left out: nodes that are no layers, whose rows are too long, that were never reached or whose
    inputs were not finite. Errors: those of the runtime.
    """
    proto = onnx.load_model(model)
    sums = _sums([layer for layer in layers(proto) if layer.name in set(nodes)])
    unique = list({id(entry): entry for entry in sums.values()}.values())
    tensors = {entry.layer.input for entry in unique}
    with readings(proto, tensors, samples, threads=threads, scratch=scratch) as seen:
        for seed, values in enumerate(seen):
            for entry in unique:
                if values[entry.layer.input].size:
                    entry.add(values[entry.layer.input], seed)
            is_least = least is not None and seed + 1 >= least
            if is_least and all(entry.is_enough for entry in unique):
                break
    found = {id(entry): entry.moments() for entry in unique}
    pairs = ((name, found[id(entry)]) for name, entry in sums.items())
    return {name: moments for name, moments in pairs if moments is not None}


def _sums(chosen: Sequence[Layer]) -> dict[str, _Sum]:
    """A sum for each layer, narrow ones first while they fit."""
    shared: dict[object, _Sum] = {}
    sums: dict[str, _Sum] = {}
    room = _GRAM_BYTES
    for layer in sorted(chosen, key=lambda entry: entry.groups * entry.width**2):
        if layer.width > _MAX_WIDTH:
            continue
        if layer.reading not in shared:
            room -= 8 * layer.groups * layer.width**2
            if room < 0:
                break
            shared[layer.reading] = _Sum(layer)
        sums[layer.name] = shared[layer.reading]
    return sums


def write_moments(path: Path, found: Mapping[str, Moments]) -> None:
    """Write what `read_moments` reads; what nodes share is written once."""
    unique = list({id(moments): moments for moments in found.values()}.values())
    numbers = {id(moments): number for number, moments in enumerate(unique)}
    index = {name: numbers[id(moments)] for name, moments in found.items()}
    tensors = {_INDEX: np.frombuffer(msgspec.json.encode(index), np.uint8)}
    for number, moments in enumerate(unique):
        tensors[f"gram {number}"] = moments.gram
        tensors[f"mean {number}"] = moments.mean
        tensors[f"rows {number}"] = np.array(moments.rows)
    write_tensors(path, tensors)


def read_moments(path: Path) -> dict[str, Moments]:
    tensors = read_tensors(path)
    index = msgspec.json.decode(tensors[_INDEX].tobytes(), type=dict[str, int])
    shared = {
        number: Moments(
            gram=tensors[f"gram {number}"],
            mean=tensors[f"mean {number}"],
            rows=int(tensors[f"rows {number}"]),
        )
        for number in set(index.values())
    }
    return {name: shared[number] for name, number in index.items()}
