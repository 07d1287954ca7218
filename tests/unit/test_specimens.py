"""The self-test's models are what public tools write, and its bundle is a sound one."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import numpy_helper
from tflite_files import relu_file

from edgekit_agent.specimens import SPECIMENS, write_bundle
from edgekit_contract.profile import RuntimeKind
from edgekit_contract.trust import verify_directory


def test_onnx_specimen_is_a_product_and_a_relu() -> None:
    model = onnx.load_from_string(SPECIMENS[RuntimeKind.ONNXRUNTIME].model)
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node] == ["MatMul", "Relu"]
    (weights,) = model.graph.initializer
    assert numpy_helper.to_array(weights).tolist() == [[1, 0], [0, 1], [1, 1], [0, -1]]


def test_litert_specimen_is_the_file_that_the_tests_make() -> None:
    assert SPECIMENS[RuntimeKind.LITERT].model == relu_file(4)


def test_every_runtime_has_a_specimen() -> None:
    assert SPECIMENS.keys() == set(RuntimeKind)


def test_specimen_bundle_verifies(tmp_path: Path) -> None:
    digest = write_bundle(tmp_path)
    bundle = verify_directory(tmp_path, envelope_sha256=digest)
    assert bundle.manifest.title == "selftest@1.0 for selftest"
