"""Fusion as a step of normalization: proved, and heeded by quantization."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from fusions import fused, normal, parsed
from small_models import SMALL_MODELS

from edgekit_contract.profile import RuntimeKind
from edgekit_converters import graph
from edgekit_converters.normalization import normalize
from edgekit_converters.normalization.fusion import fuse
from edgekit_converters.proof import Tried, generated, try_out
from edgekit_runtime.session import open_session


def test_normalization_ends_with_fusion_and_proves_it(tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    onnx.save_model(
        parsed(
            "g (float[N, 4, 9] x) => (float[N, 6, 1] y) { c = Conv(x, w) d = Add(c, b)"
            " e = Div(d, root) f = Erf(e) h = Add(f, one) i = Mul(d, h) j = Mul(i, half)"
            " y = GlobalMaxPool(j) }",
            w=normal(6, 4, 3), b=normal(6, 1), root=np.float32(2**0.5), one=np.float32(1),
            half=np.float32(0.5),
        ),
        model,
    )  # fmt: skip
    trials = msgspec.convert(try_out(str(model), "onnxruntime", [], str(tmp_path)), Tried).trials
    found = normalize(model, trials=trials, scratch=tmp_path)
    assert found.remarks == ()
    assert graph.operators(onnx.load_model(found.path)) == {
        "Conv": 1, "ReduceMax": 1, "ReduceMin": 1, "com.microsoft:Gelu": 2, "Max": 1,
    }  # fmt: skip


def test_weights_in_another_file_are_not_read(tmp_path: Path) -> None:
    made = parsed(
        "g (float[N, 4] x) => (float[N, 4] y) { a = Mul(w, two) b = MatMul(x, a) y = Identity(b) }",
        w=normal(4, 4), two=np.float32(2),
    )  # fmt: skip
    path = tmp_path / "model.onnx"
    onnx.save_model(made, path, save_as_external_data=True, location="weights", size_threshold=8)
    (tmp_path / "weights").unlink()
    model = onnx.load_model(path, load_external_data=False)
    fuse(model)
    assert graph.operators(model) == {"Mul": 1, "MatMul": 1}


@pytest.mark.parametrize("name", SMALL_MODELS)
def test_every_small_model_computes_the_same_after_fusion(name: str, tmp_path: Path) -> None:
    model = SMALL_MODELS[name]()
    path = tmp_path / "model.onnx"
    onnx.save_model(model, path)
    specs = open_session(RuntimeKind.ONNXRUNTIME, path).inputs
    for seed in range(3):
        fused(model, generated(specs, seed=seed, axis_length=8))
