"""Keras files, looked at before Keras reads them: what are they made of, is anything of it code or
elsewhere? Runs in the `tensorflow` environment.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from unable import Unable, said

_HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
_NAMESPACES = (
    "layers", "models", "initializers", "regularizers", "constraints", "losses", "metrics",
    "optimizers", "optimizers.schedules", "dtype_policies", "quantizers", "random",
)  # fmt: skip
_NOT_LAYERS = frozenset({"TensorShape", "__tuple__", "__tensor__", "__numpy__", "__slice__",
                         "__ellipsis__", "__keras_tensor__", "__typespec__"})  # fmt: skip
"""What else has a `class_name` in a Keras file (keras/src/saving/serialization_lib.py)."""
_OPENING = frozenset({"TFSMLayer", "TorchModuleWrapper", "JaxLayer", "FlaxLayer"})


def check(path: Path) -> None:
    """Demand that a file is made of Keras's own layers, and of numbers of its own.

    Errors: `Unable`.
    """
    import keras

    _check_layers(_configuration(path), _own_classes(keras))


def _configuration(path: Path) -> Any:
    """What a Keras file says of its layers; nothing of it is run.

    Keras goes by the name of a file, so name and content have to say the same.
    """
    with path.open("rb") as stream:
        is_hdf5 = stream.read(len(_HDF5_MAGIC)) == _HDF5_MAGIC
    if is_hdf5 != (path.suffix in (".h5", ".hdf5")):
        kind, suffix = ("HDF5", ".h5") if is_hdf5 else ("Keras's own format", ".keras")
        raise Unable(f"is a file of {kind} by another name: rename it to end with {suffix}")
    import h5py

    try:
        if not is_hdf5:
            with zipfile.ZipFile(path) as archive:
                for name in archive.namelist():
                    if name.endswith(".h5"):
                        with archive.open(name) as member, h5py.File(member, "r") as file:
                            _check_inside(file)
                return json.loads(archive.read("config.json"))
        with h5py.File(path, "r") as file:
            _check_inside(file)
            text = file.attrs.get("model_config")
            if text is None:
                raise Unable("holds weights and no model: save the whole model (model.save)")
            return json.loads(text)
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise Unable(
            f"is no Keras model that can be read ({said(error)}): save it again"
        ) from error


def _check_inside(file: Any) -> None:
    """Refuse HDF5 that takes its numbers from other files."""
    import h5py

    waiting, seen = [file], set()
    while waiting:
        group = waiting.pop()
        address = h5py.h5o.get_info(group.id).addr
        if address in seen:
            continue
        seen.add(address)
        for name in group:
            if isinstance(group.get(name, getlink=True), h5py.SoftLink | h5py.ExternalLink):
                raise Unable("holds weights that are links to others: save the model again")
            item = group[name]
            if isinstance(item, h5py.Group):
                waiting.append(item)
            elif isinstance(item, h5py.Dataset) and (item.external or item.is_virtual):
                raise Unable("takes weights from other files: save the model again")


def _own_classes(keras: Any) -> frozenset[str]:
    """Names of Keras's classes that a model may be made of."""
    found = set(_NOT_LAYERS)
    for namespace in _NAMESPACES:
        room = keras
        for part in namespace.split("."):
            room = getattr(room, part)
        found |= {name for name, value in vars(room).items() if isinstance(value, type)}
    waiting = [keras.Operation]  # x + y of two layers is one, too
    while waiting:
        kind = waiting.pop()
        waiting.extend(kind.__subclasses__())
        if kind.__module__.startswith("keras.src."):
            found.add(kind.__name__)
    return frozenset(found - _OPENING)


def _check_layers(configuration: Any, own: frozenset[str]) -> None:
    for entry in _entries(configuration):
        name, module = str(entry.get("class_name")), str(entry.get("module") or "keras")
        if name in ("Lambda", "function", "__lambda__"):
            raise Unable(
                "has a Lambda layer, which is code, and code of a file is not run: "
                "write that layer as a class of keras.layers, or export() the model "
                "as a SavedModel"
            )
        if name in _OPENING:
            raise Unable(
                f"has a {name}, which opens a model outside the file: give that model to "
                "edgekit, or build this one without it"
            )
        root = module.split(".", maxsplit=1)[0]
        if root not in ("keras", "builtins", "tensorflow", "tf_keras") or name not in own:
            raise Unable(
                f"has a layer of its own ({name}), whose code is not in the file: "
                "export() the model as a SavedModel"
            )


def _entries(value: Any) -> Iterator[dict[str, Any]]:
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            if "class_name" in item:
                yield item
            waiting.extend(item.values())
        elif isinstance(item, list):
            waiting.extend(item)
