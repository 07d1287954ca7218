"""ONNX files: from whatever is on disk to one self-contained, closed model.

Invariant: the file that comes in is only read; external data come from beside it or not at all.
Everything here runs in a child process (see `isolation`).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Final

import onnx
from google.protobuf.message import DecodeError
from onnx import AttributeProto, ModelProto, TensorProto, external_data_helper, inliner

from edgekit_contract import limits
from edgekit_contract.errors import Misused, Refused
from edgekit_contract.profile import RuntimeKind
from edgekit_converters import graph, proof

__all__ = ["MAX_MODEL_BYTES", "ExternalDataRefused", "NotAModel", "close"]

MAX_MODEL_BYTES: Final = 2 * limits.GIB - 64 * limits.MIB
"""A protobuf message ends at 2 GiB; the rest is room for what a recipe adds."""
MIN_OPSET: Final = 7
"""What onnxruntime still runs."""


class NotAModel(Refused):
    """The file is not an ONNX model, or only a part of one."""

    def __init__(self, name: str, detail: str) -> None:
        super().__init__(f"{name} is not an ONNX model ({detail}): export or download it again.")
        self.detail = detail


class ExternalDataRefused(Refused):
    """The model keeps weights in a file that edgekit will not read, or cannot."""

    def __init__(self, name: str, location: str, detail: str) -> None:
        super().__init__(
            f"{name} keeps weights in {location!r}, which {detail}: "
            "save the model with its data file beside it."
        )
        self.location = location


def close(source: str, out: str) -> Any:
    """Write `source` as one self-contained file: data embedded, functions inlined, remarks gone.

    Returns the signature of the loaded file, as JSON.
    Errors: `NotAModel`, `ExternalDataRefused`, `Misused` where it cannot be read, and those of
    `proof.load`.
    """
    path = Path(source)
    model = _parse(path)
    _embed(model, path)
    if model.functions:
        model = inliner.inline_local_functions(model)
    graph.close_inputs(model)
    graph.strip_remarks(model)
    graph.prune_opsets(model)
    graph.clamp_ir(model)
    onnx.save_model(model, out)
    return proof.load(out, RuntimeKind.ONNXRUNTIME.value, name=path.name)


def _parse(path: Path) -> ModelProto:
    try:
        size = path.stat().st_size
        if size > MAX_MODEL_BYTES:
            raise Refused(
                f"{path.name} has {size >> 20} MiB; edgekit builds models of up to "
                f"{MAX_MODEL_BYTES >> 20} MiB: quantize or split it first."
            )
        model = onnx.load_model(path, load_external_data=False)
    except DecodeError as error:
        raise NotAModel(path.name, "it does not parse, or is cut short") from error
    except OSError as error:
        raise Misused(f"cannot read {path}: {error.strerror}; check the path.") from error
    if not model.graph.output or not model.graph.node:
        raise NotAModel(path.name, "it has no graph")
    if not graph.opset(model):
        raise NotAModel(path.name, "it names no operator set")
    if graph.opset(model) < MIN_OPSET:
        raise Refused(
            f"{path.name} is of opset {graph.opset(model)}; edgekit reads {MIN_OPSET} and newer: "
            "export it again with a newer opset."
        )
    return model


def _embed(model: ModelProto, path: Path) -> None:
    external = [t for t in _tensors(model) if external_data_helper.uses_external_data(t)]
    total = model.ByteSize()
    for tensor in external:
        total += _check_external(tensor, path)
    if total > MAX_MODEL_BYTES:
        raise Refused(
            f"{path.name} and its data have {total >> 20} MiB; edgekit builds models of up to "
            f"{MAX_MODEL_BYTES >> 20} MiB: quantize or split it first."
        )
    for tensor in external:
        external_data_helper.load_external_data_for_tensor(tensor, str(path.parent))
        tensor.data_location = TensorProto.DEFAULT
        del tensor.external_data[:]


def _check_external(tensor: TensorProto, path: Path) -> int:
    """Bytes that a tensor takes from its file. Errors: `ExternalDataRefused`."""
    fields = {entry.key: entry.value for entry in tensor.external_data}
    location = fields.get("location", "")

    def refused(detail: str) -> ExternalDataRefused:
        return ExternalDataRefused(path.name, location, detail)

    parts = PurePosixPath(location).parts
    if not parts or PurePosixPath(location).is_absolute() or PureWindowsPath(location).drive:
        raise refused("is not a path relative to the model")
    if ".." in parts or "\\" in location:
        raise refused("leaves the model's directory")
    beside = path.parent.resolve()
    try:
        target = (beside / location).resolve(strict=True)
        size = target.stat().st_size
    except OSError as error:
        raise refused("is not there") from error
    if not target.is_relative_to(beside) or not target.is_file():
        raise refused("leaves the model's directory")
    try:
        offset = int(fields.get("offset", "0"))
        length = int(fields.get("length", str(size - offset)))
    except ValueError as error:
        raise refused("has an offset or length that is no number") from error
    if offset < 0 or length < 0 or offset + length > size:
        raise refused(f"is cut short at {size} bytes")
    return length


def _tensors(model: ModelProto) -> Iterator[TensorProto]:
    for current in graph.graphs(model.graph):
        yield from current.initializer
        for sparse in current.sparse_initializer:
            yield from (sparse.values, sparse.indices)
        for node in current.node:
            for attribute in node.attribute:
                if attribute.type == AttributeProto.TENSOR:
                    yield attribute.t
                elif attribute.type == AttributeProto.TENSORS:
                    yield from attribute.tensors
