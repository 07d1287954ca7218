"""What a model computes, whatever its weights: the digest by which latencies are kept.

Invariant: a model that was trained again, or calibrated on other data, has the digest of the one
before; another operator, shape or number format gives another.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import onnx
from google.protobuf.message import DecodeError
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto

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
    for current in graph.graphs(outer):
        constants = graph.initializers(current)
        for value in (*current.input, *current.output):
            yield value.type.SerializeToString(deterministic=True)
        for node in current.node:
            yield f"{node.domain}:{node.op_type}".encode()
            for name in node.input:
                yield _constant(constants[name]) if name in constants else b"value" if name else b""
            for attribute in sorted(_plain(node), key=lambda item: item.name):
                yield attribute.SerializeToString(deterministic=True)


def _constant(tensor: TensorProto) -> bytes:
    """Its form; of shapes, axes and the like what they say, too."""
    form = f"{tensor.data_type}:{list(tensor.dims)}"
    if tensor.data_type == TensorProto.INT64 and not tensor.external_data:
        form += str(onnx.numpy_helper.to_array(tensor).tolist())
    return form.encode()


def _plain(node: NodeProto) -> list[AttributeProto]:
    """Without graphs, which are walked, and without tensors, which are weights."""
    weighty = (AttributeProto.GRAPH, AttributeProto.GRAPHS, AttributeProto.TENSOR)
    kept = []
    for attribute in node.attribute:
        if attribute.type not in weighty:
            copy = AttributeProto()
            copy.CopyFrom(attribute)
            copy.doc_string = ""
            kept.append(copy)
    return kept
