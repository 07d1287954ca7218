"""What a rewritten copy of a model does to the outputs: how it is opened, and its noise."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from onnx import ModelProto

from edgekit_contract.profile import RuntimeKind
from edgekit_converters import external
from edgekit_runtime.session import Optimization, Session, SessionOptions, open_session

__all__ = ["decibels", "opened", "powers"]

_LEAST_DB: Final = -200.0
"""No noise at all."""
_BROKEN: Final = 1e12
"""Noise to signal of what makes numbers into NaN or infinity."""


def opened(
    proto: ModelProto,
    threads: int,
    scratch: Path,
    embedded_bytes: int,
    optimization: Optimization = Optimization.NONE,
) -> Session:
    """A session of a copy that is in memory. Errors: those of the runtime.

    Optimized, onnxruntime would round weights once more, and coarser, where what reads them has
    constant scales.
    """
    options = SessionOptions(threads=threads, optimization=optimization)
    with tempfile.TemporaryDirectory(dir=scratch) as directory:
        path = Path(directory) / "switched.onnx"
        external.save(proto, path, embedded_bytes=embedded_bytes)
        return open_session(RuntimeKind.ONNXRUNTIME, path, options)


def powers(got: Sequence[np.ndarray], want: Sequence[np.ndarray]) -> np.ndarray:
    """Sums of squares of error and signal, float64 [outputs, 2]; counts of what has no distance."""
    found = []
    for array, right in zip(got, want, strict=True):
        if array.shape != right.shape:  # as many rows as were found: all of them wrong
            found.append((float(right.size), float(right.size)))
        elif right.dtype.kind != "f":
            found.append((float((array != right).sum()), float(right.size)))
        else:
            finite = np.isfinite(right)
            wide = right[finite].astype(np.float64)
            error = array[finite] - wide
            power = float(wide @ wide)
            broken = not np.isfinite(error).all()
            found.append((power * _BROKEN if broken else float(error @ error), power))
    return np.array(found)


def decibels(noise: float, signal: float = 1.0) -> float:
    """Noise over signal, finite always."""
    if not noise > 0 or not signal > 0:
        return _LEAST_DB
    return max(_LEAST_DB, float(10 * np.log10(noise / signal)))
