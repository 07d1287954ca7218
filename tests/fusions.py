"""Models as text, fused and run beside what they were."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import ModelProto, numpy_helper

from edgekit_converters import graph
from edgekit_converters.normalization.fusion import fuse


def parsed(text: str, *, opset: int = 17, **constants: Any) -> ModelProto:
    """A model in ONNX's textual syntax (`graph (float[N] x) => (float[N] y) {...}`)."""
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]>\n{text}')
    for name, value in constants.items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    return model


def outputs(model: ModelProto, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4
    settings.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), settings, providers=["CPUExecutionProvider"]
    )
    return [np.asarray(value) for value in session.run(None, dict(feeds))]


def fused(
    model: ModelProto, *samples: Mapping[str, np.ndarray], close: float = 1e-5
) -> Counter[str]:
    """Operators of the fused model, which has to give on `samples` what the model gives."""
    rewritten = ModelProto()
    rewritten.CopyFrom(model)
    fuse(rewritten)
    for feeds in samples:
        for got, want in zip(outputs(rewritten, feeds), outputs(model, feeds), strict=True):
            assert got.dtype == want.dtype
            np.testing.assert_allclose(got, want, rtol=close, atol=close)
    return graph.operators(rewritten)


def normal(*shape: int, scale: float = 1.0, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)
