"""A first edgekit.toml: what a model's inputs and outputs and the files beside it suggest.

Invariant: what is written reads back as the same `Project`, but for options of the metric, which
nobody is asked for. A guess that the data do not need is written as a comment, since a wrong mean
or scale harms more than a missing table.
"""

from __future__ import annotations

import enum
import json
import os.path
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from edgekit.build.media import AUDIO_SUFFIXES, IMAGE_SUFFIXES
from edgekit.build.project import Project
from edgekit.build.scratch import open_scratch
from edgekit_contract.manifest import (
    AudioPreprocess,
    Color,
    ImagePreprocess,
    Layout,
    Postprocess,
    Preprocess,
    TensorSpec,
)
from edgekit_converters.callables import is_callable_name
from edgekit_converters.proof import Signature
from edgekit_converters.sources import open_source

__all__ = [
    "Media",
    "media_of",
    "project_text",
    "read_signature",
    "suggest_postprocess",
    "suggest_preprocess",
]

_SIDE: Final = 224
"""Of an image where the model takes any; that of ImageNet's crops."""
_SAMPLE_RATE_HZ: Final = 16_000
"""That of most models of speech."""
_BYTE: Final = 1 / 255
_CHECK: Final = "# How files become the input: check it against how the model was trained"


class Media(enum.Enum):
    """What a directory of data holds, if not arrays."""

    IMAGES = "images"
    SOUNDS = "sounds"


def read_signature(model: Path | str) -> Signature:
    """Inputs and outputs of a model, see `open_source`. Errors: `Misused`, `Refused`."""
    with open_scratch() as scratch:
        return open_source(model, scratch=scratch).signature


def media_of(data: str | None) -> Media | None:
    """The kind of files in a directory of DATA; None for any other data."""
    if data is None or not Path(data).is_dir() or any(Path(data).glob("*.npz")):
        return None
    suffixes = {path.suffix.lower() for path in Path(data).rglob("*")}
    if suffixes & IMAGE_SUFFIXES:
        return Media.IMAGES
    return Media.SOUNDS if suffixes & AUDIO_SUFFIXES else None


def suggest_preprocess(inputs: Sequence[TensorSpec], media: Media | None) -> Preprocess | None:
    """How files become the input, by its shape: four axes are an image, two a window of sound."""
    for tensor in inputs:
        if media is not Media.SOUNDS and (image := _image(tensor)) is not None:
            return image
        samples = tensor.shape[-1] if len(tensor.shape) == 2 else None
        if media is Media.SOUNDS and isinstance(samples, int):
            return AudioPreprocess(
                input=tensor.name, sample_rate_hz=_SAMPLE_RATE_HZ, window_samples=samples
            )
    return None


def _image(tensor: TensorSpec) -> ImagePreprocess | None:
    if len(tensor.shape) != 4:
        return None
    _, *axes = tensor.shape
    for layout, channels, (height, width) in (
        (Layout.NCHW, axes[0], axes[1:]),
        (Layout.NHWC, axes[2], axes[:2]),
    ):
        if channels in _COLORS:
            return ImagePreprocess(
                input=tensor.name,
                height=height if isinstance(height, int) else _SIDE,
                width=width if isinstance(width, int) else _SIDE,
                layout=layout,
                color=_COLORS[channels],
                scale=1.0 if tensor.dtype == "uint8" else _BYTE,
            )
    return None


_COLORS: Final[dict[int | str, Color]] = {1: Color.GRAY, 3: Color.RGB}


def suggest_postprocess(outputs: Sequence[TensorSpec], labels: int) -> Postprocess | None:
    """The first output with one score for each of so many labels."""
    for tensor in outputs:
        if len(tensor.shape) == 2 and tensor.shape[1] == labels:
            return Postprocess(output=tensor.name)
    return None


def project_text(project: Project, *, directory: Path, perhaps: Preprocess | None = None) -> str:
    """The file of a project that will lie in `directory`; `perhaps` is written as a comment."""
    return "\n".join(_lines(project, directory, perhaps)) + "\n"


def _lines(project: Project, directory: Path, perhaps: Preprocess | None) -> Iterator[str]:
    def path(name: str) -> str:
        return name if is_callable_name(name) else os.path.relpath(name, directory)

    yield "# What `edgekit build` makes. Paths are relative to this file; options of the command"
    yield "# override it. docs/project.md has each key."
    yield ""
    yield from _pair("model", project.model and path(project.model))
    yield from _pair("name", project.name)
    yield from _pair("version", project.version)
    yield from _pair("profiles", [_profile(name, path) for name in project.profiles])
    yield from _pair("output", project.output and path(project.output), "out", "where bundles go")
    yield from _pair("key", project.key and path(project.key), "release.key", "signs the bundles")
    yield ""
    yield "# .npz, a directory of .npz, images or WAV files, or package.module:callable"
    calibration, validation = (
        name and path(name) for name in (project.calibration, project.validation)
    )
    yield from _pair("calibration", calibration, "calibration.npz", "a few hundred samples")
    yield from _pair("validation", validation, "validation.npz", "others, labelled if you can")
    yield from _pair("labels", project.labels and path(project.labels))
    yield ""
    yield "# What must hold, and what is best among what does"
    objective = project.objective.value if project.objective is not None else None
    yield from _pair("metric", project.metric, "top1", "default: by data and outputs")
    yield from _pair("max_drop", project.max_drop, 0.01, "greatest loss of the metric")
    yield from _pair("max_ms", project.max_ms, 20.0, "greatest median latency")
    yield from _pair("max_mb", project.max_mb, 10.0, "greatest size of the model file")
    yield from _pair("objective", objective, "latency", "or size, accuracy")
    yield from _pair("recipes", list(project.recipes))
    yield from _pair("search_time_s", project.search_time_s, 60.0, "about how long to search")
    yield from _table("preprocess", project.preprocess)
    if project.preprocess is None and perhaps is not None:
        yield from (
            line if line in ("", _CHECK) else f"# {line}" for line in _table("preprocess", perhaps)
        )
    yield from _table("postprocess", project.postprocess)


def _profile(name: str, path: Any) -> str:
    if "/" not in name and not name.endswith(".toml"):
        return name
    beside: str = path(name)
    return beside if "/" in beside or beside.endswith(".toml") else f"./{beside}"


def _pair(key: str, value: Any, example: Any = None, what: str = "") -> Iterator[str]:
    """A line, or, for what is not said, a commented example."""
    if value not in (None, []):
        yield f"{key} = {_value(value)}"
    elif example is not None:
        yield f"# {key} = {_value(example)}  # {what}"


def _table(name: str, value: msgspec.Struct | None) -> Iterator[str]:
    if value is None:
        return
    yield ""
    if isinstance(value, ImagePreprocess | AudioPreprocess):
        yield _CHECK
    yield f"[{name}]"
    for key, field in msgspec.to_builtins(value).items():
        yield f"{key} = {_value(field)}"


def _value(value: Any) -> str:
    """TOML 1.0: its basic strings and arrays are JSON's, but for the delete character."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
