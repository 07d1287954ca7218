"""Weights outside of the model file (ONNX external data): found, checked, embedded or gathered.

Invariant: only files beside the model are read, and none whole. A protobuf message ends at 2 GiB;
a model beyond that keeps its large tensors in one file, `DATA_NAME`, in the directory of the model,
and every rewriting of it in that directory goes on using that file.
Source: ONNX documentation, "External Data".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import BinaryIO, Final

import onnx
from google.protobuf.message import DecodeError
from onnx import AttributeProto, ModelProto, TensorProto, external_data_helper

from edgekit_contract import limits
from edgekit_contract.errors import Refused
from edgekit_converters import graph

__all__ = [
    "DATA_NAME",
    "MAX_EMBEDDED_BYTES",
    "ExternalDataRefused",
    "checked_files",
    "embed",
    "files",
    "gather",
    "is_external",
    "save",
    "size_bytes",
]

MAX_EMBEDDED_BYTES: Final = 2 * limits.GIB - 64 * limits.MIB
"""A protobuf message ends at 2 GiB; the rest is room for what a recipe adds."""
DATA_NAME: Final = "model.onnx.data"
_SMALL_BYTES: Final = 16 * limits.KIB
"""Tensors up to here stay in the model file: shapes, axes and bounds, which rewriting reads."""
_ALIGNMENT: Final = 4096
"""A tensor that begins at a page can be mapped into memory."""
_PIECE_BYTES: Final = 1 << 20


class ExternalDataRefused(Refused):
    """The model keeps weights in a file that edgekit will not read, or cannot."""

    def __init__(self, name: str, location: str, detail: str) -> None:
        super().__init__(
            f"{name} keeps weights in {location[:100]!r}, which {detail}: "
            "save the model with its data file beside it."
        )
        self.location = location


def files(path: Path) -> tuple[Path, ...]:
    """The model file and those that its weights are in; a file of another format has no others.

    Errors: `ExternalDataRefused`.
    """
    try:
        model = onnx.load_model(path, load_external_data=False)
    except DecodeError:
        return (path,)
    return (path, *checked_files(model, path))


def size_bytes(path: Path) -> int:
    """Of the model file with those that its weights are in."""
    return sum(file.stat().st_size for file in files(path))


def is_external(path: Path) -> bool:
    """Whether the model keeps weights outside of its file."""
    return len(files(path)) > 1


def checked_files(model: ModelProto, path: Path) -> tuple[Path, ...]:
    """The files beside `path` that hold weights of the model, each range within its file.

    Errors: `ExternalDataRefused`.
    """
    found: dict[Path, None] = {}
    for tensor in _external(model):
        found[_range(tensor, path)[0]] = None
    return tuple(found)


def embed(model: ModelProto, path: Path) -> None:
    """Take weights that are in files beside `path` into the model. Errors: as `checked_files`."""
    for tensor in _external(model):
        _take_in(tensor, path)


def save(model: ModelProto, out: Path, *, embedded_bytes: int = MAX_EMBEDDED_BYTES) -> None:
    """Write a model that holds all its data, with more than `embedded_bytes` in a file of its own
    beside `out`; the data then leave `model`."""
    if sum(len(tensor.raw_data) for tensor in _tensors(model)) <= embedded_bytes:
        onnx.save_model(model, out)
    else:
        gather(model, out, out, data_name=f"{out.name}.data")


def gather(model: ModelProto, path: Path, out: Path, *, data_name: str = DATA_NAME) -> None:
    """Write the model to `out`, its large tensors to `data_name` beside it, a piece at a time."""
    written: dict[tuple[Path, int, int], int] = {}
    with (out.parent / data_name).open("wb") as stream:
        for tensor in _tensors(model):
            if external_data_helper.uses_external_data(tensor):
                source, offset, length = _range(tensor, path)
                if length <= _SMALL_BYTES:
                    _take_in(tensor, path)
                    continue
                if (source, offset, length) not in written:
                    with source.open("rb") as given:
                        given.seek(offset)
                        written[source, offset, length] = _append(stream, given, length)
                _refer(tensor, data_name, written[source, offset, length], length)
            elif len(tensor.raw_data) > _SMALL_BYTES:
                start = _align(stream)
                stream.write(tensor.raw_data)
                _refer(tensor, data_name, start, len(tensor.raw_data))
    onnx.save_model(model, out)


def _align(stream: BinaryIO) -> int:
    start = -(-stream.tell() // _ALIGNMENT) * _ALIGNMENT
    stream.seek(start)
    return start


def _append(stream: BinaryIO, given: BinaryIO, length: int) -> int:
    start = _align(stream)
    left = length
    while left:
        piece = given.read(min(left, _PIECE_BYTES))
        if not piece:
            raise OSError("the data file became shorter while it was read")
        stream.write(piece)
        left -= len(piece)
    return start


def _refer(tensor: TensorProto, location: str, offset: int, length: int) -> None:
    tensor.ClearField("raw_data")
    del tensor.external_data[:]
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, str(value)


def _take_in(tensor: TensorProto, path: Path) -> None:
    source, offset, length = _range(tensor, path)
    with source.open("rb") as stream:
        stream.seek(offset)
        tensor.raw_data = stream.read(length)
    tensor.data_location = TensorProto.DEFAULT
    del tensor.external_data[:]


def _range(tensor: TensorProto, path: Path) -> tuple[Path, int, int]:
    """File, offset and length of a tensor's bytes. Errors: `ExternalDataRefused`."""
    fields = {entry.key: entry.value for entry in tensor.external_data}
    location = fields.get("location", "")

    def refused(detail: str) -> ExternalDataRefused:
        return ExternalDataRefused(path.name, location, detail)

    parts = PurePosixPath(location).parts
    if not parts or PurePosixPath(location).is_absolute() or PureWindowsPath(location).drive:
        raise refused("is not a path relative to the model")
    if ".." in parts or "\\" in location or "\0" in location:
        raise refused("leaves the model's directory")
    beside = path.parent.resolve()
    try:
        target = (beside / location).resolve(strict=True)
        size = target.stat().st_size
    except (OSError, RuntimeError) as error:
        raise refused("is not there") from error
    if not target.is_relative_to(beside) or not target.is_file():
        raise refused("leaves the model's directory")
    try:
        offset = int(fields.get("offset") or 0)
        length = int(fields.get("length") or size - offset)
    except ValueError as error:
        raise refused("has an offset or length that is no number") from error
    if offset < 0 or length < 0 or offset + length > size:
        raise refused(f"is cut short at {size} bytes")
    return target, offset, length


def _external(model: ModelProto) -> Iterator[TensorProto]:
    return (t for t in _tensors(model) if external_data_helper.uses_external_data(t))


def _tensors(model: ModelProto) -> Iterator[TensorProto]:
    for current in graph.graphs(model.graph):
        yield from current.initializer
        for sparse in current.sparse_initializer:
            yield from (sparse.values, sparse.indices)
        for node in current.node:
            yield from _held(node.attribute)
    for function in model.functions:
        for node in function.node:
            yield from _held(node.attribute)


def _held(attributes: Iterable[AttributeProto]) -> Iterator[TensorProto]:
    for attribute in attributes:
        if attribute.type == AttributeProto.TENSOR:
            yield attribute.t
        elif attribute.type == AttributeProto.TENSORS:
            yield from attribute.tensors
        elif attribute.type == AttributeProto.SPARSE_TENSOR:
            yield from (attribute.sparse_tensor.values, attribute.sparse_tensor.indices)
