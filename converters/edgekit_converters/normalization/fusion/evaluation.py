"""Run a few nodes of a model on arrays, with the kernels that will run them on a device.

Invariant: nothing is computed twice in two ways: what is folded beforehand is what onnxruntime
would have computed. Operators that draw random numbers are never run.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from onnx import ModelProto, NodeProto, ValueInfoProto, helper, numpy_helper

from edgekit_converters.normalization.fusion.scope import CONTRIB

__all__ = ["RANDOM", "Verdict", "evaluate", "verdict"]

RANDOM: Final = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
    | {"Multinomial", "Bernoulli", "Dropout"}
)
_CONTRADICTION: Final = "InferenceError"
"""It says `ShapeInferenceError` or `TypeInferenceError`."""


def evaluate(
    nodes: Sequence[NodeProto],
    constants: Mapping[str, np.ndarray],
    wanted: Sequence[str],
    *,
    opset: int,
) -> list[np.ndarray] | None:
    """Values of `wanted`, or None where onnxruntime cannot run the nodes on these constants."""
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "fragment",
            [],
            [ValueInfoProto(name=name) for name in wanted],
            [numpy_helper.from_array(np.asarray(a), name) for name, a in constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid(CONTRIB, 1)],
        ir_version=8,
    )
    try:
        return [np.asarray(value) for value in _session(model).run(None, {})]
    except Exception:  # it has no public type for what it raises
        return None


class Verdict(enum.IntEnum):
    """What onnxruntime says of a model before it runs."""

    LOADS = 0
    IMPOSSIBLE = 1
    """Types or shapes contradict each other: no input can run."""
    REFUSED = 2
    """Anything else, such as an operator that it lacks."""


def verdict(model: ModelProto) -> Verdict:
    try:
        _session(model)
    except Exception as error:  # it has no public type for this
        return Verdict.IMPOSSIBLE if _CONTRADICTION in str(error) else Verdict.REFUSED
    return Verdict.LOADS


def _session(model: ModelProto) -> Any:
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    settings.intra_op_num_threads = 1
    settings.log_severity_level = 4
    return onnxruntime.InferenceSession(
        model.SerializeToString(), settings, providers=["CPUExecutionProvider"]
    )
