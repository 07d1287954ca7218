"""Rounding of weights that changes a layer's output least, rather than each weight least.

For a row `w` of weights, codes `q` and step `s` the mean squared change of the output over the
calibration rows is `(s q - w)^T H (s q - w)`, with `H` the second moments of the input rows (Nagel
et al., "Up or down?", ICML 2020, equation 13). It is lowered by coordinate descent over the codes:
each is set to its best integer given the others, from rounding to nearest on (Behdin et al.,
"QuantEase", arXiv 2309.01885). Where a bias absorbs the mean change, `H` is about the mean.

Invariant: on the calibration rows no output is worse than with rounding to nearest; a row that
would be keeps the nearest codes. Weights come out on the grid that the integer conversion lays
over them by itself, since the largest of each range stays where it is. Memory: six float64 copies
of one layer's weights, at most `_OUTPUTS_AT_ONCE` outputs at a time, beside its second moments.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

import numpy as np
from onnx import ModelProto

from edgekit_converters import graph
from edgekit_converters.conditioning.bias import bias_slot
from edgekit_converters.conditioning.grid import Grid
from edgekit_converters.conditioning.layers import constant, layers, replace, uses
from edgekit_converters.conditioning.moments import Moments, damped

__all__ = ["reconstruct"]

_SWEEPS: Final = 3
_BLOCK: Final = 64
"""Columns whose changes are applied to the others together."""
_OUTPUTS_AT_ONCE: Final = 4096


def reconstruct(
    model: ModelProto,
    moments: Mapping[str, Moments],
    *,
    nodes: Collection[str],
    grid: Grid,
    corrected: bool = False,
) -> list[str]:
    """Round the weights of the named nodes in place; the nodes that were changed.

    With `corrected` each bias also absorbs the mean change (`conditioning.bias`), and rounding
    need not. Left as they are: nodes without moments, and weights that others read, too.
    """
    counts = uses(model)
    changed = []
    for layer in layers(model):
        if layer.name not in nodes or layer.name not in moments or counts[layer.weight] != 1:
            continue
        weight = constant(model.graph, layer.weight)
        if weight is None or not np.isfinite(weight).all():
            continue
        seen = moments[layer.name]
        matrix = layer.matrix(weight)
        slot = bias_slot(model, layer) if corrected else None
        hessian = seen.gram if slot is None else seen.covariance
        rounded = _rounded(matrix, grid, hessian, seen.rows)
        replace(graph.initializers(model.graph)[layer.weight], layer.tensor(rounded))
        if slot is not None:
            slot.absorb(np.einsum("god,gd->go", matrix - rounded, seen.mean).ravel())
        changed.append(layer.name)
    return changed


def _rounded(matrix: np.ndarray, grid: Grid, hessian: np.ndarray, rows: int) -> np.ndarray:
    steps = grid.steps(matrix)
    known = damped(hessian, rows)
    nearest = np.rint(matrix / steps)
    whole = np.empty_like(matrix)
    for start in range(0, matrix.shape[1], _OUTPUTS_AT_ONCE):
        part = slice(start, start + _OUTPUTS_AT_ONCE)
        wanted, step, near = matrix[:, part], steps[:, part], nearest[:, part]
        codes = _descended(near, wanted, step, hessian=known, levels=grid.levels)
        loss, limit = (_loss(c * step - wanted, hessian) for c in (codes, near))
        whole[:, part] = np.where((loss < limit)[..., None], codes, near) * step
    return whole


def _descended(
    nearest: np.ndarray,
    matrix: np.ndarray,
    steps: np.ndarray,
    *,
    hessian: np.ndarray,
    levels: int,
) -> np.ndarray:
    """Codes [group, output, width] of a lower quadratic form than `nearest`.

    The descent is in float32, by columns: [group, width, output].
    """
    curvature = np.einsum("gdd->gd", hessian)
    # the largest weight stays, for it tells the conversion the step
    fixed = (np.abs(nearest) >= levels) | (curvature <= 0)[:, None, :]
    codes, free, error = (
        np.ascontiguousarray(array.swapaxes(1, 2), np.float32)
        for array in (nearest, ~fixed, nearest * steps - matrix)
    )
    narrow, step = hessian.astype(np.float32), steps[..., 0].astype(np.float32)
    slope = np.matmul(narrow, error)
    for _ in range(_SWEEPS):
        if not _sweep(codes, slope, step=step, hessian=narrow, free=free, levels=levels):
            break
    found: np.ndarray = codes.swapaxes(1, 2).astype(np.float64)
    return found


def _sweep(
    codes: np.ndarray,
    slope: np.ndarray,
    *,
    step: np.ndarray,
    hessian: np.ndarray,
    free: np.ndarray,
    levels: int,
) -> bool:
    """Set each column of codes to its best in turn; whether any changed. `slope` is half the
    gradient of the quadratic form; `step` is [group, output]."""
    moved = False
    curvature = np.einsum("gdd->gd", hessian)
    scale = 1 / np.where(curvature > 0, curvature, 1)
    for start in range(0, codes.shape[1], _BLOCK):
        block = slice(start, start + _BLOCK)
        before = codes[:, block].copy()
        local = slope[:, block].copy()
        for at in range(before.shape[1]):
            column = start + at
            old = codes[:, column]
            wanted = old - np.rint(local[:, at] * scale[:, column, None] / step)
            change = (np.clip(wanted, -levels, levels) - old) * free[:, column]
            if not change.any():
                continue
            codes[:, column] = old + change
            beyond = hessian[:, column + 1 : block.stop, column]
            local[:, at + 1 :] += beyond[:, :, None] * (change * step)[:, None, :]
        change = (codes[:, block] - before) * step[:, None, :]
        if change.any():
            moved = True
            slope += np.matmul(hessian[:, :, block], change)
    return moved


def _loss(change: np.ndarray, hessian: np.ndarray) -> np.ndarray:
    loss: np.ndarray = np.einsum("god,god->go", np.matmul(change, hessian), change)
    return loss
