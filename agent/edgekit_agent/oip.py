"""The Open Inference Protocol v2 as values: requests to tensors, tensors to answers.

Pure. Invariants: a request is turned into the tensors it means or rejected in one sentence; tensor
data are never copied but to align them; an answer's JSON is valid JSON. NaN and infinity have no
JSON, so an output that holds one is `Unsendable` unless it was asked for as binary data, which
carry it exactly. Sources: Open Inference Protocol (kserve/open-inference-protocol), REST
specification; its extensions for binary tensor data and classification.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Final

import msgspec
import numpy as np

from edgekit_agent.classification import Classes, classify
from edgekit_contract import limits
from edgekit_contract.errors import Refused
from edgekit_contract.manifest import TensorSpec

__all__ = [
    "DATATYPES",
    "Answer",
    "Inference",
    "RequestRejected",
    "RequestTooLarge",
    "ServedModel",
    "Unsendable",
    "encode_answer",
    "model_metadata",
    "parse_request",
]

DATATYPES: Final = {
    "bool": "BOOL", "uint8": "UINT8", "uint16": "UINT16", "uint32": "UINT32", "uint64": "UINT64",
    "int8": "INT8", "int16": "INT16", "int32": "INT32", "int64": "INT64",
    "float16": "FP16", "float32": "FP32", "float64": "FP64",
}  # fmt: skip
"""numpy's names to the protocol's. There is no BYTES: edgekit runs models of numbers."""

_OPENING: Final = re.compile(rb"[\[\s]*")


class RequestRejected(Refused):
    """What was sent is not a request that this model can answer."""


class RequestTooLarge(Refused):
    """More was sent than is taken in this form."""


class Unsendable(Refused):
    """The model's output cannot be sent in the form that was asked for."""


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """What the API knows of the model behind it."""

    name: str
    version: str
    platform: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    classes: Mapping[str, Classes] = field(default_factory=dict)
    """By output."""


@dataclass(frozen=True, kw_only=True)
class WantedOutput:
    name: str
    binary: bool
    classification: int | None = None
    """How many classes to name instead of sending the scores."""


@dataclass(frozen=True, kw_only=True)
class Inference:
    """A request to infer, understood."""

    id: str | None
    feeds: dict[str, np.ndarray]
    outputs: tuple[WantedOutput, ...]


@dataclass(frozen=True, kw_only=True)
class Answer:
    body: tuple[bytes | memoryview, ...]
    json_bytes: int | None
    """Length of the JSON before binary data; None where all is JSON."""


# --- the wire


class _InputParameters(msgspec.Struct, frozen=True):
    binary_data_size: Annotated[int, msgspec.Meta(ge=0)] | None = None


class _Input(msgspec.Struct, frozen=True):
    name: str
    datatype: str
    shape: Annotated[
        list[Annotated[int, msgspec.Meta(ge=0, le=limits.MAX_JSON_INTEGER)]],
        msgspec.Meta(max_length=limits.MAX_RANK),
    ]
    parameters: _InputParameters = _InputParameters()
    data: msgspec.Raw = msgspec.Raw()
    """Its JSON text; empty where it is not there."""


class _OutputParameters(msgspec.Struct, frozen=True):
    binary_data: bool | None = None
    classification: Annotated[int, msgspec.Meta(ge=1)] | None = None


class _Output(msgspec.Struct, frozen=True):
    name: str
    parameters: _OutputParameters = _OutputParameters()


class _Parameters(msgspec.Struct, frozen=True):
    binary_data_output: bool = False


class _Request(msgspec.Struct, frozen=True):
    inputs: Annotated[list[_Input], msgspec.Meta(max_length=limits.MAX_TENSORS)]
    outputs: Annotated[list[_Output], msgspec.Meta(max_length=limits.MAX_TENSORS)] = []
    id: str | None = None
    parameters: _Parameters = _Parameters()


_REQUEST: Final = msgspec.json.Decoder(_Request)


# --- requests


