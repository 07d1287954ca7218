"""Equalization: channels balanced between the layers that make and read them.

A scale serves a whole tensor, so a channel much smaller than its neighbours is rounded away. Where
channels can be scaled (`streams`) three things should be even: the rows of weights that make
channel `i` (greatest `r_i`), its values (greatest `a_i`) and the columns that read it (greatest
`c_i`). Nagel et al. (ICCV 2019, section 4.1) even out the first and the last, `k_i = sqrt(c_i /
r_i)`, from the weights alone, which can make activations less even; the least-squares solution, in
logarithms, for all three is `k_i = (c_i / (r_i a_i))^(1/3)`. It is repeated until it moves nothing,
since most layers read one stream and make the next.

Where each row of weights has a scale of its own, the rows are even whatever they are, and what is
rounded in a column is taken back by the others (`rounding`): the values alone are evened out,
`k_i = 1 / a_i` (Meller et al., "Same, same but different", ICML 2019). Of several tensors with the
same channels the geometric mean counts.

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
from edgekit_converters.conditioning.junctions import Junction, Peaks, collect_peaks, scale
from edgekit_converters.conditioning.layers import constant
from edgekit_converters.conditioning.streams import find_streams

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
    with_weights: bool = True,
    embedded_bytes: int = external.MAX_EMBEDDED_BYTES,
) -> int:
    """Write the model equalized; streams changed. For 0 nothing is written.

    `with_weights` evens rows and columns of weights, too.
    """
    model = onnx.load_model(source)
    streams = find_streams(model)
    if not streams:
        return 0
    peaks = collect_peaks(
        model, streams, samples, threads=threads, scratch=scratch, embedded_bytes=embedded_bytes
    )
    changed = equalize(model, peaks, with_weights=with_weights)
    if changed:
        external.save(model, out, embedded_bytes=embedded_bytes)
    return changed


def equalize(model: ModelProto, peaks: Peaks, *, with_weights: bool = True) -> int:
    """Balance a normalized model's channels in place; streams changed. Those that have no peaks
    are balanced by weights alone, if at all."""
    streams = find_streams(model)
    if with_weights:
        logarithms = _balanced(model, streams, peaks)
    else:
        logarithms = {stream.tensor: _levelled(stream, peaks) for stream in streams}
    notable = [s for s in streams if np.abs(logarithms[s.tensor]).max() > _NOTABLE]
    scale(model, notable, {s.tensor: np.exp(logarithms[s.tensor]) for s in notable})
    return len(notable)


def _levelled(stream: Junction, peaks: Peaks) -> np.ndarray:
    """Logarithm of the factors that make all channels' values equally large."""
    values, lively = _values(stream, peaks)
    if values is None:
        return np.zeros(stream.channels)
    return _bounded(-values, lively, np.zeros(stream.channels))


def _balanced(
    model: ModelProto, streams: Sequence[Junction], peaks: Peaks
) -> dict[str, np.ndarray]:
    """Logarithm of each stream's factors, weights considered."""
    matrices = {}
    for stream in streams:
        for layer in (*stream.readers, *stream.sources):
            values = constant(model.graph, layer.weight)
            assert values is not None
            matrices[layer.name] = np.abs(layer.matrix(values))
    total = {stream.tensor: np.zeros(stream.channels) for stream in streams}
    for _ in range(_ROUNDS):
        greatest = 0.0
        for stream in streams:
            made = [matrices[source.name] for source in stream.sources]
            read = [stream.columns(r, matrices[r.name]) for r in stream.readers]
            step = _step(stream, made, read, peaks, total[stream.tensor])
            total[stream.tensor] += step
            factor = np.exp(step)
            for rows in made:
                np.multiply(rows, factor.reshape(*rows.shape[:2], 1), out=rows)
            for columns in read:
                np.divide(columns, factor.reshape(len(columns), 1, -1, 1), out=columns)
            greatest = max(greatest, float(np.abs(step).max()))
        if greatest < _STILL:
            break
    return total


def _step(
    stream: Junction,
    made: Sequence[np.ndarray],
    read: Sequence[np.ndarray],
    peaks: Peaks,
    total: np.ndarray,
) -> np.ndarray:
    """Logarithm of the factors by which channels are out of balance; silent ones stay."""
    rows = np.max([m.max(axis=-1).ravel() for m in made], axis=0)
    columns = np.max([r.max(axis=(1, 3)).ravel() for r in read], axis=0)
    values, lively = _values(stream, peaks)
    lively = lively & (rows > 0) & (columns > 0) & np.isfinite(rows) & np.isfinite(columns)
    step = _log(columns, lively) - _log(rows, lively)
    if values is None:
        return np.where(lively, np.clip(total + step / 2, -_MOST, _MOST) - total, 0)
    return _bounded((step - values - total) / 3, lively, total)


def _bounded(step: np.ndarray, lively: np.ndarray, total: np.ndarray) -> np.ndarray:
    """The step of lively channels, as far as it may go beyond `total`; the level of all channels
    together is nobody's concern but float32's."""
    if not lively.any():
        return np.zeros(len(step))
    step = step - step[lively].mean()
    return np.where(lively, np.clip(total + step, -_MOST, _MOST) - total, 0)


def _values(stream: Junction, peaks: Peaks) -> tuple[np.ndarray | None, np.ndarray]:
    """Logarithm of each channel's greatest values, as parts of its tensors' greatest, and which
    channels have any."""
    seen = [peaks[name] for name in stream.rounded if name in peaks]
    lively = np.ones(stream.channels, bool)
    if not seen:
        return None, lively
    for values in seen:
        lively &= (values > 1e-6 * values.max()) & np.isfinite(values)
    return np.mean([_log(v / max(v.max(), 1e-30), lively) for v in seen], axis=0), lively


def _log(values: np.ndarray, lively: np.ndarray) -> np.ndarray:
    logarithms: np.ndarray = np.log(np.where(lively, values, 1))
    return logarithms
