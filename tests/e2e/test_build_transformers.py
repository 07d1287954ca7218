"""Trained models of pictures and of sounds of transformers come in by their door and are built."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import transformer_models
from command_line import edgekit
from doors import DOORS, assert_compared, built, right, through_the_door
from parts import need_package, need_path
from real_models import SOUNDS

from edgekit.build.choice import Objective
from edgekit.release.keys import PrivateKey, new_key
from edgekit_contract.profile import RuntimeKind
from edgekit_converters.isolation import Workshop
from edgekit_runtime.session import open_session

Trained = Callable[[str], tuple[Path, str]]


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> PrivateKey:
    return new_key(tmp_path_factory.mktemp("key") / "k", None)


@pytest.fixture(scope="module")
def workshop() -> Iterator[Workshop]:
    with Workshop(warm=()) as opened:
        yield opened


@pytest.fixture(autouse=True)
def _needed() -> None:
    for module in ("torch", "onnxscript", "transformers"):
        need_package(module, install=DOORS)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A model by name, and data that it has not seen; each is trained once."""

    @functools.cache
    def make(name: str) -> tuple[Path, str]:
        place = tmp_path_factory.mktemp(name) / name
        if name in transformer_models.PICTURES:
            return place, transformer_models.picture_model(name, place)
        need_path(SOUNDS, install="apt-get install asterisk-core-sounds-en-wav")
        return place, transformer_models.sound_model(name, place)

    return make


@pytest.mark.parametrize(("name", "reads"), [("resnet", 0.85), ("vit", 0.6)])
def test_model_of_pictures_reads_digits_as_transformers_does(
    name: str, reads: float, trained: Trained, tmp_path: Path, workshop: Workshop
) -> None:
    model, data = trained(name)
    found = through_the_door(model, data, tmp_path, workshop)
    assert_compared(found.normalized.remarks, "transformers", 256)
    assert any("preprocessor_config.json" in text for text in found.normalized.remarks)
    assert found.source.signature.inputs[0].shape == ("batch", 1, 28, 28)
    assert right(found, "logits") > reads


@pytest.mark.parametrize("name", ["wav2vec2", "ast"])
def test_model_of_sounds_hears_speech_as_transformers_does(
    name: str, trained: Trained, tmp_path: Path, workshop: Workshop
) -> None:
    model, data = trained(name)
    found = through_the_door(model, data, tmp_path, workshop)
    assert_compared(found.normalized.remarks, "transformers", 160)
    assert right(found, "logits") > 0.9
    expected = ("batch", "samples") if name == "wav2vec2" else ("batch", 24, 32)
    assert found.source.signature.inputs[0].shape == expected


def test_model_of_sounds_takes_clips_of_any_length(
    trained: Trained, tmp_path: Path, workshop: Workshop
) -> None:
    import torch
    from transformers import Wav2Vec2ForSequenceClassification

    place, data = trained("wav2vec2")
    found = through_the_door(place, data, tmp_path, workshop)
    session = open_session(RuntimeKind.ONNXRUNTIME, found.source.path)
    model = Wav2Vec2ForSequenceClassification.from_pretrained(place).eval()
    with np.load(data) as heard:
        whole = heard["input_values"][:6].reshape(1, -1)
    for samples in (500, 4001, whole.shape[1]):
        clip = np.ascontiguousarray(whole[:, :samples])
        with torch.no_grad():
            wanted = model(torch.from_numpy(clip)).logits.numpy()
        np.testing.assert_allclose(session.run({"input_values": clip})["logits"], wanted, atol=1e-4)


def test_pictures_of_transformers_are_built_in_8_bits(
    trained: Trained, tmp_path: Path, key: PrivateKey
) -> None:
    model, data = trained("resnet")
    report, manifest = built(
        model, tmp_path, key, validation=data, calibration=data,
        recipes=("float32-optimized", "int8-static/*"), objective=Objective.SIZE,
    )  # fmt: skip
    assert report.metric == "top1"
    scores = {made.recipe: made.score for made in report.candidates if made.score is not None}
    assert any(name.startswith("int8-static") for name in scores)
    assert manifest.provenance.source_name == "resnet"
    assert manifest.provenance.tools["transformers"][0].isdigit()


def test_sounds_of_transformers_are_built_from_the_command_line(
    trained: Trained, tmp_path: Path
) -> None:
    model, data = trained("ast")
    answer = edgekit(
        "build", model, "--profile", "demo-small", "--validation", data, "--recipe",
        "float32-optimized", "--search-time", "1", "--conversion-time", "300", "--name", "speech",
        "--version", "1.0", "-o", tmp_path / "out",
    )  # fmt: skip
    assert answer.code == 0, answer.err
    assert "Converted from transformers" in answer.out
    assert (tmp_path / "out" / "speech-1.0-demo-small.ekb").is_file()


def test_whisper_that_classifies_is_an_encoder_alone(tmp_path: Path, workshop: Workshop) -> None:
    from transformers import WhisperConfig, WhisperForAudioClassification

    config = WhisperConfig(
        d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, max_source_positions=50,
        classifier_proj_size=16, vocab_size=100, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        decoder_start_token_id=1,
    )  # fmt: skip
    WhisperForAudioClassification(config).save_pretrained(tmp_path / "m")
    assert json.loads((tmp_path / "m" / "config.json").read_text())["is_encoder_decoder"]
    random = np.random.default_rng(0)
    spectrograms = random.standard_normal((4, 80, 100), np.float32)
    np.savez(tmp_path / "v.npz", input_features=spectrograms)
    found = through_the_door(tmp_path / "m", str(tmp_path / "v.npz"), tmp_path, workshop)
    assert_compared(found.normalized.remarks, "transformers", 4)
