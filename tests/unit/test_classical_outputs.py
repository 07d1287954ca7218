"""Classifiers of scikit-learn, whose outputs are maps and text."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, TensorProto, helper

from edgekit_converters.sources.classical import close_outputs


def tree(*, outputs: tuple[str, ...]) -> ModelProto:
    """One split: below 0.5 a cat, else a dog."""
    nodes = [
        helper.make_node(
            "TreeEnsembleClassifier",
            ["x"],
            ["label", "scores"],
            domain="ai.onnx.ml",
            nodes_treeids=[0, 0, 0],
            nodes_nodeids=[0, 1, 2],
            nodes_featureids=[0, 0, 0],
            nodes_modes=["BRANCH_LEQ", "LEAF", "LEAF"],
            nodes_values=[0.5, 0.0, 0.0],
            nodes_truenodeids=[1, 0, 0],
            nodes_falsenodeids=[2, 0, 0],
            nodes_hitrates=[1.0, 1.0, 1.0],
            nodes_missing_value_tracks_true=[0, 0, 0],
            class_treeids=[0, 0],
            class_nodeids=[1, 2],
            class_ids=[0, 1],
            class_weights=[1.0, 1.0],
            classlabels_strings=["cat", "dog"],
            post_transform="NONE",
        ),
        helper.make_node(
            "ZipMap", ["scores"], ["odds"], domain="ai.onnx.ml", classlabels_strings=["cat", "dog"]
        ),
    ]
    odds = helper.make_map_type_proto(
        TensorProto.STRING, helper.make_tensor_type_proto(TensorProto.FLOAT, [])
    )
    infos = {
        "label": helper.make_tensor_value_info("label", TensorProto.STRING, ["batch"]),
        "odds": helper.make_value_info("odds", helper.make_sequence_type_proto(odds)),
        "scores": helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 2]),
    }
    graph = helper.make_graph(
        nodes,
        "tree",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 1])],
        [infos[name] for name in outputs],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def run(model: ModelProto) -> dict[str, object]:
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    feeds = {"x": np.float32([[0], [1], [2]])}
    return dict(zip(names, session.run(names, feeds), strict=True))


def test_map_of_scores_becomes_the_scores_and_text_goes() -> None:
    model = tree(outputs=("label", "odds"))
    before = run(model)
    said = close_outputs(model)
    onnx.checker.check_model(model)
    after = run(model)
    assert list(after) == ["odds"]
    rows = [[row["cat"], row["dog"]] for row in before["odds"]]  # type: ignore[attr-defined]
    assert np.array_equal(after["odds"], np.float32(rows))  # type: ignore[arg-type]
    assert any("of cat, dog" in text for text in said)
    assert any("'label' is text" in text for text in said)


def test_scores_that_are_an_output_too_stay_one() -> None:
    model = tree(outputs=("odds", "scores"))
    close_outputs(model)
    after = run(model)
    assert list(after) == ["odds", "scores"]
    assert np.array_equal(after["odds"], after["scores"])  # type: ignore[arg-type]


@pytest.mark.parametrize("output", ["label", "scores"])
def test_numbers_stay_and_so_does_text_that_is_the_only_output(output: str) -> None:
    model = tree(outputs=(output,))
    before = model.SerializeToString(deterministic=True)
    assert close_outputs(model) == []
    assert model.SerializeToString(deterministic=True) == before
