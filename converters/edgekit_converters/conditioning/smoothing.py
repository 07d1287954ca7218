"""Smoothing: outliers of activations moved into the weights that read them.

Where a normalization feeds layers its channels differ by orders of magnitude, and one scale serves
them all. Channel `i` is scaled by `k_i = sqrt(c_i / a_i)`, with `a_i` its greatest value and `c_i`
the greatest weight that reads it (Xiao et al., "SmoothQuant", arXiv 2211.10438, alpha 1/2). The
normalization's own constants take the factors in; where others read its result, too, a Mul before
the layers does.

Invariant: the model computes what it did, up to float32 rounding.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto

from edgekit_converters.conditioning.junctions import (
    Junction,
    Peaks,
    collect_peaks,
    find_junctions,
    scale,
)
from edgekit_converters.conditioning.layers import constant

__all__ = ["smooth", "smooth_file"]


def smooth_file(
    source: Path,
    out: Path,
    samples: Iterable[Mapping[str, np.ndarray]],
    *,
    threads: int,
    scratch: Path,
) -> int:
    """Write the model smoothed; tensors changed. For 0 nothing is written."""
    model = onnx.load_model(source)
    junctions = find_junctions(model, behind_layers=False)
    if not junctions:
        return 0
    peaks = collect_peaks(model, junctions, samples, threads=threads, scratch=scratch)
    changed = smooth(model, peaks)
    if changed:
        onnx.save_model(model, out)
    return changed


def smooth(model: ModelProto, peaks: Peaks) -> int:
    """Smooth a normalized model in place, where there are peaks; tensors changed."""
    junctions = [j for j in find_junctions(model, behind_layers=False) if j.tensor in peaks]
    factors = {}
    for junction in junctions:
        found = _factors(model, junction, peaks[junction.tensor])
        if found is not None:
            factors[junction.tensor] = found
    chosen = [j for j in junctions if j.tensor in factors]
    scale(model, chosen, factors)
    return len(chosen)


def _factors(model: ModelProto, junction: Junction, peaks: np.ndarray) -> np.ndarray | None:
    columns = np.zeros(junction.channels)
    for reader in junction.readers:
        weight = constant(model.graph, reader.weight)
        assert weight is not None
        read = junction.columns(reader, np.abs(reader.matrix(weight)))
        columns = np.maximum(columns, read.max(axis=(1, 3)).ravel())
    lively = (columns > 0) & (peaks > 1e-6 * peaks.max())
    if not lively.any() or not np.isfinite(columns).all() or not np.isfinite(peaks).all():
        return None
    factors = np.sqrt(np.where(lively, columns, 1) / np.where(lively, peaks, 1))
    level = np.exp(np.log(factors[lively]).mean())
    return np.where(lively, factors / level, 1)