def parse_request(body: bytearray | bytes, json_bytes: int | None, model: ServedModel) -> Inference:
    """Understand the body of a request to infer; `json_bytes` is Inference-Header-Content-Length.

    The tensors may share `body`'s memory. Their shapes are the request's: whether the model
    admits them is for its session to say. Errors: `RequestRejected`, `RequestTooLarge`.
    """
    view = memoryview(body)
    length = len(view) if json_bytes is None else json_bytes
    if length > len(view):
        raise RequestRejected(
            f"Inference-Header-Content-Length is {length}, the body has {len(view)} bytes."
        )
    all_json = length == len(view)
    if length > (limits.MAX_JSON_REQUEST_BYTES if all_json else limits.MAX_HEADER_JSON_BYTES):
        raise RequestTooLarge(
            f"{length} bytes of JSON are more than are taken: send tensors as binary data."
        )
    try:
        request = _REQUEST.decode(view[:length])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestRejected(f"the body is not a request to infer: {error}.") from error
    feeds: dict[str, np.ndarray] = {}
    specs = {spec.name: spec for spec in model.inputs}
    binary = view[length:]
    for tensor in request.inputs:
        spec = specs.get(tensor.name)
        if spec is None:
            raise RequestRejected(f"there is no input {tensor.name!r}: send {_names(specs)}.")
        if tensor.name in feeds:
            raise RequestRejected(f"input {tensor.name!r} is there twice: send it once.")
        if tensor.datatype != DATATYPES[spec.dtype]:
            raise RequestRejected(
                f"input {tensor.name!r} is {tensor.datatype}: send {DATATYPES[spec.dtype]}."
            )
        if math.prod(axis for axis in tensor.shape if axis) > limits.MAX_REQUEST_BYTES:
            raise RequestRejected(f"input {tensor.name!r} of shape {tensor.shape} is too large.")
        size = tensor.parameters.binary_data_size
        if size is None:
            feeds[tensor.name] = _from_json(tensor, spec.dtype)
        else:
            feeds[tensor.name] = _from_binary(tensor, spec.dtype, binary[:size])
            binary = binary[size:]
    if binary:
        raise RequestRejected(f"{len(binary)} bytes follow the last binary tensor: leave them out.")
    return Inference(id=request.id, feeds=feeds, outputs=_wanted(request, model))


def _wanted(request: _Request, model: ServedModel) -> tuple[WantedOutput, ...]:
    names = {spec.name: None for spec in model.outputs}
    default = request.parameters.binary_data_output
    asked = request.outputs or [_Output(name=name) for name in names]
    wanted: dict[str, WantedOutput] = {}
    for output in asked:
        if output.name not in names:
            raise RequestRejected(f"there is no output {output.name!r}: ask for {_names(names)}.")
        if output.name in wanted:
            raise RequestRejected(f"output {output.name!r} is asked for twice: ask once.")
        count, binary = output.parameters.classification, output.parameters.binary_data
        if count is not None and binary:
            raise RequestRejected("a classification is sent as JSON: leave binary_data out.")
        wanted[output.name] = WantedOutput(
            name=output.name,
            binary=count is None and (default if binary is None else binary),
            classification=count,
        )
    return tuple(wanted.values())


def _from_binary(tensor: _Input, dtype: str, data: memoryview) -> np.ndarray:
    kind = np.dtype(dtype).newbyteorder("<")
    need, size = math.prod(tensor.shape) * kind.itemsize, tensor.parameters.binary_data_size
    if memoryview(tensor.data):
        raise RequestRejected(f"input {tensor.name!r} has data and binary_data_size: send one.")
    if size != need or len(data) != need:
        raise RequestRejected(
            f"input {tensor.name!r} of shape {tensor.shape} is {need} bytes; "
            f"binary_data_size says {size} and {len(data)} are there."
        )
    array = np.frombuffer(data, kind).reshape(tensor.shape)
    if dtype == "bool" and (array.view(np.uint8) > 1).any():
        raise RequestRejected(f"input {tensor.name!r} is BOOL: its bytes are 0 or 1.")
    array = array.astype(dtype, copy=False)
    return array if array.flags.aligned else array.copy()


