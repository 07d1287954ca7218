"""Declarative preprocessing, in numpy, on decoded arrays: what a manifest says, and nothing else.

Invariant: build and device call these same functions, so that a model sees the same numbers.
Decoding a JPEG or a WAV file is the caller's.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from edgekit_contract.errors import Refused
from edgekit_contract.manifest import AudioPreprocess, Color, ImagePreprocess, Layout

__all__ = ["PreprocessRejected", "image_tensor", "resize_bilinear", "windows"]


class PreprocessRejected(Refused):
    """An image or a sound that the preprocessing does not take."""


def image_tensor(pixels: np.ndarray, how: ImagePreprocess) -> np.ndarray:
    """Pixels, uint8 [height, width, 3] in RGB or [height, width], to one float32 element of the
    batch: [c, height, width] for `Layout.NCHW`, [height, width, c] for `Layout.NHWC`.

    Errors: `PreprocessRejected`.
    """
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3) or 0 in pixels.shape:
        raise PreprocessRejected(
            f"an image of shape {list(pixels.shape)}; give [height, width, 3] or [height, width]."
        )
    colored = _COLORS[how.color](pixels.astype(np.float32))
    scaled = resize_bilinear(colored, how.height, how.width)
    tensor = (scaled * np.float32(how.scale) - np.array(how.mean, np.float32)) / np.array(
        how.std, np.float32
    )
    if how.layout is Layout.NCHW:
        tensor = tensor.transpose(2, 0, 1)
    return np.ascontiguousarray(tensor, dtype=np.float32)


def _rgb(pixels: np.ndarray) -> np.ndarray:
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels


def _bgr(pixels: np.ndarray) -> np.ndarray:
    return _rgb(pixels)[:, :, ::-1]


def _gray(pixels: np.ndarray) -> np.ndarray:
    """Luma of ITU-R BT.601, section 2.5.1."""
    if pixels.shape[2] == 1:
        return pixels
    return pixels @ np.array([[0.299], [0.587], [0.114]], np.float32)


_COLORS = {Color.RGB: _rgb, Color.BGR: _bgr, Color.GRAY: _gray}


def resize_bilinear(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """[h, w, c] float32 to [height, width, c]: pixel centres at half integers, edges held."""
    rows, columns = pixels.shape[:2]
    if (rows, columns) == (height, width):
        return pixels
    above, below, down = _taps(rows, height)
    left, right, along = _taps(columns, width)
    mixed = pixels[above] * (1 - down)[:, None, None] + pixels[below] * down[:, None, None]
    resized: np.ndarray = (
        mixed[:, left] * (1 - along)[None, :, None] + mixed[:, right] * along[None, :, None]
    )
    return resized


def _taps(source: int, target: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each target pixel: the two source pixels, and the weight of the second."""
    centre = (np.arange(target, dtype=np.float64) + 0.5) * (source / target) - 0.5
    centre = np.clip(centre, 0, source - 1)
    first = np.floor(centre).astype(np.intp)
    second = np.minimum(first + 1, source - 1)
    return first, second, (centre - first).astype(np.float32)


def windows(pcm: np.ndarray, rate_hz: int, how: AudioPreprocess) -> Iterator[np.ndarray]:
    """Sound, float32 in [-1, 1], [frames] or [frames, channels], as float32 windows of
    `window_samples` at `sample_rate_hz`, one after the other; the last is padded with zeros.

    Errors: `PreprocessRejected`.
    """
    if pcm.ndim not in (1, 2) or rate_hz < 1 or how.window_samples < 1 or how.sample_rate_hz < 1:
        raise PreprocessRejected(f"sound of shape {list(pcm.shape)} at {rate_hz} Hz.")
    mono = pcm.mean(axis=1) if pcm.ndim == 2 else pcm
    sound = _resampled(mono.astype(np.float32), rate_hz, how.sample_rate_hz)
    for start in range(0, len(sound), how.window_samples):
        window = sound[start : start + how.window_samples]
        yield np.pad(window, (0, how.window_samples - len(window)))


def _resampled(mono: np.ndarray, have_hz: int, want_hz: int) -> np.ndarray:
    """Linear interpolation; going down, first a moving average as long as the step."""
    if have_hz == want_hz or not len(mono):
        return mono
    step = have_hz / want_hz
    span = int(step)
    if span > 1:
        mono = np.convolve(mono, np.full(span, 1 / span, np.float32), mode="same")
    at = np.arange(int(len(mono) / step), dtype=np.float64) * step
    resampled: np.ndarray = np.interp(at, np.arange(len(mono)), mono).astype(np.float32)
    return resampled
