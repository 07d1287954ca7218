"""Every small model comes out right: a bundle that verifies and reproduces its golden vectors."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from build_requests import INT8, host_profile, request
from parts import need_package
from small_models import SMALL_MODELS, write_data, write_small
from tflite_files import relu_file

from edgekit.build import BuildResult, build
from edgekit.build.report import Candidate, Outcome
from edgekit.release.keys import PrivateKey, new_key
from edgekit_contract.trust import VerifiedBundle, verify_archive
from edgekit_profiles import load as load_profile
from edgekit_runtime.golden import check_golden, read_golden
from edgekit_runtime.session import open_session, options_for


@pytest.fixture(scope="session")
def key(tmp_path_factory: pytest.TempPathFactory) -> PrivateKey:
    return new_key(tmp_path_factory.mktemp("key") / "k", None)


def unpacked(bundle: VerifiedBundle, directory: Path) -> Path:
    path = directory / Path(bundle.manifest.model).name
    path.write_bytes(bundle.read(bundle.manifest.model))
    return path


def reproduces(bundle: VerifiedBundle, directory: Path) -> bool:
    manifest = bundle.manifest
    session = open_session(manifest.runtime, unpacked(bundle, directory), options_for(manifest))
    vectors = read_golden(
        bundle.read(manifest.golden.path), manifest.golden, session.inputs, session.outputs
    )
    return check_golden(session, manifest.golden, vectors) is None


def by_recipe(result: BuildResult) -> dict[str, Candidate]:
    return {c.recipe: c for c in result.built[0].report.candidates}


@pytest.mark.parametrize("name", SMALL_MODELS)
def test_small_model_becomes_a_bundle_that_reproduces_its_golden_vectors(
    name: str, tmp_path: Path, key: PrivateKey
) -> None:
    model = write_small(name, tmp_path)
    before = hashlib.sha256(model.read_bytes()).hexdigest()
    result = build(
        request(model, tmp_path / "out", key=key, recipes=("*/per-channel*",), search_time_s=0.2)
    )
    bundle = verify_archive(result.built[0].bundle.path, [key.public])
    assert reproduces(bundle, tmp_path)
    assert bundle.manifest.golden.source == "generated"
    assert hashlib.sha256(model.read_bytes()).hexdigest() == before
    assert bundle.manifest.provenance.source_sha256 == before


STATIC = f"int8-static/per-channel/{INT8}/minmax"
QUANTIZABLE = {
    "constant_nodes": {"x": (3, 8, 8)},
    "several_outputs": {"x": (16,)},
    "regression": {"x": (10,)},
    "dynamic_axes": {"x": (4, 20)},
    "shared_weights": {"x": (9,)},
    "depthwise_residual": {"x": (4, 8, 8)},
}


@pytest.mark.parametrize("name", QUANTIZABLE)
def test_static_int8_is_close_to_float_and_its_weights_are_8_bit(
    name: str, tmp_path: Path, key: PrivateKey
) -> None:
    model = write_small(name, tmp_path)
    data = write_data(tmp_path / "data.npz", 64, **QUANTIZABLE[name])
    result = build(
        request(
            model,
            tmp_path / "out",
            key=key,
            calibration=str(data),
            validation=str(data),
            profiles=(host_profile(),),
            recipes=(STATIC,),
            metric="r2",
            search_time_s=0.2,
        )
    )
    candidate = by_recipe(result)[STATIC]
    assert candidate.outcome is not Outcome.FAILED, candidate.reason
    assert candidate.score is not None and candidate.score.value > 0.97


def test_weights_in_branches_are_quantized_and_nothing_static_is_planned(
    tmp_path: Path, key: PrivateKey
) -> None:
    result = build(
        request(
            write_small("branches", tmp_path),
            tmp_path / "out",
            validation=str(write_data(tmp_path / "data.npz", 40, x=(6,))),
            recipes=("int8-*",),
            search_time_s=0.2,
        )
    )
    found = by_recipe(result)
    dynamic = found["int8-dynamic/per-tensor/reduced"]
    assert dynamic.outcome is not Outcome.FAILED, dynamic.reason
    assert dynamic.score is not None and dynamic.score.value > 0.97
    static = found["int8-static/per-channel/u8s8-reduced/minmax"]
    assert static.outcome is Outcome.SKIPPED
    assert "no float32 weights" in static.reason


def test_tflite_model_is_packed_as_it_is(tmp_path: Path, key: PrivateKey) -> None:
    need_package("ai_edge_litert", install="pip install 'edgekit[tflite]'")
    model = tmp_path / "relu.tflite"
    model.write_bytes(relu_file(3))
    result = build(
        request(model, tmp_path / "out", key=key, profiles=(load_profile("raspberry-pi-4"),))
    )
    report = result.built[0].report
    assert report.chosen == "float32" and report.runtime.startswith("litert")
    bundle = verify_archive(result.built[0].bundle.path, [key.public])
    assert bundle.read(bundle.manifest.model) == model.read_bytes()
    assert reproduces(bundle, tmp_path)


def test_model_without_weights_stays_float32(tmp_path: Path) -> None:
    result = build(request(write_small("classical", tmp_path), tmp_path / "out"))
    assert result.built[0].report.chosen.startswith("float32")


def test_external_data_beside_the_model_are_taken_in(tmp_path: Path, key: PrivateKey) -> None:
    source = tmp_path / "source"
    source.mkdir()
    model = onnx.load_model(write_small("regression", tmp_path))
    path = source / "regression.onnx"
    onnx.save_model(
        model, path, save_as_external_data=True, location="weights.bin", size_threshold=0
    )
    result = build(request(path, tmp_path / "out", key=key, recipes=("float32*",)))
    bundle = verify_archive(result.built[0].bundle.path, [key.public])
    assert reproduces(bundle, tmp_path)
    assert sorted(p.name for p in source.iterdir()) == ["regression.onnx", "weights.bin"]


def test_bundle_of_opset_9_runs_on_the_oldest_runtime_that_knows_it(
    tmp_path: Path, key: PrivateKey
) -> None:
    model = write_small("constant_nodes", tmp_path)
    result = build(request(model, tmp_path / "out", key=key, recipes=("float32",)))
    requires = verify_archive(result.built[0].bundle.path, [key.public]).manifest.requires
    assert (requires.opset, requires.ir) == (9, 4)
    assert requires.min_runtime_version == "1.10"


def test_same_variant_packs_to_the_same_bytes_but_for_the_report(
    tmp_path: Path, key: PrivateKey
) -> None:
    model = write_small("regression", tmp_path)
    bundles = [
        verify_archive(
            build(request(model, tmp_path / out, key=key, recipes=("float32",)))
            .built[0]
            .bundle.path,
            [key.public],
        ).manifest
        for out in ("a", "b")
    ]
    first, second = (
        {f.path: f.sha256 for f in m.files if f.path != "files/report.json"} for m in bundles
    )
    assert first == second
    assert bundles[0].golden == bundles[1].golden
    assert "files/sbom.json" in first
    with zipfile.ZipFile(next((tmp_path / "a").glob("*.ekb"))) as archive:
        bill = json.loads(archive.read("files/sbom.json"))
    named = {file["name"]: file["hashes"][0]["content"] for file in bill["components"][1:]}
    model = bill["metadata"]["component"]["hashes"][0]["content"]
    del first["files/sbom.json"]
    assert named | {bundles[0].model: model} == first


def test_report_says_why_nothing_of_few_bits_was_tried(tmp_path: Path) -> None:
    """Weights of double: there are recipes for float32."""
    wide = np.random.default_rng(0).normal(size=(64, 64))
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "w"], ["y"])],
        "wide",
        [value("x", onnx.TensorProto.DOUBLE, ["batch", 64])],
        [value("y", onnx.TensorProto.DOUBLE, ["batch", 64])],
        [onnx.numpy_helper.from_array(wide, "w")],
    )
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8
    )
    onnx.save(model, tmp_path / "wide.onnx")
    said = build(request(tmp_path / "wide.onnx", tmp_path / "out")).built[0].report.remarks
    assert (
        "Nothing of few bits was tried: the model's weights are double already, not float32."
        in said
    )
    model = write_small("regression", tmp_path)
    said = build(request(model, tmp_path / "other", search_time_s=1.0)).built[0].report.remarks
    assert not any(remark.startswith("Nothing of few bits") for remark in said)
