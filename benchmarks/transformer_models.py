"""Small models of transformers, trained here in seconds on real data, as the directories that
`save_pretrained` writes: pictures are MNIST digits of the example, sounds are spoken clips of
Debian's asterisk-core-sounds-en-wav in noise, told from noise alone.

Invariant: training sees no sample that validation has. A model is the same each time it is made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import door_models
import numpy as np
import real_models

__all__ = ["PICTURES", "SOUNDS", "picture_model", "sound_model", "spoken_windows"]

_RATE: Final = 8000
_WINDOW: Final = 4000
"""Half a second."""
_CLIPS: Final = 40
_FROM_CLIP: Final = 16
_VALIDATING_CLIPS: Final = 10
_MEL_BINS: Final = 32
_FRAMES: Final = 24
_TRANSFORMER: Final[Mapping[str, Any]] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
}  # fmt: skip


def _vit() -> Any:
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

    config = ViTConfig(**_TRANSFORMER, image_size=28, patch_size=7, num_channels=1, num_labels=10)
    size = {"height": 28, "width": 28}
    return ViTForImageClassification(config), ViTImageProcessorPil(size=size)


def _resnet() -> Any:
    """Its config.json says nothing of the size of pictures, its preprocessor does."""
    from transformers import ConvNextImageProcessorPil, ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_channels=1,
        num_labels=10,
    )  # fmt: skip
    return ResNetForImageClassification(config), ConvNextImageProcessorPil(
        size={"shortest_edge": 28}
    )


def _wav2vec2() -> Any:
    from transformers import (
        Wav2Vec2Config,
        Wav2Vec2FeatureExtractor,
        Wav2Vec2ForSequenceClassification,
    )

    config = Wav2Vec2Config(
        **_TRANSFORMER, conv_dim=[16] * 5, conv_kernel=[10, 3, 3, 3, 2],
        conv_stride=[5, 2, 2, 2, 2], num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4, classifier_proj_size=16,
        num_labels=2, layerdrop=0.0, mask_time_prob=0.0,
    )  # fmt: skip
    model = Wav2Vec2ForSequenceClassification(config)
    return model, Wav2Vec2FeatureExtractor(sampling_rate=_RATE)


def _ast() -> Any:
    from transformers import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification

    config = ASTConfig(
        **_TRANSFORMER, patch_size=8, frequency_stride=8, time_stride=8, max_length=_FRAMES,
        num_mel_bins=_MEL_BINS, num_labels=2,
    )  # fmt: skip
    extractor = ASTFeatureExtractor(
        sampling_rate=_RATE, num_mel_bins=_MEL_BINS, max_length=_FRAMES, mean=-6.0, std=4.0
    )
    return ASTForAudioClassification(config), extractor


PICTURES: Final[Mapping[str, Callable[[], Any]]] = {"vit": _vit, "resnet": _resnet}
SOUNDS: Final[Mapping[str, Callable[[], Any]]] = {"wav2vec2": _wav2vec2, "ast": _ast}


def picture_model(name: str, place: Path) -> str:
    """Write the model to `place`; DATA of digits that it has not seen, beside it."""
    images, labels = door_models.digits()
    seen = door_models.SEEN
    model, processor = _made(PICTURES[name])
    images = (images - 0.5) / 0.5  # as the processors scale
    _train(model, "pixel_values", images[:seen], labels[:seen], rounds=40)
    return _saved(model, processor, place, pixel_values=images[seen:], labels=labels[seen:])


def sound_model(name: str, place: Path) -> str:
    """Write the model to `place`; DATA of windows of clips that it has not heard, beside it."""
    windows, labels, clips = spoken_windows()
    model, extractor = _made(SOUNDS[name])
    prepared = extractor(list(windows), sampling_rate=_RATE, return_tensors="np")["input_values"]
    seen = clips >= _VALIDATING_CLIPS
    _train(model, "input_values", prepared[seen], labels[seen], rounds=12)
    return _saved(model, extractor, place, input_values=prepared[~seen], labels=labels[~seen])


def spoken_windows() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Windows of one loudness, float32 [windows, samples]; whether one speaks; its clip."""
    random = np.random.default_rng(7)
    windows, labels, clips = [], [], []
    for number, clip in enumerate(real_models.spoken(_CLIPS)):
        for start in random.integers(0, len(clip) - _WINDOW, _FROM_CLIP):
            speech = clip[start : start + _WINDOW]
            noise = random.standard_normal(_WINDOW)
            is_speech = bool(np.sqrt(np.mean(speech**2)) > 0.03) and len(labels) % 2 == 0
            mixed = speech / np.std(speech) + 0.3 * noise if is_speech else noise
            windows.append((0.1 * mixed / np.std(mixed)).astype(np.float32))
            labels.append(int(is_speech))
            clips.append(number)
    return np.stack(windows), np.array(labels), np.array(clips)


def _made(make: Callable[[], Any]) -> Any:
    import torch

    torch.manual_seed(5)
    torch.set_num_threads(1)
    return make()


def _train(model: Any, name: str, inputs: np.ndarray, labels: np.ndarray, *, rounds: int) -> None:
    import torch

    given, wanted = torch.from_numpy(inputs), torch.from_numpy(labels)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model.train()
    for _ in range(rounds):
        for batch in torch.randperm(len(given)).split(30):
            optimizer.zero_grad()
            scores = model(**{name: given[batch]}).logits
            torch.nn.functional.cross_entropy(scores, wanted[batch]).backward()
            optimizer.step()
    model.eval()


def _saved(model: Any, processor: Any, place: Path, **data: np.ndarray) -> str:
    model.save_pretrained(place)
    processor.save_pretrained(place)
    beside = place.with_suffix(".npz")
    np.savez(beside, **data)
    return str(beside)
