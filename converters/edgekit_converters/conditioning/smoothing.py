"""Smoothing: outliers of activations move into the weights that read them, where they cost less.

A quantizer gives a whole tensor one step, and a few channels of a transformer's activations are
tens of times as large as the rest. Dividing channel k by `s_k` and multiplying row k of the weights
by it changes nothing in float (Xiao et al., "SmoothQuant", ICML 2023, equation 4:
`s_k = max|x_k|^a / max|w_k|^(1 - a)`). Which `a` is best, and whether weights should count at all,
differs from tensor to tensor, and a wrong choice is worse than none (all of MiniLM at 1/2 is): each
is tried on rows of the calibration data. The largest value of a channel is taken as the mean over
samples, so that one sample's outlier does not decide.

Invariant: what the model computes stays the same but for float32 rounding, and no tensor's readers
have a greater simulated error than before. Memory: `_ROWS` rows of each tensor.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path
from typing import Final

import numpy as np
import onnx
from onnx import ModelProto

from edgekit_converters import external
from edgekit_converters.conditioning.grid import FULL_LEVELS
from edgekit_converters.conditioning.junctions import Junction, find_junctions, scale
from edgekit_converters.conditioning.layers import Layer, constant, layers, uses
from edgekit_converters.conditioning.probe import readings

__all__ = ["Rows", "collect_rows", "error", "smooth", "smooth_file"]

_ROWS: Final = 512
"""Of each tensor, over all samples."""
_SAMPLES: Final = 32
_STRENGTHS: Final = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""`a`: how much of the outliers the weights take over."""
_PAID_GAIN: Final = 0.5
"""Where a node must be added, errors must fall below this part of what they were."""
_OUTPUTS: Final = 256
"""Choices are made by about so many outputs; whether the best is worth it is judged by all."""
_STEPS: Final = 255
_PRODUCTS: Final = frozenset({"Gemm", "MatMul"})


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """What layers read of one tensor."""

    values: np.ndarray
    """float32 [row, width]"""
    samples: np.ndarray
    """Number of the sample that each row is of."""
    low: np.ndarray
    """float32 [sample, width]: least value of each channel in all rows of a sample, at most 0."""
    high: np.ndarray


def smooth_file(
    source: Path,
    out: Path,
    samples: Iterable[Mapping[str, np.ndarray]],
    *,
    threads: int,
    scratch: Path,
    paid_share: float = 0.0,
    embedded_bytes: int = external.MAX_EMBEDDED_BYTES,
) -> int:
    """Write a smoothed copy of a normalized model; how many tensors were smoothed. 0: none would
    gain, and there is no file. `paid_share` as for `smooth`. Errors: those of the runtime."""
    model = onnx.load_model(source)
    rows = collect_rows(
        model, samples, threads=threads, scratch=scratch, embedded_bytes=embedded_bytes
    )
    smoothed = smooth(model, rows, paid_share=paid_share)
    if smoothed:
        external.save(model, out, embedded_bytes=embedded_bytes)
    return len(smoothed)


