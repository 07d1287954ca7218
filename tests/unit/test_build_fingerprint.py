"""Keys of the cache change with whatever may change a result, and with nothing else."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from build_requests import request

import edgekit_profiles
from edgekit.build import BuildRequest, Objective, fingerprint
from edgekit.build.data import open_data
from edgekit.build.fingerprint import (
    APART,
    Circumstances,
    circumstances,
    key_of,
    repeatable_model,
    result_key,
    source_digest,
)
from edgekit.build.metrics.options import MetricOptions
from edgekit_contract.manifest import AudioPreprocess, Postprocess
from edgekit_contract.profile import RuntimeKind

PROFILE = edgekit_profiles.load("demo-small")
ASKED: dict[str, Any] = {
    "name": "other",
    "version": "1.1",
    "metric": "top1",
    "metric_options": MetricOptions(threshold=0.4),
    "max_drop": 0.02,
    "max_ms": 5.0,
    "max_mb": 5.0,
    "objective": Objective.SIZE,
    "recipes": ("int8-*",),
    "preprocess": (AudioPreprocess(input="x", sample_rate_hz=16000, window_samples=512),),
    "postprocess": (Postprocess(output="y"),),
    "labels": ("zero", "one"),
    "runtime": RuntimeKind.LITERT,
    "contenders": True,
    "conversion_time_s": 9.0,
}
"""Another value of each field that is an ingredient."""


def key(asked: BuildRequest, **changes: Any) -> str:
    words: dict[str, Any] = {
        "profile": PROFILE,
        "model": {"": "aa"},
        "data": {"validation": "bb"},
    }
    words |= changes
    return result_key(asked, words.pop("profile"), **words)


@pytest.fixture
def asked(tmp_path: Path) -> BuildRequest:
    return request(tmp_path / "model.onnx", tmp_path / "out")


def test_every_field_of_a_request_is_an_ingredient_or_said_not_to_be() -> None:
    assert {field.name for field in fields(BuildRequest)} == {*ASKED, *APART}


@pytest.mark.parametrize("name", sorted(ASKED))
def test_key_changes_with_what_is_asked(asked: BuildRequest, name: str) -> None:
    assert key(replace(asked, **{name: ASKED[name]})) != key(asked)


def test_key_changes_with_bytes_profile_and_share_of_the_search_time(asked: BuildRequest) -> None:
    found = {
        key(asked),
        key(asked, model={"": "ab"}),
        key(asked, model={"": "aa", "model.data": "cc"}),
        key(asked, data={"validation": "bc"}),
        key(asked, data={"calibration": "bb"}),
        key(asked, data={}),
        key(asked, profile=msgspec.structs.replace(PROFILE, name="another")),
        key(replace(asked, search_time_s=3.0)),
        key(replace(asked, model=asked.model.with_name("renamed.onnx"))),
    }
    assert len(found) == 9


def test_key_changes_with_what_devices_measured(asked: BuildRequest, tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    known = replace(asked, figures=figures)
    before = key(known)
    figures.write_text("{}")
    assert key(known) != before


def test_key_does_not_change_with_places_keys_and_company(asked: BuildRequest) -> None:
    other = edgekit_profiles.load("raspberry-pi-5")
    elsewhere = replace(
        asked,
        model=Path("/elsewhere/model.onnx"),
        output=Path("/elsewhere"),
        profiles=(*asked.profiles, other),
        search_time_s=2 * asked.search_time_s,
    )
    assert key(elsewhere) == key(asked)


@pytest.mark.parametrize("field", Circumstances.__struct_fields__)
def test_every_key_changes_with_each_circumstance(
    field: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = key_of({"model": "aa"})
    value = getattr(circumstances(), field)
    other: Any = {str: f"{value}x", int: 999, tuple: ("x",), dict: {"other": "9.9"}}[type(value)]
    changed = msgspec.structs.replace(circumstances(), **{field: other})
    monkeypatch.setattr(fingerprint, "circumstances", lambda: changed)
    assert key_of({"model": "aa"}) != before


def test_packages_have_what_computes() -> None:
    assert {"edgekit", "numpy", "onnx", "onnxruntime"} <= circumstances().packages.keys()


def test_source_digest_changes_with_any_module_and_its_name(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "a.py").write_text("1")
    (tmp_path / "deep" / "b.py").write_text("2")
    found = {source_digest(tmp_path)}
    (tmp_path / "deep" / "b.py").write_text("3")
    found.add(source_digest(tmp_path))
    (tmp_path / "deep" / "b.py").rename(tmp_path / "deep" / "c.py")
    found.add(source_digest(tmp_path))
    (tmp_path / "notes.txt").write_text("no module")
    found.add(source_digest(tmp_path))
    assert len(found) == 3


def test_what_code_of_the_users_measures_is_not_repeatable(tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    model.write_bytes(b"model")
    assert repeatable_model(request(model, tmp_path)) == model
    assert repeatable_model(request(model, tmp_path, metric="mine:score")) is None
    assert repeatable_model(request(tmp_path / "missing.onnx", tmp_path)) is None


def test_data_are_known_by_their_bytes_names_and_folders(tmp_path: Path) -> None:
    found = []
    for name, value in (("a", 1.0), ("a", 2.0), ("b", 2.0)):
        shards = tmp_path / f"shards{len(found)}"
        shards.mkdir()
        np.savez(shards / f"{name}.npz", x=np.full((3, 2), value, np.float32))
        found.append(open_data(str(shards)).sha256())
    assert len(set(found)) == 3
    moved = (tmp_path / "shards0").rename(tmp_path / "moved")
    assert open_data(str(moved)).sha256() == found[0]


def test_callable_is_known_by_the_rows_that_it_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rows_of_this_test.py").write_text(
        "import numpy as np\nfactor = 1.0\ndef rows():\n    yield {'x': np.ones(3) * factor}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    data = open_data("rows_of_this_test:rows")
    first = data.sha256()
    assert data.sha256() == first
    import rows_of_this_test  # type: ignore[import-not-found]

    rows_of_this_test.factor = 2.0
    assert data.sha256() != first
