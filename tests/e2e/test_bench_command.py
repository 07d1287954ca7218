"""`edgekit bench` on this machine, as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bundles import KEY, onnx_bundle
from command_line import edgekit

MODEL = Path(__file__).parents[2] / "examples/digits/digits.onnx"


def test_bundle_and_model_are_measured_and_an_estimate_is_called_one(tmp_path: Path) -> None:
    bundle = onnx_bundle().write(tmp_path / "tiny.ekb", KEY)
    words = (bundle, MODEL, "--profile", "raspberry-pi-5", "--seconds", 0.2)
    done = edgekit("bench", *words, "--json")
    assert done.code == 0, done.err
    first, second = json.loads(done.out)["measured"]
    for one in (first, second):
        timing = one["timing"]
        assert 0 < timing["low_ms"] <= timing["median_ms"] <= timing["high_ms"]
        assert timing["runs"] >= 1 and one["rss_bytes"] > 10 << 20
        assert one["estimate"]["low"] < one["estimate"]["ms"] < one["estimate"]["high"]
    assert (first["inputs"], second["inputs"]) == ("golden", "made-up")
    assert second["title"] == "digits.onnx"
    told = edgekit("bench", *words)
    assert told.code == 0, told.err
    assert "raspberry-pi-5 ms, estimated" in told.out and "about " in told.out
    assert "measured on " in told.out and "made-up inputs" in told.err


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (("nowhere.onnx",), 2, "is not there"),
        ((MODEL, "--seconds", 0), 2, "give more than 0"),
        ((MODEL, "--profile", "raspberry-pi-9"), 2, "raspberry-pi-9"),
        ((MODEL, "--device", "kitchen"), 2, "--device needs --fleet"),
    ],
)
def test_wrong_words_are_told(
    words: tuple[object, ...], code: int, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("EDGEKIT_FLEET", raising=False)
    done = edgekit("bench", *words)
    assert done.code == code
    assert sentence in done.err


def test_bundle_whose_model_is_not_what_it_names_is_not_run(tmp_path: Path) -> None:
    bundle = onnx_bundle()
    changed = dict(bundle.files)
    changed["files/model.onnx"] = changed["files/model.onnx"][:-1] + b"\0"
    broken = type(bundle)(manifest=bundle.manifest, files=changed)
    done = edgekit("bench", broken.write(tmp_path / "broken.ekb", KEY), "--seconds", 0.2)
    assert done.code == 1
    assert "files/model.onnx" in done.err
