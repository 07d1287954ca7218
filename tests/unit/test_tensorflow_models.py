"""TensorFlow models: written as ONNX they compute the same; code in them is not run."""

from __future__ import annotations

import shutil
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path

import door_models
import numpy as np
import pytest
from build_requests import request
from tools import need_environment

from edgekit.build import build
from edgekit_contract.errors import Refused
from edgekit_contract.profile import RuntimeKind
from edgekit_converters import environments
from edgekit_converters.proof import generated, same_outputs
from edgekit_converters.sources.doors import tensorflow
from edgekit_runtime.session import open_session

DIGITS = Path(__file__).parents[2] / "examples" / "digits"
OTHERS = Path(__file__).parents[1] / "tensorflow_files.py"


@pytest.fixture(scope="module")
def models(empty_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Digits, trained in Keras and saved in three ways; SavedModels with loops and tables; and
    models that would do more."""
    cache = need_environment(environments.TENSORFLOW)
    home = tmp_path_factory.mktemp("keras")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEKIT_CACHE", str(cache))
        python = environments.find(environments.TENSORFLOW)
        assert python is not None
        subprocess.run([python, "-I", OTHERS, home], check=True, capture_output=True)
        yield door_models.keras_digits(home)


@pytest.mark.parametrize("name", ["digits.keras", "digits.h5", "digits"])
def test_trained_model_computes_the_same_as_onnx(name: str, models: Path, tmp_path: Path) -> None:
    assert tensorflow.reads(models / name)
    image = np.load(DIGITS / "validation.npz")["image"][:8].transpose(0, 2, 3, 1)
    feeds = {"image": np.ascontiguousarray(image, np.float32)}
    with tensorflow.TensorFlowModel(models / name, home=tmp_path / "home") as model:
        assert model.export(tmp_path / "m.onnx") == ()
        truth = model.run(feeds)
    session = open_session(RuntimeKind.ONNXRUNTIME, tmp_path / "m.onnx")
    assert session.inputs[0].name == "image" and session.inputs[0].shape[1:] == (28, 28, 1)
    assert same_outputs(session.run(feeds), truth) is None
    assert np.ptp(next(iter(truth.values()))) > 0.5


@pytest.mark.parametrize("name", ["LSTM", "GRU", "Embedding"])
def test_saved_model_with_a_loop_or_a_table_computes_the_same(
    name: str, models: Path, tmp_path: Path
) -> None:
    with tensorflow.TensorFlowModel(models / name, home=tmp_path / "home") as model:
        model.export(tmp_path / "m.onnx")
        session = open_session(RuntimeKind.ONNXRUNTIME, tmp_path / "m.onnx")
        feeds = generated(session.inputs, seed=0, axis_length=2)
        truth = model.run(feeds)
    assert same_outputs(session.run(feeds), truth) is None


def test_variables_that_a_graph_does_not_restore_are_told(models: Path, tmp_path: Path) -> None:
    with (
        tensorflow.TensorFlowModel(models / "unrestored", home=tmp_path / "home") as model,
        pytest.raises(Refused, match=r"save it by model\.export\(\), or as \.keras\.$"),
    ):
        model.export(tmp_path / "m.onnx")


def test_build_compares_a_saved_model_with_tensorflow(models: Path, tmp_path: Path) -> None:
    made = build(
        request(
            models / "digits",
            tmp_path / "out",
            recipes=("float32",),
            validation=str(models / "rows.npz"),
            conversion_time_s=120.0,
        )
    )
    (built,) = made.built
    said = " ".join(built.report.remarks)
    assert "compared with it on 256 samples" in said and "tensorflow-cpu 2.21.0" in said


@pytest.mark.parametrize("name", ["lambda.keras", "lambda.h5"])
def test_lambda_layer_is_code_and_refused(name: str, models: Path, tmp_path: Path) -> None:
    with pytest.raises(Refused, match=rf"{name} has a Lambda layer, which is code"):
        tensorflow.TensorFlowModel(models / name, home=tmp_path)


@pytest.mark.parametrize(
    ("name", "operator"),
    [
        ("when-run", "WriteFile"),
        ("when-loaded", "WriteFile"),
        ("hidden", "WriteFile"),
        ("gradient", "SymbolicGradient"),
        ("reading", "ImmutableConst"),
    ],
)
def test_a_graph_that_would_reach_more_than_tensors_is_refused(
    name: str, operator: str, models: Path, tmp_path: Path
) -> None:
    (models / "written").unlink(missing_ok=True)
    with pytest.raises(Refused, match=rf"{name} runs the operator {operator}, which is none of"):
        tensorflow.TensorFlowModel(models / name, home=tmp_path)
    assert not (models / "written").exists()


@pytest.mark.parametrize("name", ["stand-in", "with-training"])
def test_what_serving_does_not_need_is_not_loaded(name: str, models: Path, tmp_path: Path) -> None:
    """A function in another's place, and a signature that saves the model to a file."""
    feeds = {"x": np.ones((2, 4), np.float32)}
    with tensorflow.TensorFlowModel(models / name, home=tmp_path / "home") as model:
        model.export(tmp_path / "m.onnx")
        truth = model.run(feeds)
    session = open_session(RuntimeKind.ONNXRUNTIME, tmp_path / "m.onnx")
    assert same_outputs(session.run(feeds), truth) is None
    assert truth["y"].tolist() in ([[4.0] * 4] * 2, [[1.0, 2.0, 3.0, 4.0]] * 2)
    assert not (models / "written").exists()


@pytest.mark.parametrize("name", ["outside.keras", "outside.h5"])
def test_weights_that_are_in_another_file_are_refused(
    name: str, models: Path, tmp_path: Path
) -> None:
    with pytest.raises(Refused, match=rf"{name} takes weights from other files: save the model"):
        tensorflow.TensorFlowModel(models / name, home=tmp_path)


def test_a_layer_that_opens_another_model_is_refused(models: Path, tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"opening\.keras has a TFSMLayer, which opens"):
        tensorflow.TensorFlowModel(models / "opening.keras", home=tmp_path)


def test_a_file_is_looked_at_as_what_keras_will_read_it(models: Path, tmp_path: Path) -> None:
    """HDF5 with a harmless ZIP behind it, and one by another name."""
    both = tmp_path / "both.h5"
    shutil.copy(models / "lambda.h5", both)
    with zipfile.ZipFile(both, "a") as archive:
        archive.writestr("config.json", "{}")
        archive.writestr("metadata.json", "{}")
    with pytest.raises(Refused, match=r"both\.h5 has a Lambda layer"):
        tensorflow.TensorFlowModel(both, home=tmp_path / "a")
    renamed = both.rename(tmp_path / "renamed.keras")
    with pytest.raises(Refused, match=r"renamed\.keras is a file of HDF5 by another name"):
        tensorflow.TensorFlowModel(renamed, home=tmp_path / "b")


def test_saved_model_without_its_variables_is_refused(models: Path, tmp_path: Path) -> None:
    shutil.copytree(models / "digits", tmp_path / "digits")
    shutil.rmtree(tmp_path / "digits" / "variables")
    with pytest.raises(Refused, match=r"digits has no variables \(variables/variables\.index"):
        tensorflow.TensorFlowModel(tmp_path / "digits", home=tmp_path / "home")


def test_files_of_a_saved_model_are_listed(models: Path) -> None:
    listed = {path.name for path in tensorflow.files(models / "digits")}
    assert {"saved_model.pb", "variables.index"} <= listed


def test_other_files_are_no_models_of_tensorflow(tmp_path: Path) -> None:
    assert not tensorflow.reads(DIGITS / "digits.onnx")
    assert not tensorflow.reads(DIGITS / "validation.npz")
    assert not tensorflow.reads(tmp_path)
