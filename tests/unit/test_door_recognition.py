"""What a model is told by: its content, and never by opening a pickle."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import pickle
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgekit_contract.errors import Misused, Refused
from edgekit_converters.sources import doors, model_named, open_source
from edgekit_converters.sources.exported_program import cleaned
from edgekit_converters.sources.pickles import Pickled


class Bomb:
    """Unpickled, it makes a directory."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (str(self.witness),)


def archive(path: Path, **entries: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as writer:
        for name, content in entries.items():
            writer.writestr(name.replace("__", "/").replace("_dot_", "."), content)
    return path


PACKED: dict[str, Callable[[bytes], bytes]] = {
    "bare": lambda data: data,
    "zlib": zlib.compress,
    "gzip": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
}


@pytest.mark.parametrize("way", PACKED)
@pytest.mark.parametrize("name", ["m.onnx", "m.pkl", "m"])
def test_pickle_is_recognized_whatever_it_is_called_and_never_opened(
    way: str, name: str, tmp_path: Path
) -> None:
    witness = tmp_path / "witness"
    (tmp_path / name).write_bytes(PACKED[way](pickle.dumps(Bomb(witness))))
    with pytest.raises(Pickled, match="is a pickle, and edgekit opens none"):
        open_source(tmp_path / name, scratch=tmp_path)
    assert not witness.exists()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"\x80\x04\x95 sklearn.linear_model", "skops.io.dump"),
        (b"\x80\x04\x95 xgboost.sklearn sklearn", "booster.save_model('model.ubj')"),
        (b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02 torch._utils", "torch.export.save"),
    ],
)
def test_pickle_of_a_framework_says_how_to_save_instead(
    content: bytes, told: str, tmp_path: Path
) -> None:
    (tmp_path / "m.bin").write_bytes(content)
    with pytest.raises(Pickled) as caught:
        open_source(tmp_path / "m.bin", scratch=tmp_path)
    assert told in str(caught.value)


