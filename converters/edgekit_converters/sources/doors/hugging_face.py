"""A Hugging Face directory on disk: config.json and weights in safetensors.

Invariant: nothing is fetched, no code of the directory is run, and no pickle is opened. What is
exported is the model that config.json names; tokenizers, preprocessors and pooling beside it are
not part of it.
Source: transformers documentation, "Exporting to production" and `PreTrainedModel.from_pretrained`.
"""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from edgekit_contract import limits
from edgekit_contract.errors import Refused
from edgekit_converters.sources.doors import pytorch
from edgekit_converters.sources.doors.door import Door, NotConvertible, refusing
from edgekit_converters.sources.pickles import Pickled

__all__ = ["DOORS"]

_CONFIG: Final = "config.json"
_PREPROCESSOR: Final = "preprocessor_config.json"
_WEIGHTS: Final = "model.safetensors"
_INDEX: Final = "model.safetensors.index.json"
_OTHER_WEIGHTS: Final = "transformers_weights"
_MAX_JSON_BYTES: Final = 16 * limits.MIB
_SAVE: Final = "model.save_pretrained(directory)"
_OFFLINE: Final = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_XET": "1"}
_SHOWN: Final = 3
_IMAGE_SIDE: Final = 224
_TOKENS: Final = 16
_SAMPLES: Final = 16_000
_FRAMES: Final = 100
_OPEN: Final = frozenset({"samples", "frames"})
"""Axes whose least length PyTorch finds out: convolutions take no less than they reach over."""
_ENCODERS_ALONE: Final = ("ForAudioClassification",)
"""Heads of a model with a decoder that use the encoder only, by the end of their classes' names."""


def _reads(path: Path) -> bool:
    if not path.is_dir() or not (path / _CONFIG).is_file():
        return False
    if not any((path / name).is_file() for name in (_WEIGHTS, _INDEX)):
        if any(path.glob("*.bin")):
            raise Pickled(
                path.name, "a directory whose weights are a pickle", f"{_SAVE} of a new version"
            )
        if not {"model_type", "architectures"} & _object(path / _CONFIG).keys():
            return False
        raise Refused(f"{path.name} has no {_WEIGHTS}: copy it there, or save it by {_SAVE}.")
    return True


def _files(path: Path) -> Sequence[Path]:
    shards = _shards(path)
    texts = sorted(file for file in path.glob("*.json") if file.is_file())
    return [*texts, *shards]


def _shards(path: Path) -> Sequence[Path]:
    """Files of weights. Errors: `Refused`."""
    named = _object(path / _CONFIG).get(_OTHER_WEIGHTS)
    if named not in (None, _WEIGHTS, _INDEX):
        raise Refused(
            f"{path.name}/{_CONFIG} names other weights ({str(named)!r:.80}): save it by {_SAVE}."
        )
    if (path / _WEIGHTS).is_file():
        return [path / _WEIGHTS]
    places = _object(path / _INDEX).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise Refused(f"{path.name}/{_INDEX} has no weight_map: copy it again.")
    names = sorted(set(map(str, places.values())))
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise Refused(f"{path.name}/{_INDEX} names {name!r:.80}, which is no file beside it.")
        if not (path / name).is_file():
            raise Refused(f"{path.name} lacks {name}, one of {len(names)} files of its weights: "
                          "copy it there.")  # fmt: skip
    return [path / name for name in names]


