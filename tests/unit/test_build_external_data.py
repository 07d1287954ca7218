"""Weights beside the model: read from there or refused, and kept outside where they are many."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx.numpy_helper import from_array

import edgekit_profiles
from edgekit.build import pack
from edgekit.build.material import Material, gather
from edgekit.build.vectors import choose_vectors
from edgekit_contract.errors import Refused
from edgekit_contract.manifest import Provenance
from edgekit_contract.profile import RuntimeKind
from edgekit_converters import external
from edgekit_converters.isolation import Workshop
from edgekit_converters.sources import Source, open_source
from edgekit_runtime.session import SessionOptions, open_session

SMALL = 10_000
"""Bytes beyond which these tests keep data outside."""


@pytest.fixture(scope="module")
def workshop() -> Iterator[Workshop]:
    with Workshop() as opened:
        yield opened


def large(directory: Path) -> Path:
    """Two layers that share their weights, of opset 9, with data beside them."""
    random = np.random.default_rng(0)
    weight = from_array(random.standard_normal((96, 96)).astype(np.float32) / 10, "w")
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["h"]),
            helper.make_node("Clip", ["h"], ["c"], min=-1.0, max=1.0),
            helper.make_node("MatMul", ["c", "w"], ["m"]),
            helper.make_node("Add", ["m", "b"], ["y"]),
        ],
        "large",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 96])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 96])],
        [weight, from_array(np.ones(96, np.float32), "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 9)], ir_version=4)
    path = directory / "source" / "m.onnx"
    path.parent.mkdir()
    onnx.save_model(model, path, save_as_external_data=True, location="w.bin", size_threshold=0)
    return path


def opened(tmp_path: Path, workshop: Workshop) -> tuple[Source, Path]:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    path = large(tmp_path)
    return open_source(path, scratch=scratch, run=workshop.run, embedded_bytes=SMALL), scratch


def test_few_data_are_embedded(tmp_path: Path, workshop: Workshop) -> None:
    source = open_source(large(tmp_path), scratch=tmp_path, run=workshop.run)
    assert not external.is_external(source.path)
    assert [path.name for path, _ in source.data] == ["w.bin"]
    assert not (tmp_path / external.DATA_NAME).exists()


def test_many_data_stay_outside_and_small_tensors_come_in(
    tmp_path: Path, workshop: Workshop
) -> None:
    source, scratch = opened(tmp_path, workshop)
    assert external.files(source.path) == (source.path, scratch / external.DATA_NAME)
    assert external.size_bytes(source.path) > 96 * 96 * 4
    model = onnx.load_model(source.path, load_external_data=False)
    held = {t.name: t.data_location for t in model.graph.initializer}
    assert held == {"w": TensorProto.EXTERNAL, "b": TensorProto.DEFAULT}


def material(tmp_path: Path, workshop: Workshop) -> tuple[Material, Path]:
    source, scratch = opened(tmp_path, workshop)
    found = gather(source, None, None, normalizes=True, scratch=scratch, run=workshop.run)
    return found, scratch


def test_normalized_model_goes_on_using_the_same_data(tmp_path: Path, workshop: Workshop) -> None:
    found, scratch = material(tmp_path, workshop)
    assert "raising the opset to 13" in found.normalized.steps
    assert "goes without simplification" in found.normalized.remarks[0]
    assert external.files(found.normalized.path)[1:] == (scratch / external.DATA_NAME,)
    assert found.normalized_facts.size_bytes == external.size_bytes(found.normalized.path)
    assert found.normalized_facts.weighted == {"MatMul": 2}


def test_bundle_holds_the_data_and_runs_where_it_is_unpacked(
    tmp_path: Path, workshop: Workshop
) -> None:
    found, _ = material(tmp_path, workshop)
    golden = choose_vectors(
        found.normalized.path, RuntimeKind.ONNXRUNTIME, options=SessionOptions(),
        samples=found.samples, output_step=1e-4, source="generated",
    )  # fmt: skip
    profile = edgekit_profiles.load("demo-small")
    runtime = profile.runtime(RuntimeKind.ONNXRUNTIME)
    assert runtime is not None
    contents = pack.Contents(
        name="m", version="1.0", profile=profile, runtime=runtime, model=found.normalized.path,
        signature=found.source.signature, golden=golden.golden, golden_data=golden.data, labels=(),
        preprocess=(), postprocess=(), report=b"{}", min_runtime_version="1.10", features=(),
        ir=7, opset=13, peak_ram_bytes=1,
        provenance=Provenance(source_name="m.onnx", source_sha256=found.source.sha256,
                              recipe="float32", calibration_sha256=None, git_commit=None, tools={}),
    )  # fmt: skip
    (bundle,) = pack.write([pack.seal(contents, None)], tmp_path, advance=lambda _: None)
    with zipfile.ZipFile(bundle.path) as archive:
        assert f"files/{external.DATA_NAME}" in archive.namelist()
        archive.extractall(tmp_path / "device")
    before = open_session(RuntimeKind.ONNXRUNTIME, found.source.path)
    after = open_session(RuntimeKind.ONNXRUNTIME, tmp_path / "device" / "files" / "model.onnx")
    feeds = {"x": np.ones((2, 96), np.float32)}
    assert np.allclose(before.run(feeds)["y"], after.run(feeds)["y"], atol=1e-5)


@pytest.mark.parametrize("changed", ["m.onnx", "w.bin"])
def test_change_of_the_model_or_its_data_is_noticed(
    tmp_path: Path, workshop: Workshop, changed: str
) -> None:
    source, _ = opened(tmp_path, workshop)
    source.check_unchanged()
    path = tmp_path / "source" / changed
    data = bytearray(path.read_bytes())
    data[40] ^= 1
    path.write_bytes(data)
    with pytest.raises(Refused, match=f"{changed} changed while it was built"):
        source.check_unchanged()


def test_model_of_more_than_4_gib_is_refused_before_it_is_read(
    tmp_path: Path, workshop: Workshop
) -> None:
    path = large(tmp_path)
    model = onnx.load_model(path, load_external_data=False)
    for index in range(45):  # 100 MB each, in a file that is a hole
        tensor = model.graph.initializer.add(name=f"t{index}", data_type=TensorProto.FLOAT)
        tensor.dims.append(25_000_000)
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="hole.bin")
        tensor.external_data.add(key="offset", value=str(index * 100_000_000))
        tensor.external_data.add(key="length", value="100000000")
    onnx.save_model(model, path)
    with (tmp_path / "source" / "hole.bin").open("wb") as stream:
        stream.truncate(45 * 100_000_000)
    with pytest.raises(Refused, match="a bundle holds at most 4 GiB"):
        open_source(path, scratch=tmp_path, run=workshop.run)
    assert not (tmp_path / external.DATA_NAME).exists()


@pytest.mark.parametrize(
    ("mib", "said"), [(4097, "a bundle holds at most 4 GiB"), (2049, "save_as_external_data")]
)
def test_file_that_no_protobuf_message_can_be_is_refused_unread(
    tmp_path: Path, mib: int, said: str
) -> None:
    with (tmp_path / "m.onnx").open("wb") as stream:
        stream.truncate(mib << 20)
    with pytest.raises(Refused, match=said):
        open_source(tmp_path / "m.onnx", scratch=tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("location", "../w.bin", "leaves the model's directory"),
        ("location", "a/../../w.bin", "leaves the model's directory"),
        ("location", "/etc/hostname", "not a path relative"),
        ("location", "", "not a path relative"),
        ("location", "pipe", "leaves the model's directory"),
        ("location", "absent", "is not there"),
        ("offset", "-1", "cut short"),
        ("offset", "many", "no number"),
        ("length", str(2**64), "cut short"),
    ],
)
def test_data_that_are_not_a_range_of_a_file_beside_are_refused(
    tmp_path: Path, key: str, value: str, said: str
) -> None:
    import os

    path = large(tmp_path)
    os.mkfifo(path.parent / "pipe")
    model = onnx.load_model(path, load_external_data=False)
    entry = next(e for e in model.graph.initializer[0].external_data if e.key == key)
    entry.value = value
    with pytest.raises(external.ExternalDataRefused, match=said):
        external.checked_files(model, path)


def test_runtime_itself_refuses_data_outside_of_the_directory(tmp_path: Path) -> None:
    """Devices have no parser of models: a signed bundle that reaches out must still not load."""
    path = large(tmp_path)
    (path.parent / "w.bin").rename(tmp_path / "w.bin")
    model = onnx.load_model(path, load_external_data=False)
    for tensor in model.graph.initializer:
        next(e for e in tensor.external_data if e.key == "location").value = "../w.bin"
    onnx.save_model(model, path)
    with pytest.raises(Refused, match="does not load"):
        open_session(RuntimeKind.ONNXRUNTIME, path)