@pytest.mark.parametrize("name", ["m.pt", "m.pth", "m.onnx"])
def test_archive_of_torch_save_is_refused_with_how_to_export(name: str, tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    model = archive(tmp_path / name, m__data_dot_pkl=pickle.dumps(Bomb(witness)))
    with pytest.raises(Pickled, match=r"torch\.export\.save"):
        open_source(model, scratch=tmp_path)
    assert not witness.exists()


def test_torchscript_archive_is_refused_with_how_to_export(tmp_path: Path) -> None:
    model = archive(tmp_path / "m.pt", m__data_dot_pkl=b"", m__code__x_dot_py=b"")
    with pytest.raises(Pickled, match="TorchScript"):
        open_source(model, scratch=tmp_path)


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_archive_that_is_cut_short_is_refused(share: float, tmp_path: Path) -> None:
    whole = archive(tmp_path / "m.pt2", m__archive_format=b"pt2", m__x=bytes(999)).read_bytes()
    (tmp_path / "m.pt2").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(Refused, match="cut short or damaged"):
        open_source(tmp_path / "m.pt2", scratch=tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "door"),
    [
        ("m", b'{"learner":{', "XGBoost"),
        ("m", b"{L\x00\x00\x00\x00\x00\x00\x00\x07learner{L", "XGBoost"),
        ("m", b"tree\nversion=v4\n", "LightGBM"),
        ("m", b"\x08\x08\x12", None),
        ("m.json", b'{"name": 3}', None),
    ],
)
def test_file_is_told_by_its_first_bytes(
    name: str, content: bytes, door: str | None, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    found = doors.door_for_path(tmp_path / name)
    assert (found.name if found else None) == door


def test_archives_are_told_by_what_they_hold(tmp_path: Path) -> None:
    skops = doors.door_for_path(archive(tmp_path / "a", schema_dot_json=b"{}"))
    program = doors.door_for_path(archive(tmp_path / "b", b__archive_format=b"pt2"))
    other = doors.door_for_path(archive(tmp_path / "c", x_dot_npy=b""))
    assert skops is not None and skops.name == "scikit-learn"
    assert program is not None and program.name == "PyTorch"
    assert other is None


def hugging_face(directory: Path, config: object, *files: str) -> Path:
    directory.mkdir()
    (directory / "config.json").write_text(
        config if isinstance(config, str) else json.dumps(config)
    )
    for file in files:
        (directory / file).write_bytes(b"x")
    return directory


BERT = {"model_type": "bert", "architectures": ["BertModel"]}


@pytest.mark.parametrize(
    ("config", "files", "told"),
    [
        (BERT, ["pytorch_model.bin"], "weights are a pickle"),
        (BERT, [], "has no model.safetensors"),
        ("{", [], "is no JSON that can be read"),
        ("[]", [], "is no JSON object"),
        ({"a": 1}, [], "is a directory of no kind that edgekit knows"),
    ],
)
def test_hugging_face_directory_without_weights_to_read_is_refused(
    config: object, files: list[str], told: str, tmp_path: Path
) -> None:
    with pytest.raises(Refused, match=told):
        open_source(hugging_face(tmp_path / "hf", config, *files), scratch=tmp_path)


@pytest.mark.parametrize(
    ("index", "told"),
    [
        ({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}},
         "lacks model-2.safetensors, one of 2"),
        ({"weight_map": {"a": "../model-1.safetensors"}}, "which is no file beside it"),
        ({"weight_map": {}}, "has no weight_map"),
    ],
)  # fmt: skip
def test_shards_that_are_not_there_are_named(index: object, told: str, tmp_path: Path) -> None:
    place = hugging_face(tmp_path / "hf", BERT, "model-1.safetensors")
    (place / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(Refused, match=told):
        open_source(place, scratch=tmp_path)


def test_weights_that_config_json_names_elsewhere_are_refused(tmp_path: Path) -> None:
    """transformers would load these, and not the file that is hashed."""
    config = BERT | {"transformers_weights": "adapter_model.bin"}
    place = hugging_face(tmp_path / "hf", config, "model.safetensors")
    with pytest.raises(Refused, match=r"names other weights .'adapter_model\.bin'"):
        open_source(place, scratch=tmp_path)


def test_an_archive_that_is_cut_is_not_taken_for_one_inside_it(tmp_path: Path) -> None:
    """A .pt2 holds archives of torch.save, as they are."""
    inner = tmp_path / "inner.pt"
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("inner/data.pkl", b"\x80\x02.")
    with zipfile.ZipFile(tmp_path / "m.pt2", "w") as archive:
        archive.writestr("m/archive_format", "pt2")
        archive.write(inner, "m/data/weights.pt")
        archive.writestr("m/" + "x" * 100, b"")
    whole = (tmp_path / "m.pt2").read_bytes()
    (tmp_path / "m.pt2").write_bytes(whole[:-60])
    with pytest.raises(Refused, match=r"m\.pt2 is a ZIP archive that is cut short or damaged"):
        open_source(tmp_path / "m.pt2", scratch=tmp_path)


def test_pipe_is_no_model(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "m.onnx")
    with pytest.raises(Misused, match="neither a file nor a directory"):
        open_source(tmp_path / "m.onnx", scratch=tmp_path)


def test_path_that_is_there_is_a_path_and_no_callable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert model_named("shop.models:digits") == "shop.models:digits"
    (tmp_path / "shop.models:digits").write_bytes(b"")
    assert model_named("shop.models:digits") == Path("shop.models:digits")
    assert model_named("m.onnx") == Path("m.onnx")


def test_missing_extra_is_named_with_the_command_that_brings_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "m.txt").write_bytes(b"tree\nversion=v4\n")
    real = doors.door.importlib.util.find_spec  # type: ignore[attr-defined]
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == "lightgbm" else real(name)
    )
    with pytest.raises(Refused) as caught:
        open_source(tmp_path / "m.txt", scratch=tmp_path)
    assert str(caught.value) == (
        "m.txt is a model of LightGBM, and lightgbm is not installed: "
        "pip install 'edgekit[boosting]'."
    )


# Exported programs: what is in them, before PyTorch sees it

