"""Tensors that cross to a child process and back: an `.npz` of named arrays.

Invariant: names come back as they went in, whatever characters they hold: members are numbered and
their names are an array of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np

__all__ = ["read_tensors", "write_tensors"]


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    names = np.frombuffer(msgspec.json.encode(list(tensors)), np.uint8)
    members = {f"t{index}": array for index, array in enumerate(tensors.values())}
    with path.open("wb") as stream:
        np.savez(stream, allow_pickle=False, names=names, **members)


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as archive:
        names = msgspec.json.decode(archive["names"].tobytes(), type=list[str])
        return {name: archive[f"t{index}"] for index, name in enumerate(names)}
