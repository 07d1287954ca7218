"""The newest ONNX that a version of onnxruntime reads. Pure.

Found by loading models of each IR version and opset; onnxruntime.ai/docs/reference/compatibility
says the same of opsets. A version between two of the table reads at least what the one before does.
"""

from __future__ import annotations

from typing import Final

from edgekit_contract.compatibility import version_tuple

__all__ = ["OnnxVersions", "most_onnx", "newest_onnx"]

OnnxVersions = tuple[int, int]
"""IR version and opset."""

_READ_BY: Final[tuple[tuple[str, OnnxVersions], ...]] = (
    ("1.14", (8, 18)),
    ("1.15", (9, 19)),
    ("1.17", (9, 20)),
    ("1.18", (10, 21)),
    ("1.22", (10, 22)),
    ("1.23", (11, 23)),
    ("1.32", (14, 28)),
)


def newest_onnx(onnxruntime: str) -> OnnxVersions | None:
    """What this version of onnxruntime reads for certain; None where it is older than the table."""
    version = version_tuple(onnxruntime)
    known = [read for since, read in _READ_BY if version_tuple(since) <= version]
    return known[-1] if known else None


def most_onnx(onnxruntime: str) -> OnnxVersions | None:
    """What this version can read at the most: what the next of the table reads; None where it is
    newer than the table."""
    minor = version_tuple(onnxruntime)[:2]
    return next((read for since, read in _READ_BY if version_tuple(since) >= minor), None)
