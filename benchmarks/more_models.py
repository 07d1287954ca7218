"""Real models that nothing in edgekit was made for: does the build do right by a stranger?

PP-OCRv4's three (Apache-2.0; opset 11 and 12, weights in Constant nodes, open sizes), which find
text, turn it and read it, with sentences of Python's documentation in the fonts of this machine;
an LSTM that foretells the loudness of the bands of speech, trained here on spoken clips; and
scikit-learn's random forest and support vector machine, trained here on its scanned digits.
`more_models.txt` names the packages. Nothing is fetched here.

Invariant: the same machine gives the same files; calibration and validation share no sample.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import minilm
import numpy as np
from real_models import RealModel, package_directory, save, spoken

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

__all__ = ["MODELS"]

_FONTS: Final = Path("/usr/share/fonts/truetype")
_LINE_HEIGHT: Final = 48
_DIRECTION_WIDTH: Final = 192
_PAGE: Final = 320
_BANDS: Final = 16
_FRAME: Final = 256
_PAST: Final = 24


def _picture(text: str, index: int) -> Picture:
    """A line of text, dark on light or the other way round, in one of the fonts, with noise."""
    from PIL import Image, ImageDraw, ImageFont

    random = np.random.default_rng(index)
    fonts = sorted(_FONTS.rglob("*Sans*.ttf")) + sorted(_FONTS.rglob("*Serif*.ttf"))
    size = int(random.integers(18, 34))
    font = (
        ImageFont.truetype(fonts[index % len(fonts)], size)
        if fonts
        else (ImageFont.load_default(size))
    )
    left, top, right, bottom = font.getbbox(text)
    paper, ink = ((235, 25), (40, 220))[index % 2]
    frame = (int(right - left) + size, int(bottom - top) + size // 2)
    picture = Image.new("L", frame, paper)
    ImageDraw.Draw(picture).text((size // 2 - left, size // 4 - top), text, ink, font)
    noisy = np.asarray(picture, np.float32) + random.normal(0, 8, (frame[1], frame[0]))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).convert("RGB")


def _lines(count: int) -> Iterator[tuple[int, Picture]]:
    for index, text in enumerate(minilm.sentences(count)):
        start = text.find(" ", index % 20) + 1
        yield index, _picture(text[start : start + 12 + index % 20].strip() or text[:20], index)


def _strip(picture: Picture, width: int) -> np.ndarray:
    """[1, 3, 48, width] as the package makes it: scaled to the height, zeros at the right."""
    wide = min(width, round(picture.width * _LINE_HEIGHT / picture.height))
    pixels = np.asarray(picture.resize((wide, _LINE_HEIGHT)), np.float32)
    strip = np.zeros((1, 3, _LINE_HEIGHT, width), np.float32)
    strip[0, :, :, :wide] = (pixels / 127.5 - 1).transpose(2, 0, 1)
    return strip


def _ocr_model(name: str) -> Path:
    return package_directory("rapidocr_onnxruntime") / "models" / name


def _split(directory: Path, index: int) -> Path:
    """Where a sample goes: every sixth is for calibration."""
    part = directory / ("validation" if index % 6 else "calibration")
    part.mkdir(exist_ok=True)
    return part / f"{index:05d}.npz"


def text_reader(directory: Path, *, lines: int = 480) -> RealModel:
    """Of each line, scaled to its own width."""
    for index, picture in _lines(lines):
        width = max(320, round(picture.width * _LINE_HEIGHT / picture.height))
        save(_split(directory, index), x=_strip(picture, width))
    return RealModel(
        name="text-reader",
        model=_ocr_model("ch_PP-OCRv4_rec_infer.onnx"),
        calibration=directory / "calibration",
        validation=directory / "validation",
        metric="ctc",
    )


def text_direction(directory: Path, *, lines: int = 1200) -> RealModel:
    """Every other line is upside down."""
    for index, picture in _lines(lines):
        turned = index // 6 % 2
        shown = picture.rotate(180) if turned else picture
        save(
            _split(directory, index),
            x=_strip(shown, _DIRECTION_WIDTH),
            labels=np.array([turned]),
        )
    return RealModel(
        name="text-direction",
        model=_ocr_model("ch_ppocr_mobile_v2.0_cls_infer.onnx"),
        calibration=directory / "calibration",
        validation=directory / "validation",
    )


def text_finder(directory: Path, *, pages: int = 144) -> RealModel:
    """Lines here and there on a page."""
    from PIL import Image

    lines = [picture for _, picture in _lines(5 * pages)]
    for index in range(pages):
        random = np.random.default_rng(index)
        page = Image.new("RGB", (_PAGE, _PAGE), tuple(random.integers(90, 255, 3).tolist()))
        for row, line in enumerate(lines[5 * index : 5 * index + 5]):
            page.paste(line, (int(random.integers(0, 120)), 10 + 62 * row))
        pixels = np.asarray(page, np.float32).transpose(2, 0, 1)[None] / 255
        mean = np.array([0.485, 0.456, 0.406], np.float32)[:, None, None]
        deviation = np.array([0.229, 0.224, 0.225], np.float32)[:, None, None]
        save(_split(directory, index), x=(pixels - mean) / deviation)
    return RealModel(
        name="text-finder",
        model=_ocr_model("ch_PP-OCRv4_det_infer.onnx"),
        calibration=directory / "calibration",
        validation=directory / "validation",
    )


def loudness(directory: Path, *, sounds: int = 60) -> RealModel:
    """The bands of the next 32 ms of speech from the 24 frames before; each fourth clip is kept
    from training and validates."""
    parts: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for index, clip in enumerate(spoken(sounds)):
        frames = clip[: len(clip) // _FRAME * _FRAME].reshape(-1, _FRAME)
        power = np.abs(np.fft.rfft(frames * np.hanning(_FRAME)))[:, 1:] ** 2
        bands = np.log(power.reshape(len(frames), _BANDS, -1).mean(2) + 1e-6).astype(np.float32)
        found = np.lib.stride_tricks.sliding_window_view(bands, _PAST + 1, 0)
        parts[index % 4 == 0].append(found.transpose(0, 2, 1))
    trained, kept = (np.concatenate(part) for part in parts)
    model = directory / "loudness.onnx"
    _train_loudness(trained, model)
    kept = kept[np.random.default_rng(0).permutation(len(kept))[:1200], :_PAST]
    return RealModel(
        name="loudness-lstm",
        model=model,
        calibration=save(directory / "calibration.npz", bands=trained[:: len(trained) // 200, :-1]),
        validation=save(directory / "validation.npz", bands=kept),
    )


def _train_loudness(windows: np.ndarray, path: Path) -> None:
    import torch
    from torch import nn

    class Forecast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.recurrent = nn.LSTM(_BANDS, 128, num_layers=2, batch_first=True)
            self.readout = nn.Linear(128, _BANDS)

        def forward(self, bands: torch.Tensor) -> torch.Tensor:
            read: torch.Tensor = self.readout(self.recurrent(bands)[0][:, -1])
            return read

    torch.manual_seed(0)
    model = Forecast()
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    every = torch.from_numpy(np.ascontiguousarray(windows))
    for _ in range(3):
        for batch in every[torch.randperm(len(every))].split(64):
            loss = nn.functional.mse_loss(model(batch[:, :-1]), batch[:, -1])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    torch.onnx.export(
        model.eval(),
        (every[:1, :-1],),
        str(path),
        input_names=["bands"],
        output_names=["next"],
        opset_version=14,
        dynamo=False,
    )


def _digits(directory: Path, name: str, learner: Any) -> RealModel:
    """Scanned digits of 8x8 points: half to train and calibrate with, half to validate."""
    from skl2onnx import to_onnx
    from sklearn.datasets import load_digits

    points, labels = load_digits(return_X_y=True)
    points = points.astype(np.float32)
    learner.fit(points[::2], labels[::2])
    model = directory / f"{name}.onnx"
    converted = to_onnx(learner, points[:1], options={"zipmap": False})
    model.write_bytes(converted.SerializeToString())
    return RealModel(
        name=name,
        model=model,
        calibration=save(directory / "calibration.npz", X=points[::8]),
        validation=save(directory / "validation.npz", X=points[1::2], labels=labels[1::2]),
    )


def digits_forest(directory: Path) -> RealModel:
    from sklearn.ensemble import RandomForestClassifier

    return _digits(directory, "digits-forest", RandomForestClassifier(60, random_state=0))


def digits_vectors(directory: Path) -> RealModel:
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    return _digits(directory, "digits-vectors", make_pipeline(StandardScaler(), SVC()))


MODELS: Mapping[str, Callable[[Path], RealModel]] = {
    "text-reader": text_reader,
    "text-direction": text_direction,
    "text-finder": text_finder,
    "loudness-lstm": loudness,
    "digits-forest": digits_forest,
    "digits-vectors": digits_vectors,
}
