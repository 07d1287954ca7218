"""A model of an old opset computes at opset 13 what it did, or the operator in the way is named."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from old_models import CASES, OLD_MODELS, feeds, made

from edgekit_contract.errors import Refused
from edgekit_converters import graph
from edgekit_converters.normalization.upgrades import QUANTIZABLE_OPSET, raise_opset
from edgekit_converters.proof import same_outputs


def outputs(model: onnx.ModelProto, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, tensors), strict=True))


@pytest.mark.parametrize(("name", "opset"), CASES)
def test_old_form_computes_the_same_at_opset_13(name: str, opset: int) -> None:
    old = OLD_MODELS[name]
    model = made(old, opset)
    given = [feeds(old, seed) for seed in range(3)]
    before = [outputs(model, tensors) for tensors in given]
    if old.refused:
        with pytest.raises(Refused, match=old.refused):
            raise_opset(model)
        return
    raise_opset(model)
    graph.clamp_ir(model)
    assert graph.opset(model) == QUANTIZABLE_OPSET
    for tensors, want in zip(given, before, strict=True):
        assert same_outputs(outputs(model, tensors), want) is None


@pytest.mark.parametrize("kind", ["Softmax", "LogSoftmax", "Hardmax"])
def test_an_empty_last_axis_stays_empty(kind: str) -> None:
    inner = onnx.helper.make_graph(
        [onnx.helper.make_node(kind, ["x"], ["y"], axis=2)],
        "last",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["a", "b", "c"])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
    )
    model = onnx.helper.make_model(inner, opset_imports=[onnx.helper.make_opsetid("", 11)])
    raise_opset(model)
    graph.clamp_ir(model)
    assert outputs(model, {"x": np.ones((2, 3, 0), np.float32)})["y"].shape == (2, 3, 0)


def test_newer_opset_stays() -> None:
    model = made(OLD_MODELS["MaxPool"], 12)
    model.opset_import[0].version = 17
    before = model.SerializeToString()
    raise_opset(model)
    assert model.SerializeToString() == before


def test_new_constants_take_no_name_that_is_taken() -> None:
    model = made(OLD_MODELS["Squeeze"], 9)
    taken = onnx.numpy_helper.from_array(np.ones(1, np.float32), "y/axes")
    model.graph.initializer.append(taken)
    raise_opset(model)
    names = [tensor.name for tensor in model.graph.initializer]
    assert len(set(names)) == len(names) == 2