def _object(file: Path) -> dict[str, Any]:
    """A JSON object. Errors: `Refused`."""
    where = f"{file.parent.name}/{file.name}"
    try:
        with file.open("rb") as stream:
            value = json.loads(stream.read(_MAX_JSON_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        raise Refused(f"{where} is no JSON that can be read ({error}): copy it again.") from error
    if not isinstance(value, dict):
        raise Refused(f"{where} is no JSON object: copy it again.")
    return value


def _open_directory(path: Path) -> pytorch.Module:
    config = _object(path / _CONFIG)
    architecture = _architecture(path, config)
    os.environ.update(_OFFLINE)
    import torch
    import transformers

    kind = getattr(transformers, architecture, None)
    if not (inspect.isclass(kind) and issubclass(kind, transformers.PreTrainedModel)):
        raise Refused(
            f"{path.name} is a {architecture}, which transformers {transformers.__version__} does "
            "not have: install a version that has it, or export the model to ONNX yourself."
        )
    with refusing(
        lambda said: Refused(
            f"transformers {transformers.__version__} does not open {path.name} ({said}): copy it "
            f"again, or save it by {_SAVE}."
        )
    ):
        load: Any = kind.from_pretrained  # type: ignore[attr-defined]
        model, told = load(
            path,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            attn_implementation="eager",
            dtype=torch.float32,
            output_loading_info=True,
        )
    if missing := sorted(told["missing_keys"]):
        named = ", ".join(missing[:_SHOWN]) + (", …" if len(missing) > _SHOWN else "")
        raise Refused(
            f"{path.name} has no weights for {len(missing)} parameters of {architecture} "
            f"({named}): random numbers would take their place. Save the whole model, or name in "
            f"{_CONFIG} the architecture that it is."
        )
    return _module(model.eval(), path, architecture)


def _architecture(path: Path, config: dict[str, Any]) -> str:
    """The class to make. Errors: `Refused`."""
    if "auto_map" in config:
        raise Refused(
            f"{path.name} needs code of its own (auto_map in {_CONFIG}, trust_remote_code), and "
            "edgekit runs none: name a package.module:callable that makes the model."
        )
    if "quantization_config" in config:
        raise Refused(
            f"{path.name} has quantized weights: give the directory of the float model, edgekit "
            "quantizes it."
        )
    named = config.get("architectures")
    if not isinstance(named, list) or not named or not isinstance(named[0], str):
        raise Refused(
            f"{path.name}/{_CONFIG} names no architecture: add "
            '"architectures": ["CLASS"], a class of transformers.'
        )
    architecture = str(named[0])
    if config.get("is_encoder_decoder") and not architecture.endswith(_ENCODERS_ALONE):
        raise Refused(
            f"{path.name} is an encoder with a decoder, which is run word by word: name a "
            "package.module:callable for each of the two parts."
        )
    return architecture


class _Module(pytorch.Module):
    """With what is to be said of the model besides."""

    said: Sequence[str] = ()

    def export(self, out: Path) -> Sequence[str]:
        return [*self.said, *super().export(out)]


def _module(model: Any, path: Path, architecture: str) -> _Module:
    import torch

    names, examples, axes = _inputs(model, path, architecture)

    class Tensors(torch.nn.Module):  # type: ignore[misc]  # it is not read
        """With tensors alone, by place."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *tensors: Any) -> Any:
            words = dict(zip(names, tensors, strict=True))
            given = self.model(**words, return_dict=True)
            return {name: part for name, part in given.items() if isinstance(part, torch.Tensor)}

    dims = {axis: _dim(name, model.config) for axis, name in axes.items()}
    made = _Module(
        Tensors(),
        path.name,
        tuple(examples),
        {},
        shapes={"tensors": (dims,) * len(names)},
        inputs=names,
        axes=axes,
    )
    made.said = _remarks(model, path)
    return made


def _dim(name: str, config: Any) -> Any:
    """An open axis, as `torch.export` takes them."""
    import torch

    if name in _OPEN:
        return torch.export.Dim.DYNAMIC
    most = int(getattr(config, "max_position_embeddings", 0) or 0) if name == "sequence" else 0
    return torch.export.Dim(name, max=most) if most > _TOKENS else torch.export.Dim(name)


def _remarks(model: Any, path: Path) -> list[str]:
    said = []
    taken = inspect.signature(model.forward).parameters
    if (path / "modules.json").is_file():
        said.append(
            "What sentence-transformers does after the model (pooling, scaling) is not part of it: "
            "the bundle gives what the model itself gives."
        )
    if (path / _PREPROCESSOR).is_file():
        said.append(
            f"What {_PREPROCESSOR} says (such as resizing, scaling, spectrograms) is done before "
            "the model and is not part of it: the bundle takes what the model itself takes."
        )
    if "token_type_ids" in taken:
        said.append("token_type_ids are no input: they are 0 throughout.")
    if model.main_input_name != "input_ids" and "attention_mask" in taken:
        said.append("attention_mask is no input: all that is given counts, padding too.")
    return said


def _inputs(
    model: Any, path: Path, architecture: str
) -> tuple[list[str], list[Any], dict[int, str]]:
    """Names, examples, and names of the open axes."""
    import torch

    config, main = model.config, model.main_input_name
    taken = inspect.signature(model.forward).parameters
    if main == "input_ids":
        config.use_cache = False
        names = [name for name in ("input_ids", "attention_mask") if name in taken]
        tokens = [torch.ones(2, _TOKENS, dtype=torch.int64) for _ in names]
        return names, tokens, {0: "batch", 1: "sequence"}
    found = _pixels(config, path) if main == "pixel_values" else _sound(config, main)
    if found is None:
        raise NotConvertible(
            path.name,
            f"a {architecture} takes {main}, which edgekit knows no example of",
            "name a package.module:callable that returns the model and its example inputs",
        )
    shape, axes = found
    return [main], [torch.zeros(2, *shape)], {0: "batch", **axes}


def _sound(config: Any, main: str) -> tuple[tuple[int, ...], dict[int, str]] | None:
    """Shape without the batch, and open axes; None where it is not known.

    Spectrograms have the length that the model has positions for.
    """
    bins = getattr(config, "num_mel_bins", None)
    if main == "input_values":  # a spectrogram of AST, or samples
        return ((config.max_length, bins), {}) if bins else ((_SAMPLES,), {1: "samples"})
    if main == "input_features" and bins and hasattr(config, "max_source_positions"):
        return (bins, 2 * config.max_source_positions), {}  # Whisper's: its encoder halves it
    if main == "input_features" and hasattr(config, "feature_projection_input_dim"):
        return (_FRAMES, config.feature_projection_input_dim), {1: "frames"}
    return None


def _pixels(config: Any, path: Path) -> tuple[tuple[int, ...], dict[int, str]]:
    """As `_sound`."""
    side = getattr(config, "image_size", None) or _prepared_side(path)
    height, width = (side, side) if isinstance(side, int) else tuple(side)
    return (int(getattr(config, "num_channels", 3) or 3), height, width), {}


def _prepared_side(path: Path) -> int | tuple[int, int]:
    """Height and width that the preprocessor makes of a picture. Errors: `Refused`."""
    told = _object(path / _PREPROCESSOR) if (path / _PREPROCESSOR).is_file() else {}
    crops = told.get("do_center_crop", "crop_size" in told)
    size = told.get("crop_size" if crops else "size") or {}
    if isinstance(size, int):
        return size
    try:
        return int(size["height"]), int(size["width"])
    except (KeyError, TypeError, ValueError):
        shortest = size.get("shortest_edge") if isinstance(size, dict) else None
        return shortest if isinstance(shortest, int) else _IMAGE_SIDE


def _no_object(value: Any, name: str) -> pytorch.Module:
    raise RuntimeError("models of transformers from a callable are PyTorch modules")


DOORS: Final = (
    Door(
        name="Hugging Face",
        extra="huggingface",
        modules=("transformers", "safetensors", *pytorch.MODULES),
        packages=("transformers", *pytorch.PACKAGES),
        reads=_reads,
        files=_files,
        holds=frozenset(),
        open_file=_open_directory,
        open_object=_no_object,
    ),
)
