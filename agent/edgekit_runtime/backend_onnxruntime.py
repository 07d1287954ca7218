"""ONNX Runtime behind `session.Session`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from edgekit_contract.manifest import TensorSpec
from edgekit_contract.messages import Execution
from edgekit_contract.profile import RuntimeKind
from edgekit_runtime.providers import CPU, XNNPACK, open_with, record_assignment
from edgekit_runtime.session import (
    InferenceFailed,
    ModelUnloadable,
    Optimization,
    RuntimeMissing,
    SessionOptions,
    Tensors,
    check_feeds,
    execution,
    installed_version,
)

_DISTRIBUTIONS: Final = ("onnxruntime", "onnxruntime-gpu")
_ON_CPU: Final = Execution(asked=(CPU,), used=(CPU,))
_DTYPES: Final = {
    "tensor(float16)": "float16",
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(int8)": "int8",
    "tensor(uint8)": "uint8",
    "tensor(int16)": "int16",
    "tensor(uint16)": "uint16",
    "tensor(int32)": "int32",
    "tensor(uint32)": "uint32",
    "tensor(int64)": "int64",
    "tensor(uint64)": "uint64",
    "tensor(bool)": "bool",
}


def version() -> str | None:
    return installed_version(*_DISTRIBUTIONS)


def is_ort_format(path: Path) -> bool:
    """Whether a file has the identifier of onnxruntime's own format, whatever its name."""
    with path.open("rb") as stream:
        return stream.read(8)[4:] == b"ORTM"


def open_model(path: Path, options: SessionOptions) -> OnnxSession:
    """Load a file of ONNX or of onnxruntime's own format.

    Errors: `RuntimeMissing`, `ModelUnloadable`.
    """
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise RuntimeMissing(RuntimeKind.ONNXRUNTIME, "onnx", error) from error
    try:
        ort_format = is_ort_format(path)
        opened = open_with(
            ort, str(path), lambda wanted: _settings(ort, options, wanted, ort_format), options
        )
    except Exception as error:  # onnxruntime raises bare Exception subclasses of its own
        raise ModelUnloadable(path, str(error)) from error
    return OnnxSession(
        opened.session, path, execution(options.providers or (CPU,), opened.used, opened.lost)
    )


def _settings(
    ort: Any, options: SessionOptions, providers: Sequence[str], is_ort_format: bool
) -> Any:
    settings = ort.SessionOptions()
    # XNNPACK has a pool of its own, and two would fight over the cores (its page of the docs)
    settings.intra_op_num_threads = 1 if XNNPACK in providers else options.threads
    settings.inter_op_num_threads = 1
    settings.log_severity_level = 4
    # Idle threads sleep: a spinning pool would cost a small device a core between requests.
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    settings.graph_optimization_level = {
        Optimization.NONE: ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
        Optimization.BASIC: ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
        Optimization.ALL: ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    }[options.optimization]
    if is_ort_format:
        # else it goes by the name, and a bundle's model is always model.onnx
        settings.add_session_config_entry("session.load_model_format", "ORT")
    record_assignment(settings, providers)
    return settings


class OnnxSession:
    def __init__(self, session: Any, path: Path, execution: Execution = _ON_CPU) -> None:
        self._session, self.execution = session, execution
        self.inputs = tuple(_spec(node, path) for node in session.get_inputs())
        self.outputs = tuple(_spec(node, path) for node in session.get_outputs())
        self._names = [spec.name for spec in self.outputs]

    def run(self, feeds: Tensors) -> dict[str, np.ndarray]:
        check_feeds(self.inputs, feeds)
        try:
            values = self._session.run(self._names, dict(feeds))
        except Exception as error:  # as above
            raise InferenceFailed(str(error)) from error
        return dict(zip(self._names, values, strict=True))

    def close(self) -> None:
        self._session = None


def _spec(node: Any, path: Path) -> TensorSpec:
    dtype = _DTYPES.get(node.type)
    if dtype is None:
        raise ModelUnloadable(
            path, f"{node.name!r} is a {node.type}; edgekit runs models whose values are tensors"
        )
    shape = tuple(
        axis if isinstance(axis, int) else (axis or f"axis{index}")
        for index, axis in enumerate(node.shape)
    )
    return TensorSpec(name=node.name, dtype=dtype, shape=shape)
