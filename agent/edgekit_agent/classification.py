"""The classification extension of the Open Inference Protocol: scores to `score:index:label`.

Pure. Source: Triton inference server, protocol/extension_classification.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Classes", "classify"]


@dataclass(frozen=True, kw_only=True)
class Classes:
    """What a bundle says of one output whose last axis are classes."""

    labels: Sequence[str] = ()
    softmax: bool = False


def classify(scores: np.ndarray, count: int, classes: Classes) -> np.ndarray:
    """The `count` greatest of the last axis, greatest first, as an array of strings.

    `scores`: numbers [..., classes], finite. The label is left out where there is none.
    """
    scores = np.atleast_1d(scores)
    values = scores.astype(np.float64)
    if classes.softmax:
        values = np.exp(values - values.max(axis=-1, keepdims=True))
        values /= values.sum(axis=-1, keepdims=True)
    top = np.argsort(-values, axis=-1, kind="stable")[..., : min(count, scores.shape[-1])]
    best = np.take_along_axis(values, top, axis=-1)
    texts = [
        f"{value:.6g}:{index}"
        + (f":{classes.labels[index]}" if index < len(classes.labels) else "")
        for value, index in zip(best.ravel().tolist(), top.ravel().tolist(), strict=True)
    ]
    return np.array(texts, dtype=object).reshape(top.shape)
