"""Run a few nodes of a model on arrays, with the kernels that will run them on a device.

Invariant: nothing is computed twice in two ways: what is folded beforehand is what onnxruntime
would have computed. Operators that draw random numbers are never run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from onnx import NodeProto, ValueInfoProto, helper, numpy_helper

from edgekit_converters.fusion.scope import CONTRIB

__all__ = ["RANDOM", "evaluate"]

RANDOM: Final = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
    | {"Multinomial", "Bernoulli", "Dropout"}
)


def evaluate(
    nodes: Sequence[NodeProto],
    constants: Mapping[str, np.ndarray],
    wanted: Sequence[str],
    *,
    opset: int,
) -> list[np.ndarray] | None:
    """Values of `wanted`, or None where onnxruntime cannot run the nodes on these constants."""
    import onnxruntime

    model = helper.make_model(
        helper.make_graph(
            nodes,
            "fragment",
            [],
            [ValueInfoProto(name=name) for name in wanted],
            [numpy_helper.from_array(np.asarray(a), name) for name, a in constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid(CONTRIB, 1)],
    )
    model.ir_version = min(model.ir_version, 8)
    settings = onnxruntime.SessionOptions()
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    settings.intra_op_num_threads = 1
    settings.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), settings, providers=["CPUExecutionProvider"]
        )
        return [np.asarray(value) for value in session.run(None, {})]
    except Exception:  # whatever onnxruntime raises: the fragment is then left as it is
        return None
