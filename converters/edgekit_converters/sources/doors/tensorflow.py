"""TensorFlow: SavedModel directories and Keras files (.keras, .h5), written as ONNX by tf2onnx.

Invariant: TensorFlow is in an environment of its own, and is asked through a `Server`; what it
wrote is compared with it by whoever opens a model. Nothing that a file holds as code is run.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from edgekit_contract.errors import Refused
from edgekit_converters.environments import TENSORFLOW, Server, ToolRefused
from edgekit_converters.sources.doors.door import Door
from edgekit_converters.tensorfile import read_tensors, write_tensors

__all__ = ["DOORS", "TensorFlowModel", "files", "open_file", "reads"]

_TOOL: Final = Path(__file__).parents[1] / "tools" / "tensorflow_server.py"
_GRAPH: Final = "saved_model.pb"
_KERAS_MEMBERS: Final = frozenset({"config.json", "metadata.json"})
_HDF5_MAGIC: Final = b"\x89HDF\r\n\x1a\n"


def reads(path: Path) -> bool:
    """Whether it is a SavedModel or a Keras file, by names and first bytes. Errors: `OSError`."""
    if path.is_dir():
        return (path / _GRAPH).is_file()
    with path.open("rb") as stream:
        if stream.read(len(_HDF5_MAGIC)) == _HDF5_MAGIC:
            return True
    if not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return set(archive.namelist()) >= _KERAS_MEMBERS
    except (zipfile.BadZipFile, NotImplementedError):
        return False


def files(directory: Path) -> Sequence[Path]:
    """All files that a SavedModel is read from."""
    parts = (_GRAPH, "fingerprint.pb", "variables/*", "assets/*")
    return sorted(file for part in parts for file in directory.glob(part) if file.is_file())


class TensorFlowModel:
    """A model in TensorFlow; a context manager. Runs in a child process (see `isolation`)."""

    def __init__(self, path: Path, *, home: Path) -> None:
        """`home` is a scratch directory. Errors: `Refused`, `EnvironmentMissing`."""
        self._title, self._home = path.name, home
        self._calls = 0
        self._server = Server(TENSORFLOW, _TOOL, home=home)
        try:
            self._ask("open", path=str(path.resolve()))
        except BaseException:
            self._server.__exit__()
            raise

    def __enter__(self) -> TensorFlowModel:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.__exit__()

    @property
    def example(self) -> None:
        """None comes with such a model."""
        return None

    def export(self, out: Path) -> Sequence[str]:
        """Write it as ONNX; nothing is given otherwise. Errors: `Refused`."""
        self._ask("export", out=str(out.resolve()))
        return ()

    def run(self, feeds: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """Run it in TensorFlow, on and to arrays by the names that the ONNX file has."""
        given = self._home / f"feeds{self._calls}.npz"
        made = self._home / f"outputs{self._calls}.npz"
        self._calls += 1
        write_tensors(given, feeds)
        self._ask("run", feeds=str(given.resolve()), out=str(made.resolve()))
        outputs = read_tensors(made)
        given.unlink()
        made.unlink()
        return outputs

    def _ask(self, work: str, **arguments: str) -> None:
        try:
            self._server.ask(work, **arguments)
        except ToolRefused as error:
            raise Refused(f"{self._title} {error}.") from error


def open_file(path: Path) -> TensorFlowModel:
    """In the child of a conversion, whose directory is scratch. Errors: as `TensorFlowModel`."""
    return TensorFlowModel(path, home=Path.cwd() / "tensorflow")


def _no_object(value: Any, name: str) -> TensorFlowModel:
    raise RuntimeError("TensorFlow is not imported here, and so no callable returns its models")


DOORS: Final = (
    Door(
        name="TensorFlow",
        environment=TENSORFLOW,
        packages=("tensorflow-cpu", "keras", "tf2onnx"),
        reads=reads,
        files=files,
        holds=frozenset(),
        open_file=open_file,
        open_object=_no_object,
    ),
)