NODE = {"target": "torch.ops.aten.relu.default", "metadata": {"stack_trace": "/home/ann/x.py"}}


def exported(path: Path, program: dict[str, Any], **more: bytes) -> Path:
    whole = {"graph_module": {"graph": {"nodes": [NODE]}}, "guards_code": ["evil()"]} | program
    entries = {
        "m__archive_format": b"pt2",
        "m__models__model_dot_json": json.dumps(whole).encode(),
        **more,
    }
    return archive(path, **entries)


def test_cleaned_program_has_no_guards_no_remarks_and_no_other_entries(tmp_path: Path) -> None:
    given = exported(tmp_path / "m.pt2", {}, m__extra__x=b"1", m__data__weights__weight_0=b"123")
    cleaned(given, tmp_path / "out.pt2")
    with zipfile.ZipFile(tmp_path / "out.pt2") as found:
        assert sorted(found.namelist()) == [
            "m/archive_format", "m/data/weights/weight_0", "m/models/model.json",
        ]  # fmt: skip
        program = json.loads(found.read("m/models/model.json"))
    assert program["guards_code"] == []
    assert program["graph_module"]["graph"]["nodes"][0]["metadata"] == {}


@pytest.mark.parametrize(
    "target",
    [
        "torch.os.system",
        "torch.hub.load",
        "torch.load",
        "torch.ops.aten.from_file.default",
        "_operator.attrgetter",
        "torch.ops.load_library",
        "os.system",
        "",
        None,
        7,
    ],
)
def test_operator_that_is_none_is_refused(target: object, tmp_path: Path) -> None:
    program = {"graph_module": {"graph": {"nodes": [{"target": target}]}}}
    with pytest.raises(Refused, match="an operator is"):
        cleaned(exported(tmp_path / "m.pt2", program), tmp_path / "out.pt2")


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "eval(1)",
        "().__class__",
        "Symbol('s0').func",
        "Symbol('s0', positive=True) + open",
        "exec('x')",
        "lambda: 1",
        "s0['x']",
        "Integer(1)\\x0a",
        ["Integer(1)"],
        "1" * 20_000,
    ],
)
def test_size_that_is_no_formula_is_refused(text: object, tmp_path: Path) -> None:
    with pytest.raises(Refused, match="a size is"):
        cleaned(exported(tmp_path / "m.pt2", {"x": [{"expr_str": text}]}), tmp_path / "out.pt2")


@pytest.mark.parametrize(
    "text",
    [
        "Symbol('s40', positive=True, integer=True)",
        "FloorDiv(Symbol('s0', positive=True, integer=True) + Integer(3), Integer(2))",
        "Max(1, s0*2 - 1)",
        "2*s3 + 1",
    ],
)
def test_size_that_is_a_formula_is_kept(text: str, tmp_path: Path) -> None:
    cleaned(exported(tmp_path / "m.pt2", {"x": [{"expr_str": text}]}), tmp_path / "out.pt2")
    with zipfile.ZipFile(tmp_path / "out.pt2") as found:
        assert json.loads(found.read("m/models/model.json"))["x"] == [{"expr_str": text}]


def test_program_with_compiled_code_objects_or_imports_is_refused(tmp_path: Path) -> None:
    opaque = json.dumps({"config": {"c": {"path_name": "opaque_obj_0"}}}).encode()
    tree = json.dumps(
        [1, {"type": "collections.defaultdict", "context": "os", "children_spec": []}]
    )
    for case, made in enumerate(
        (
            exported(tmp_path / "a.pt2", {}, m__data__aotinductor__model__x_dot_so=b"\x7fELF"),
            exported(tmp_path / "b.pt2", {}, m__data__constants__c_dot_json=opaque),
            exported(tmp_path / "c.pt2", {"in_spec": tree}),
            archive(tmp_path / "d.pt2", serialized_exported_program_dot_json=b"{}"),
            archive(tmp_path / "e.pt2", m__archive_format=b"pt2"),
        )
    ):
        with pytest.raises(Refused, match=r"\.$"):
            cleaned(made, tmp_path / f"out{case}.pt2")
