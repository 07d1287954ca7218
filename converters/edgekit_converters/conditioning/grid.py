"""The grid that the integer conversion lays over 8-bit weights. Pure.

Invariant: steps are those of onnxruntime.quantization's `compute_data_quant_params` for symmetric
int8 weights, so that a weight on the grid comes out of the conversion as it went in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

__all__ = ["FULL_LEVELS", "REDUCED_LEVELS", "Grid"]

FULL_LEVELS: Final = 127
REDUCED_LEVELS: Final = 64


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Multiples of a step, symmetric about zero."""

    per_channel: bool
    levels: int = FULL_LEVELS
    """The code of the largest weight; `REDUCED_LEVELS` where the range is reduced."""

    def steps(self, matrix: np.ndarray) -> np.ndarray:
        """Step of each output of [group, output, width], as onnxruntime computes it."""
        axes = -1 if self.per_channel else None
        largest = np.max(np.abs(matrix), axis=axes, keepdims=True)
        steps = (largest.astype(np.float32).astype(np.float64) / self.levels).astype(np.float32)
        tiny = steps < np.finfo(np.float32).tiny
        steps = np.where(tiny, np.float32(1), steps).astype(np.float64)
        return np.broadcast_to(steps, (*matrix.shape[:2], 1))

    def nearest(self, matrix: np.ndarray) -> np.ndarray:
        """What rounding to nearest makes of [group, output, width]."""
        steps = self.steps(matrix)
        rounded: np.ndarray = np.rint(matrix / steps) * steps
        return rounded
