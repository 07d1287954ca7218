"""The four releases of the demo, two of them broken the way real releases break.

1.0  the model as trained
1.1  its golden vectors are those of 1.0, but the model file was replaced by one whose classes
     moved: a re-export that went past the build. The device finds out in WARMUP.
1.2  a re-export that froze the batch axis inside the graph: one image at a time works, as the
     golden vectors do, and every larger request fails. Live requests find out in PROBATION.
1.3  the smallest variant that the search found within one point of accuracy: int8.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec
import numpy as np
import onnx
from onnx import numpy_helper

from edgekit.release.keys import PrivateKey
from edgekit_contract import envelope
from edgekit_contract.archive import write_archive
from edgekit_contract.envelope import ENVELOPE_PATH
from edgekit_contract.limits import BLOCK_BYTES
from edgekit_contract.manifest import FileEntry
from edgekit_contract.trust import open_bundle

__all__ = ["freeze_batch", "move_classes", "replace_model"]


def move_classes(bundle: Path, out: Path) -> None:
    """Write a bundle's digit model with its classes rotated by one: right shapes, wrong answers."""
    graph = _model_of(bundle)
    last = next(node for node in reversed(graph.graph.node) if node.op_type == "Gemm")
    transposed = any(a.name == "transB" and a.i for a in last.attribute)
    for name, axis in ((last.input[1], 0 if transposed else 1), (last.input[2], 0)):
        tensor = _initializer(graph, name)
        rolled = np.roll(numpy_helper.to_array(tensor), 1, axis=axis)
        tensor.CopyFrom(numpy_helper.from_array(rolled, name))
    onnx.save(graph, out)


def freeze_batch(bundle: Path, out: Path) -> None:
    """Write a bundle's digit model with its Reshape's batch fixed at 1, as careless exports do."""
    graph = _model_of(bundle)
    reshape = next(node for node in graph.graph.node if node.op_type == "Reshape")
    tensor = _initializer(graph, reshape.input[1])
    shape = numpy_helper.to_array(tensor).copy()
    shape[0] = 1
    tensor.CopyFrom(numpy_helper.from_array(shape, reshape.input[1]))
    onnx.save(graph, out)


def replace_model(bundle: Path, model: Path, out: Path, *, version: str, key: PrivateKey) -> None:
    """Write `bundle` with another model file, signed anew: what building is there to prevent."""
    source = open_bundle(bundle)
    data = model.read_bytes()
    blocks = [data[at : at + BLOCK_BYTES] for at in range(0, len(data), BLOCK_BYTES)]
    entry = FileEntry(
        path=source.manifest.model,
        size=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        blocks=tuple(hashlib.sha256(block).hexdigest() for block in blocks),
    )
    files = tuple(entry if f.path == entry.path else f for f in source.manifest.files)
    manifest = msgspec.structs.replace(
        source.manifest,
        version=version,
        files=files,
        requires=msgspec.structs.replace(
            source.manifest.requires, unpacked_bytes=sum(f.size for f in files)
        ),
    )
    members: list[tuple[str, Path | bytes]] = [
        (ENVELOPE_PATH, envelope.sign(manifest, [(key.keyid, key.sign)]))
    ]
    for file in files:
        members.append(
            (file.path, data)
            if file.path == entry.path
            else (file.path, b"".join(source.archive.pieces(file.path)))
        )
    with out.open("wb") as stream:
        write_archive(stream, members)


def _model_of(bundle: Path) -> onnx.ModelProto:
    source = open_bundle(bundle)
    return onnx.load_from_string(b"".join(source.archive.pieces(source.manifest.model)))


def _initializer(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    return next(tensor for tensor in model.graph.initializer if tensor.name == name)
