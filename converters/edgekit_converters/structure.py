"""What a model computes, whatever its weights: the digest by which latencies are kept.

Invariant: a model that was trained again, or calibrated on other data, has the digest of the one
before; another operator, shape, number format or wiring gives another.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import onnx
from google.protobuf.message import DecodeError
from onnx import AttributeProto, GraphProto, TensorProto

from edgekit_converters import graph
from edgekit_runtime.backend_onnxruntime import is_ort_format

__all__ = ["structure_digest"]

_PIECE_BYTES: Final = 1 << 20


def structure_digest(path: Path) -> str:
    """SHA-256 of a model's structure; of a file that is no ONNX graph, of its bytes.

    Errors: `OSError`.
    """
    digest = hashlib.sha256()
    if path.suffix == ".onnx" and not is_ort_format(path):
        try:
            model = onnx.load_model(path, load_external_data=False)
        except DecodeError:
            pass
        else:
            for part in _parts(model.graph):
                digest.update(part + b"\0")
            return digest.hexdigest()
    with path.open("rb") as stream:
        while piece := stream.read(_PIECE_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def _parts(outer: GraphProto) -> Iterator[bytes]:
    """Values are called by the order in which they are made: names change, wiring does not."""
    inside = list(graph.graphs(outer))
    forms = {name: _form(t) for g in inside for name, t in graph.initializers(g).items()}
    made = [v.name for g in inside for v in g.input]
    made += [name for g in inside for node in g.node for name in node.output]
    places = {name: str(place).encode() for place, name in enumerate(made)} | forms | {"": b""}
    for current in inside:
        for value in (*current.input, *current.output):
            yield value.type.SerializeToString(deterministic=True)
            yield places.get(value.name, b"")
        for node in current.node:
            yield f"{node.domain}:{node.op_type}".encode()
            yield from (places.get(name, b"") for name in node.input)
            for attribute in sorted(node.attribute, key=lambda item: item.name):
                yield attribute.name.encode() + b"=" + _plain(attribute)


def _form(tensor: TensorProto) -> bytes:
    """Its form; of shapes, axes and the like what they say, too."""
    form = f"{tensor.data_type}:{list(tensor.dims)}"
    if tensor.data_type == TensorProto.INT64 and not tensor.external_data:
        form += str(onnx.numpy_helper.to_array(tensor).tolist())
    return form.encode()


def _plain(attribute: AttributeProto) -> bytes:
    """Without graphs, which are walked, and of tensors, which are weights, the form."""
    if attribute.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS):
        return b""
    if attribute.type in (AttributeProto.TENSOR, AttributeProto.TENSORS):
        return b",".join(
            map(_form, [attribute.t] if attribute.HasField("t") else attribute.tensors)
        )
    copy = AttributeProto()
    copy.CopyFrom(attribute)
    copy.doc_string = ""
    return copy.SerializeToString(deterministic=True)
