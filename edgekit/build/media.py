"""Directories of images or WAV files as rows of DATA, by the declared preprocessing.

Invariant: files are read one at a time, in the order of their paths. A file in a folder below the
directory belongs to the class of that folder: its number, or its place among the folders' names.
"""

from __future__ import annotations

import wave
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from edgekit.build.samples import LABELS, DataRejected, Row
from edgekit_contract.errors import Misused
from edgekit_contract.manifest import AudioPreprocess, ImagePreprocess, Preprocess
from edgekit_runtime.preprocess import image_tensor, windows

__all__ = ["AUDIO_SUFFIXES", "IMAGE_SUFFIXES", "media_rows"]

IMAGE_SUFFIXES: Final = frozenset(".jpg .jpeg .png .bmp .webp".split())
AUDIO_SUFFIXES: Final = frozenset({".wav"})


def media_rows(
    directory: Path, files: Sequence[Path], preprocess: Sequence[Preprocess]
) -> Callable[[], Iterator[Row]]:
    """The rows of the files. Errors: `Misused` without preprocessing, `DataRejected`."""
    if len(preprocess) != 1:
        raise Misused(
            f"{directory} holds images or sounds: say in edgekit.toml, in one [preprocess] table, "
            "how they become the model's input (kind, input, height, width, ...)."
        )
    how = preprocess[0]
    suffixes = IMAGE_SUFFIXES if isinstance(how, ImagePreprocess) else AUDIO_SUFFIXES
    chosen = [file for file in files if file.suffix.lower() in suffixes]
    if not chosen:
        raise DataRejected(f"{directory} holds no file of kind {type(how).__name__}.")
    labels = _labels(directory, chosen)

    def rows() -> Iterator[Row]:
        for file in chosen:
            for tensor in _tensors(file, how):
                row = {how.input: tensor}
                if labels:
                    row[LABELS] = np.int64(labels[file])
                yield row

    return rows


def _labels(directory: Path, files: Sequence[Path]) -> dict[Path, int]:
    folders = {file: file.relative_to(directory).parts[0] for file in files}
    if any(len(file.relative_to(directory).parts) != 2 for file in files):
        return {}
    names = sorted(set(folders.values()))
    numbers = (
        {name: int(name) for name in names}
        if all(name.isdecimal() for name in names)
        else {name: index for index, name in enumerate(names)}
    )
    return {file: numbers[folder] for file, folder in folders.items()}


def _tensors(file: Path, how: Preprocess) -> Iterator[np.ndarray]:
    if isinstance(how, ImagePreprocess):
        return _image(file, how)
    return _sound(file, how)


def _image(file: Path, how: ImagePreprocess) -> Iterator[np.ndarray]:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(file) as picture:
            pixels = np.asarray(picture.convert("RGB"))
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise DataRejected(f"{file} is not an image that can be read: {error}.") from error
    yield image_tensor(pixels, how)


def _sound(file: Path, how: AudioPreprocess) -> Iterator[np.ndarray]:
    try:
        with wave.open(str(file)) as sound:
            width, channels = sound.getsampwidth(), sound.getnchannels()
            rate_hz, raw = sound.getframerate(), sound.readframes(sound.getnframes())
    except (OSError, EOFError, ValueError, wave.Error) as error:
        raise DataRejected(f"{file} is not a PCM WAV file that can be read: {error}.") from error
    if len(raw) % (width * channels):
        raise DataRejected(f"{file} is cut short in the middle of a sample: copy it again.")
    yield from windows(_pcm(raw, width, file).reshape(-1, channels), rate_hz, how)


def _pcm(raw: bytes, width: int, file: Path) -> np.ndarray:
    """Samples as float32 in [-1, 1]."""
    if width == 1:
        return (np.frombuffer(raw, np.uint8).astype(np.float32) - 128) / 128
    if width == 3:
        triples = np.frombuffer(raw, np.uint8).reshape(-1, 3)
        padded = np.zeros((len(triples), 4), np.uint8)
        padded[:, 1:] = triples
        return (padded.view("<i4")[:, 0] / 2**31).astype(np.float32)
    if width in (2, 4):
        pcm: np.ndarray = np.frombuffer(raw, f"<i{width}") / 2 ** (8 * width - 1)
        return pcm.astype(np.float32)
    raise DataRejected(f"{file} has samples of {width} bytes: convert it to 16-bit PCM.")