def _from_json(tensor: _Input, dtype: str) -> np.ndarray:
    text, size, rank = memoryview(tensor.data), math.prod(tensor.shape), len(tensor.shape)
    if not text:
        raise RequestRejected(f"input {tensor.name!r} has no data: send data or binary_data_size.")
    opening = _OPENING.match(text)
    depth = bytes(opening.group()).count(b"[") if opening is not None else 0
    if size and depth not in (1, rank):
        raise RequestRejected(
            f"input {tensor.name!r} has data nested {depth} deep: send a flat list, or one nested "
            f"like its shape {tensor.shape}."
        )
    try:
        values = _decoder(dtype, max(1, min(depth, limits.MAX_RANK))).decode(text)
        with np.errstate(over="raise"):
            array = np.array(values, dtype=dtype)
    except msgspec.DecodeError as error:
        raise RequestRejected(f"the data of input {tensor.name!r}: {error}.") from error
    except (OverflowError, FloatingPointError) as error:
        raise RequestRejected(
            f"the data of input {tensor.name!r} are beyond {tensor.datatype}: scale them."
        ) from error
    except ValueError as error:
        raise RequestRejected(
            f"the data of input {tensor.name!r} are ragged: send lists of equal length."
        ) from error
    # Lists of nothing cannot tell how many they are.
    reshaped = array.ndim > 1 and list(array.shape) != tensor.shape and size > 0
    if array.size != size or reshaped:
        raise RequestRejected(
            f"input {tensor.name!r} has shape {tensor.shape}, which is {size} numbers; its data "
            f"are {'x'.join(map(str, array.shape))}."
        )
    return array.reshape(tensor.shape)


@functools.cache
def _decoder(dtype: str, depth: int) -> msgspec.json.Decoder[Any]:
    """Of lists nested `depth` deep whose numbers fit `dtype` (numpy checks 64 bits and floats)."""
    kind: Any = float
    if dtype == "bool":
        kind = bool
    elif np.dtype(dtype).kind in "iu":
        info = np.iinfo(dtype)
        low, high = int(info.min), int(info.max) if info.bits < 64 else None
        kind = Annotated[int, msgspec.Meta(ge=low, le=high)]
    for _ in range(depth):
        kind = list[kind]
    return msgspec.json.Decoder(kind)


# --- answers


def encode_answer(
    inference: Inference, tensors: Mapping[str, np.ndarray], model: ServedModel
) -> Answer:
    """The answer to an inference. Errors: `Unsendable`."""
    entries: list[dict[str, Any]] = []
    binary: list[memoryview] = []
    for wanted in inference.outputs:
        array = tensors[wanted.name]
        entry: dict[str, Any] = {"name": wanted.name}
        if not wanted.binary and array.dtype.kind == "f" and not np.isfinite(array).all():
            raise Unsendable(
                f"output {wanted.name!r} holds NaN or infinity, which JSON cannot say: "
                "ask for it with the parameter binary_data."
            )
        if wanted.classification is not None:
            classes = model.classes.get(wanted.name, Classes())
            array = classify(array, wanted.classification, classes)
            entry |= {"datatype": "BYTES", "shape": array.shape, "data": array.ravel().tolist()}
        elif wanted.binary:
            little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
            entry |= {"datatype": DATATYPES[array.dtype.name], "shape": array.shape}
            entry["parameters"] = {"binary_data_size": array.nbytes}
            # no copy: the bytes of the array itself
            binary.append(little.reshape(-1).view(np.uint8).data)
        else:
            entry |= {"datatype": DATATYPES[array.dtype.name], "shape": array.shape}
            entry["data"] = array.ravel().tolist()
        entries.append(entry)
    head: dict[str, Any] = {"model_name": model.name, "model_version": model.version}
    if inference.id is not None:
        head["id"] = inference.id
    json = msgspec.json.encode(head | {"outputs": entries})
    any_binary = any(wanted.binary for wanted in inference.outputs)
    return Answer(body=(json, *binary), json_bytes=len(json) if any_binary else None)


def model_metadata(model: ServedModel) -> bytes:
    """The answer to GET /v2/models/NAME. An axis of any length is -1."""

    def described(spec: TensorSpec) -> dict[str, Any]:
        shape = [axis if isinstance(axis, int) else -1 for axis in spec.shape]
        return {"name": spec.name, "datatype": DATATYPES[spec.dtype], "shape": shape}

    return msgspec.json.encode(
        {
            "name": model.name,
            "versions": [model.version],
            "platform": model.platform,
            "inputs": [described(spec) for spec in model.inputs],
            "outputs": [described(spec) for spec in model.outputs],
        }
    )


def _names(known: Mapping[str, Any]) -> str:
    return ", ".join(map(repr, known))