def collect_rows(
    model: ModelProto,
    samples: Iterable[Mapping[str, np.ndarray]],
    *,
    threads: int,
    scratch: Path,
    embedded_bytes: int = external.MAX_EMBEDDED_BYTES,
) -> dict[str, Rows]:
    """Rows of each tensor that could be smoothed, but for those that are never reached or not
    finite. Errors: those of the runtime."""
    tensors = {junction.tensor for junction in _junctions(model)}
    if not tensors:
        return {}
    seen: dict[str, list[np.ndarray]] = {name: [] for name in tensors}
    bounds: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {name: [] for name in tensors}
    feeds = islice(samples, _SAMPLES)
    with readings(
        model, tensors, feeds, threads=threads, scratch=scratch, embedded_bytes=embedded_bytes
    ) as every:
        for values in every:
            for name in tensors:
                flat = values[name].reshape(-1, values[name].shape[-1])
                if not flat.size:
                    continue
                chosen = np.linspace(0, len(flat) - 1, min(len(flat), _ROWS // _SAMPLES))
                seen[name].append(flat[chosen.astype(np.int64)])
                bounds[name].append((flat.min(axis=0, initial=0), flat.max(axis=0, initial=0)))
    return {
        name: Rows(
            values=np.concatenate(rows),
            samples=np.repeat(np.arange(len(rows)), [len(part) for part in rows]),
            low=np.stack([low for low, _ in bounds[name]]),
            high=np.stack([high for _, high in bounds[name]]),
        )
        for name, rows in seen.items()
        if rows and all(np.isfinite(pair).all() for pair in bounds[name])
    }


def smooth(model: ModelProto, rows: Mapping[str, Rows], *, paid_share: float = 0.0) -> list[str]:
    """Smooth in place each tensor of `rows` whose readers' outputs gain by it in 8 bits; the
    tensors that were smoothed.

    Where a node must be added it has to take `paid_share` of the errors of all tensors away: it
    takes as long wherever it is.
    """
    junctions = [junction for junction in _junctions(model) if junction.tensor in rows]
    found = {}
    for junction in junctions:
        weights = [_matrix(model, reader) for reader in junction.readers]
        if all(np.isfinite(weight).all() for weight in weights):
            found[junction.tensor] = _best(rows[junction.tensor], weights)
    worth = paid_share * sum(smoothing.before for smoothing in found.values())
    chosen = [
        junction
        for junction in junctions
        if junction.tensor in found and found[junction.tensor].gains(junction.inserted, worth)
    ]
    scale(model, chosen, {j.tensor: 1 / found[j.tensor].divisors for j in chosen})
    return [junction.tensor for junction in chosen]


def error(rows: Rows, weights: Sequence[np.ndarray], divisors: np.ndarray) -> float:
    """Mean over `weights` [output, width] of the noise of 8-bit outputs, as a part of the outputs'
    mean square: the tensor, divided by `divisors`, quantized as DynamicQuantizeLinear does, and the
    weights times them per output."""
    return _Trial(rows, weights).error(divisors)


class _Trial:
    """What quantizing its readers to 8 bits would do to a tensor's products on some rows."""

    def __init__(
        self, rows: Rows, weights: Sequence[np.ndarray], outputs: int | None = None
    ) -> None:
        """With `outputs`, about so many of all are looked at."""
        self._rows = rows
        stride = 1 if outputs is None else max(1, sum(map(len, weights)) // outputs)
        parts = [weight[::stride].astype(np.float32) for weight in weights]
        self._weights = np.concatenate(parts)
        wanted = [rows.values @ part.T for part in parts]
        self._wanted = np.concatenate(wanted, axis=1)
        power = [max(float(np.mean(w**2, dtype=np.float64)), 1e-30) * w.shape[1] for w in wanted]
        self._power = np.repeat(power, [len(part) for part in parts]) * len(parts)

    def error(self, divisors: np.ndarray) -> float:
        by, rows = divisors.astype(np.float32), self._rows
        low = np.min(rows.low / by, axis=1)[rows.samples, None]
        high = np.max(rows.high / by, axis=1)[rows.samples, None]
        step = np.where(high > low, (high - low) / np.float32(_STEPS), np.float32(1))
        zero = np.rint(-low / step)
        seen = np.clip(np.rint(rows.values / by / step) + zero, 0, _STEPS)
        wide = self._weights * by
        steps = np.max(np.abs(wide), axis=1, keepdims=True) / np.float32(FULL_LEVELS)
        steps = np.where(steps > 0, steps, np.float32(1))
        got = ((seen - zero) * step) @ (np.rint(wide / steps) * steps).T
        noise = np.mean((got - self._wanted) ** 2, axis=0, dtype=np.float64)
        return float(np.sum(noise / self._power))


@dataclass(frozen=True, kw_only=True, eq=False)
class _Smoothing:
    """The best that was found for a tensor."""

    divisors: np.ndarray
    before: float
    """Its readers' error, see `error`."""
    after: float

    def gains(self, inserted: bool, worth: float) -> bool:
        if not inserted:
            return self.after < self.before
        return self.after < _PAID_GAIN * self.before and self.before - self.after >= worth


def _best(rows: Rows, weights: Sequence[np.ndarray]) -> _Smoothing:
    """Found by some outputs, and judged by all."""
    best = min(_candidates(rows, weights), key=_Trial(rows, weights, _OUTPUTS).error)
    whole = _Trial(rows, weights)
    return _Smoothing(
        divisors=best, before=whole.error(np.ones(len(best))), after=whole.error(best)
    )


def _candidates(rows: Rows, weights: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
    """Divisors about 1; 1 for channels or rows of weights that are all zero."""
    activations = np.maximum(-rows.low, rows.high).mean(axis=0, dtype=np.float64)
    widest = np.max([np.abs(weight).max(axis=0) for weight in weights], axis=0)
    live = (activations > 0) & (widest > 0)
    seen, held = np.log2(activations[live]), np.log2(widest[live])
    for strength, share in product(_STRENGTHS, (0.0, 1.0)):
        exponents = strength * seen - share * (1 - strength) * held
        divisors = np.ones(len(live))
        divisors[live] = np.exp2(exponents - (exponents.mean() if len(exponents) else 0))
        yield divisors


def _junctions(model: ModelProto) -> list[Junction]:
    """Tensors that only matrix products by constants of their own need scaled, or get to read a
    scaled copy of."""
    counts = uses(model)
    free = {found.tensor: found for found in find_junctions(model) if not found.inserted}
    reading: dict[str, list[Layer]] = {}
    for layer in layers(model):
        plain = layer.operator in _PRODUCTS and not layer.attributes.get("transA")
        if plain and counts[layer.weight] == 1:
            reading.setdefault(layer.input, []).append(layer)
    return [
        free.get(tensor)
        or Junction(tensor=tensor, channels=readers[0].width, readers=tuple(readers), inserted=True)
        for tensor, readers in reading.items()
    ]


def _matrix(model: ModelProto, layer: Layer) -> np.ndarray:
    """Weights as float64 [output, width]."""
    weight = constant(model.graph, layer.weight)
    assert weight is not None  # `layers` found it
    matrix: np.ndarray = layer.matrix(weight)[0]
    return matrix
