"""Sessions of a model with probes, and what they tell of one sample after the other.

Invariant: what is taken in of a sample depends on the sample and the plan alone, so that samples
can be shared out to processes that work by one plan. A sample whose probes fail, or tell of NaN or
infinity, is run again with the tensors concerned given out whole. (A NaN that a maximum passes over
is not noticed; only whole tensors are searched for it.)
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Collection, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from onnx import ModelProto, ValueInfoProto, helper

from edgekit_converters.calibration.probes import (
    Probe,
    add_probes,
    interleave,
    outputs,
    probe_for,
    rectified,
)
from edgekit_converters.calibration.statistics import TensorStatistics
from edgekit_runtime.backend_onnxruntime import OnnxSession
from edgekit_runtime.session import InferenceFailed, ModelUnloadable

__all__ = ["Plan", "SampleFailed", "Watcher", "plan_probes"]

Plan = Mapping[str, Probe]
"""How to tell of each tensor; inputs of the model are not in it."""

_FLOATS: Final = (np.float32, np.float16)
_SHAPE: Final = "edgekit-shape/"


def plan_probes(
    model: Path,
    tensors: Collection[str],
    feeds: Mapping[str, np.ndarray],
    *,
    threads: int,
    samples: bool = True,
) -> Plan:
    """How to tell of those of the tensors that nodes make, by their shapes for such feeds; without
    `samples` of their extremes alone.

    Errors: those of the runtime.
    """
    proto = onnx.load_model(model, load_external_data=False)
    made = {output for node in proto.graph.node for output in node.output}
    wanted = [name for name in tensors if name in made]
    never_below_zero = rectified(proto.graph)
    returned = {value.name for value in proto.graph.output}
    inner = [name for name in wanted if name not in returned]
    for name in inner:
        proto.graph.node.append(helper.make_node("Shape", [name], [_SHAPE + name]))
        proto.graph.output.append(ValueInfoProto(name=_SHAPE + name))
    with closing(_session(proto, _settings(threads, optimizes=False), model)) as session:
        shapes = session.run(feeds)
    plan = dict.fromkeys(wanted, Probe())
    for name in inner:
        shape = tuple(shapes[_SHAPE + name].tolist())
        plan[name] = probe_for(shape, rectified=name in never_below_zero, samples=samples)
    return plan


class SampleFailed(InferenceFailed):
    """The model failed on a sample of the data."""

    def __init__(self, detail: str, *, index: int) -> None:
        super().__init__(detail)
        self.index = index


class Watcher:
    """Runs samples and enters what it sees."""

    def __init__(self, model: Path, plan: Plan, *, threads: int, scratch: Path) -> None:
        self._model, self._threads, self._scratch = model, threads, scratch
        self._whole: frozenset[str] = frozenset()
        self._whole_session: OnnxSession | None = None
        try:
            self._plan, self._session = plan, self._open(plan)
        except ModelUnloadable:  # a type that the runtime neither pools nor reduces
            self._plan = dict.fromkeys(plan, Probe())
            self._session = self._open(self._plan)
        self._outputs = {name: outputs(name, probe) for name, probe in self._plan.items()}

    def enter(
        self, feeds: Mapping[str, np.ndarray], statistics: Mapping[str, TensorStatistics]
    ) -> None:
        """Take in one sample. Errors: those of the runtime."""
        for name in statistics.keys() & feeds.keys():
            _observe(statistics[name], feeds[name])
        try:
            told = self._session.run(feeds)
        except InferenceFailed:
            told = {}
        unclear = {name for name in self._outputs if not self._enter(name, told, statistics[name])}
        if unclear:
            values = self._run_whole(feeds, unclear)
            for name in unclear:
                _observe(statistics[name], values[name])

    def close(self) -> None:
        self._session.close()
        if self._whole_session is not None:
            self._whole_session.close()

    def _enter(
        self, name: str, told: Mapping[str, np.ndarray], statistics: TensorStatistics
    ) -> bool:
        """Whether that was enough."""
        names = self._outputs[name]
        values = told.get(names.values) if names.values is not None else None
        if names.high is None:
            if values is not None:
                _observe(statistics, values)
            return values is not None
        highs = told.get(names.high)
        if highs is None:
            return False
        if highs.dtype in _FLOATS and highs.size:
            high = float(highs.max())
            low = float(told[names.low]) if names.low is not None else 0.0
            if not math.isfinite(high - low):
                return False
            statistics.observe_part(low, high, values)
        return True

    def _run_whole(
        self, feeds: Mapping[str, np.ndarray], names: Collection[str]
    ) -> dict[str, np.ndarray]:
        if self._whole_session is None or not self._whole.issuperset(names):
            self._whole |= frozenset(names)
            if self._whole_session is not None:
                self._whole_session.close()
            self._whole_session = self._open(dict.fromkeys(self._whole, Probe()))
        return self._whole_session.run(feeds)

    def _open(self, plan: Plan) -> OnnxSession:
        return _probed(self._model, plan, self._threads, self._scratch)


def _observe(statistics: TensorStatistics, values: np.ndarray) -> None:
    if values.dtype in _FLOATS:
        statistics.observe(values)


def _probed(model: Path, plan: Plan, threads: int, scratch: Path) -> OnnxSession:
    """A session of the model with probes, optimized, each probe right after what it reads."""
    proto = onnx.load_model(model, load_external_data=False)
    returned = frozenset(value.name for value in proto.graph.output)
    add_probes(proto, plan)
    with tempfile.TemporaryDirectory(dir=scratch) as directory:
        path = Path(directory) / "optimized.onnx"
        settings = _settings(threads, optimizes=True)
        settings.optimized_model_filepath = str(path)
        settings.add_session_config_entry(
            "session.optimized_model_external_initializers_file_name", "optimized.bin"
        )
        settings.add_session_config_entry(
            "session.optimized_model_external_initializers_min_size_in_bytes", "1024"
        )
        _session(proto, settings, model).close()
        optimized = onnx.load_model(path, load_external_data=False)
        interleave(optimized, returned)
        return _session(optimized, _settings(threads, optimizes=False), path)


def _settings(threads: int, *, optimizes: bool) -> Any:
    import onnxruntime as ort

    settings = ort.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.inter_op_num_threads = 1
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    settings.log_severity_level = 4
    settings.execution_order = ort.ExecutionOrder.PRIORITY_BASED  # that of the file, if it can be
    levels = ort.GraphOptimizationLevel
    settings.graph_optimization_level = (
        levels.ORT_ENABLE_ALL if optimizes else levels.ORT_DISABLE_ALL
    )
    return settings


def _session(proto: ModelProto, settings: Any, path: Path) -> OnnxSession:
    """Errors: `ModelUnloadable`."""
    import onnxruntime as ort

    settings.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(path.parent)
    )
    try:
        session = ort.InferenceSession(
            proto.SerializeToString(), settings, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # onnxruntime raises bare Exception subclasses of its own
        raise ModelUnloadable(path, str(error)) from error
    return OnnxSession(session, path)
