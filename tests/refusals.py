"""Builds that must fail, and files that make them fail."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from build_requests import DIGITS, request

from edgekit.build import build
from edgekit_contract.errors import EdgekitError, Refused

__all__ = ["MODEL", "file", "npz", "refusal"]

MODEL = DIGITS / "digits.onnx"


def refusal(tmp_path: Path, kind: type[EdgekitError] = Refused, **changes: object) -> str:
    """The sentence of a build that must fail; no output directory is left."""
    out = tmp_path / "out"
    values = {"model": MODEL, "recipes": ("float32",)} | changes
    with pytest.raises(kind) as caught:
        build(request(values.pop("model"), out, **values))  # type: ignore[arg-type]
    assert not out.exists()
    text = str(caught.value)
    assert text.endswith(".") and "\n" not in text and len(text) < 700
    print(text)
    assert "/tmp/edgekit-" not in text
    return text


def file(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def npz(path: Path, **arrays: np.ndarray) -> str:
    with path.open("wb") as stream:
        np.savez(stream, **arrays)
    return str(path)
