"""A runtime with no model format of its own: tests the stack where no other is installed.

Its model file is JSON: `{"inputs": [TensorSpec...], "scale": x, "delay_s": x, "fail_above": x}`.
It has one output `y`: for each row of the first input, `scale` times the row's sum. A request with
an element above `fail_above` fails, one takes `delay_s` seconds; both are there to test what a
model can do to its surroundings.
"""

from __future__ import annotations

import time
from pathlib import Path

import msgspec
import numpy as np

from edgekit_contract.manifest import TensorSpec
from edgekit_contract.messages import Execution
from edgekit_runtime.session import (
    InferenceFailed,
    ModelUnloadable,
    SessionOptions,
    Tensors,
    check_feeds,
)

_VERSION = "1.0.0"


class _Model(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    inputs: tuple[TensorSpec, ...]
    scale: float = 1.0
    delay_s: float = 0.0
    fail_above: float | None = None


def version() -> str | None:
    return _VERSION


def open_model(path: Path, options: SessionOptions) -> NullSession:
    try:
        model = msgspec.json.decode(path.read_bytes(), type=_Model)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ModelUnloadable(path, str(error)) from error
    if not model.inputs or not model.inputs[0].shape:
        raise ModelUnloadable(path, "its first input has no axis")
    return NullSession(model)


class NullSession:
    execution = Execution()

    def __init__(self, model: _Model) -> None:
        self._model = model
        self.inputs = model.inputs
        self.outputs = (TensorSpec(name="y", dtype="float32", shape=(model.inputs[0].shape[0],)),)

    def run(self, feeds: Tensors) -> dict[str, np.ndarray]:
        check_feeds(self.inputs, feeds)
        first = feeds[self.inputs[0].name].astype(np.float32)
        if self._model.delay_s:
            time.sleep(self._model.delay_s)
        if self._model.fail_above is not None and (first > self._model.fail_above).any():
            raise InferenceFailed(f"an element is above {self._model.fail_above}")
        rows = first.sum(axis=tuple(range(1, first.ndim)))
        return {"y": (rows * self._model.scale).astype(np.float32)}

    def close(self) -> None:
        pass
