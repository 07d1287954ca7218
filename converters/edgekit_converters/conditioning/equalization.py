"""Cross-layer equalization: channels balanced between the layers that make and read them.

A scale serves a whole tensor, so a channel much smaller than its neighbours is rounded away. Where
channels can be scaled (`junctions`) three things should be even: the rows of weights that make
channel `i` (greatest `r_i`), its values (greatest `a_i`) and the columns that read it (greatest
`c_i`). Nagel et al. (ICCV 2019, section 4.1) even out the first and the last, `k_i = sqrt(c_i /
r_i)`, from the weights alone, which can make activations less even; the least-squares solution, in
logarithms, for all three is `k_i = (c_i / (r_i a_i))^(1/3)`. It is repeated until it moves nothing,
since most layers read one junction and make the next.

Invariant: the model computes what it did, up to float32 rounding.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import onnx
from onnx import ModelProto

from edgekit_converters import external
from edgekit_converters.conditioning.junctions import (
    Junction,
    Peaks,
    collect_peaks,
    find_junctions,
    scale,
)
from edgekit_converters.conditioning.layers import constant

__all__ = ["equalize", "equalize_file"]

_ROUNDS: Final = 40
_STILL: Final = 1e-3
_NOTABLE: Final = 0.01
"""Logarithms of factors: what moves nothing, and what is a change at all."""
_MOST: Final = float(np.log(256))
"""A channel is scaled by no more than this: beyond it float32 itself may suffer."""


def equalize_file(
    source: Path,
    out: Path,
    samples: Iterable[Mapping[str, np.ndarray]],
    *,
    threads: int,
    scratch: Path,
    embedded_bytes: int = external.MAX_EMBEDDED_BYTES,
) -> int:
    """Write the model equalized; junctions changed. For 0 nothing is written."""
    model = onnx.load_model(source)
    junctions = find_junctions(model, behind_layers=True)
    if not junctions:
        return 0
    peaks = collect_peaks(
        model, junctions, samples, threads=threads, scratch=scratch, embedded_bytes=embedded_bytes
    )
    changed = equalize(model, peaks)
    if changed:
        external.save(model, out, embedded_bytes=embedded_bytes)
    return changed


def equalize(model: ModelProto, peaks: Peaks) -> int:
    """Balance a normalized model's channels in place; junctions changed. Those that have no peaks
    are balanced by weights alone."""
    junctions = find_junctions(model, behind_layers=True)
    logarithms = _balanced(model, junctions, peaks)
    notable = [j for j in junctions if np.abs(logarithms[j.tensor]).max() > _NOTABLE]
    scale(model, notable, {j.tensor: np.exp(logarithms[j.tensor]) for j in notable})
    return len(notable)


def _balanced(
    model: ModelProto, junctions: Sequence[Junction], peaks: Peaks
) -> dict[str, np.ndarray]:
    """Logarithm of each junction's factors."""
    matrices = {}
    for junction in junctions:
        assert junction.source is not None
        for layer in (*junction.readers, junction.source):
            values = constant(model.graph, layer.weight)
            assert values is not None
            matrices[layer.name] = np.abs(layer.matrix(values))
    total = {j.tensor: np.zeros(j.channels) for j in junctions}
    for _ in range(_ROUNDS):
        greatest = 0.0
        for junction in junctions:
            assert junction.source is not None
            made = matrices[junction.source.name]
            read = [junction.columns(r, matrices[r.name]) for r in junction.readers]
            step = _step(junction, made, read, peaks.get(junction.tensor), total[junction.tensor])
            total[junction.tensor] += step
            factor = np.exp(step)
            np.multiply(made, factor.reshape(*made.shape[:2], 1), out=made)
            for columns in read:
                np.divide(columns, factor.reshape(len(columns), 1, -1, 1), out=columns)
            greatest = max(greatest, float(np.abs(step).max()))
        if greatest < _STILL:
            break
    return total


def _step(
    junction: Junction,
    made: np.ndarray,
    read: Sequence[np.ndarray],
    peaks: np.ndarray | None,
    total: np.ndarray,
) -> np.ndarray:
    """Logarithm of the factors by which channels are out of balance; silent ones stay."""
    rows = made.max(axis=-1).ravel()
    columns = np.max([r.max(axis=(1, 3)).ravel() for r in read], axis=0)
    lively = (rows > 0) & (columns > 0) & np.isfinite(rows) & np.isfinite(columns)
    values = np.exp(total) * peaks if peaks is not None else None
    if values is not None:
        lively &= (values > 1e-6 * values.max()) & np.isfinite(values)
    if not lively.any():
        return np.zeros(junction.channels)
    step = _log(columns, lively) - _log(rows, lively)
    if values is None:
        step /= 2
    else:
        step = (step - _log(values, lively)) / 3
        # the level of all channels together is nobody's concern but float32's
        step -= step[lively].mean()
    return np.where(lively, np.clip(total + step, -_MOST, _MOST) - total, 0)


def _log(values: np.ndarray, lively: np.ndarray) -> np.ndarray:
    logarithms: np.ndarray = np.log(np.where(lively, values, 1))
    return logarithms
