"""Small bundles for tests: real ones, of the null runtime or of a tiny ONNX model."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from edgekit.release.keys import PrivateKey
from edgekit_contract import envelope
from edgekit_contract.archive import write_archive
from edgekit_contract.limits import BLOCK_BYTES
from edgekit_contract.manifest import (
    FileEntry,
    Golden,
    Manifest,
    Provenance,
    Requires,
    TensorSpec,
    Tolerance,
)
from edgekit_contract.profile import Arch, RuntimeKind
from edgekit_runtime.golden import GoldenVector, golden_bytes

KEY = PrivateKey(ed25519.Ed25519PrivateKey.from_private_bytes(hashlib.sha256(b"signer").digest()))
OTHER_KEY = PrivateKey(
    ed25519.Ed25519PrivateKey.from_private_bytes(hashlib.sha256(b"stranger").digest())
)
ECDSA_KEY = PrivateKey(ec.derive_private_key(0xEDCE, ec.SECP256R1()))
"""Keys that anybody has: nothing but tests may trust them."""


@dataclass(frozen=True, kw_only=True)
class SmallBundle:
    """A bundle in memory, to be changed and packed."""

    manifest: Manifest
    files: dict[str, bytes] = field(default_factory=dict)

    def changed(self, **fields: Any) -> SmallBundle:
        """The same with other fields of the manifest."""
        return SmallBundle(
            manifest=msgspec.structs.replace(self.manifest, **fields), files=self.files
        )

    def with_files(self, files: Mapping[str, bytes]) -> SmallBundle:
        """The same with other files, declared as they are."""
        entries = tuple(file_entry(path, data) for path, data in sorted(files.items()))
        requires = msgspec.structs.replace(
            self.manifest.requires, unpacked_bytes=sum(entry.size for entry in entries)
        )
        manifest = msgspec.structs.replace(self.manifest, files=entries, requires=requires)
        return SmallBundle(manifest=manifest, files=dict(sorted(files.items())))

    def envelope(self, *keys: PrivateKey) -> bytes:
        return envelope.sign(self.manifest, [(key.keyid, key.sign) for key in keys])

    def members(self, *keys: PrivateKey) -> list[tuple[str, bytes]]:
        return [(envelope.ENVELOPE_PATH, self.envelope(*keys)), *self.files.items()]

    def pack(self, *keys: PrivateKey) -> bytes:
        return archive_of(self.members(*(keys or (KEY,))))

    def write(self, path: Path, *keys: PrivateKey) -> Path:
        path.write_bytes(self.pack(*keys))
        return path


def archive_of(members: Iterable[tuple[str, bytes]]) -> bytes:
    out = io.BytesIO()
    write_archive(out, list(members))
    return out.getvalue()


def file_entry(path: str, data: bytes) -> FileEntry:
    blocks = [data[at : at + BLOCK_BYTES] for at in range(0, len(data), BLOCK_BYTES)]
    return FileEntry(
        path=path,
        size=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        blocks=tuple(hashlib.sha256(block).hexdigest() for block in blocks),
    )


def null_bundle(*, version: str = "1.0", profile: str = "demo-small") -> SmallBundle:
    """A model of the null runtime: the sum of four numbers."""
    x = TensorSpec(name="x", dtype="float32", shape=("batch", 4))
    y = TensorSpec(name="y", dtype="float32", shape=("batch",))
    rows = np.array([[1, 2, 3, 4], [-1, 0.5, 0, 2]], np.float32)
    vectors = [
        GoldenVector(inputs={"x": row[None]}, outputs={"y": row[None].sum(axis=1)}) for row in rows
    ]
    model = msgspec.json.encode({"inputs": [x], "scale": 1.0})
    return _bundle(
        runtime=RuntimeKind.NULL,
        runtime_version="1.0.0",
        model_path="files/model.json",
        model=model,
        x=x,
        y=y,
        vectors=vectors,
        version=version,
        profile=profile,
    )


@cache
def onnx_bundle() -> SmallBundle:
    """A model of ONNX Runtime: `y = relu(x @ w)`, two of three outputs positive."""
    from onnx import TensorProto, helper, numpy_helper

    weights = np.array([[1, -1, 0], [0, 2, 1]], np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["product"]),
            helper.make_node("Relu", ["product"], ["y"]),
        ],
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version, model.producer_name, model.producer_version = 8, "", ""
    x = np.array([[1, 2], [3, -1]], np.float32)
    vectors = [
        GoldenVector(inputs={"x": row[None]}, outputs={"y": np.maximum(row[None] @ weights, 0)})
        for row in x
    ]
    return _bundle(
        runtime=RuntimeKind.ONNXRUNTIME,
        runtime_version="1.20.0",
        model_path="files/model.onnx",
        model=model.SerializeToString(deterministic=True),
        x=TensorSpec(name="x", dtype="float32", shape=("batch", 2)),
        y=TensorSpec(name="y", dtype="float32", shape=("batch", 3), meaning="scores"),
        vectors=vectors,
        version="1.0",
        profile="demo-small",
    )


@cache
def litert_bundle() -> SmallBundle:
    """A model of LiteRT: `y = relu(x)`."""
    from tflite_files import relu_file

    x = np.array([[1, -2, 3], [0.5, 4, -1]], np.float32)
    vectors = [
        GoldenVector(inputs={"x": row[None]}, outputs={"y": np.maximum(row[None], 0)}) for row in x
    ]
    return _bundle(
        runtime=RuntimeKind.LITERT,
        runtime_version="1.2.0",
        model_path="files/model.tflite",
        model=relu_file(3),
        x=TensorSpec(name="x", dtype="float32", shape=("batch", 3)),
        y=TensorSpec(name="y", dtype="float32", shape=("batch", 3), meaning="scores"),
        vectors=vectors,
        version="1.0",
        profile="demo-small",
    )


def for_profile(bundle: SmallBundle, name: str) -> SmallBundle:
    """The bundle as if it were built for an aarch64 profile."""
    requires = msgspec.structs.replace(bundle.manifest.requires, arch=(Arch.AARCH64,))
    return bundle.changed(profile=name, requires=requires)


def _bundle(
    *,
    runtime: RuntimeKind,
    runtime_version: str,
    model_path: str,
    model: bytes,
    x: TensorSpec,
    y: TensorSpec,
    vectors: list[GoldenVector],
    version: str,
    profile: str,
) -> SmallBundle:
    manifest = Manifest(
        name="tiny",
        version=version,
        profile=profile,
        runtime=runtime,
        threads=1,
        model=model_path,
        inputs=(x,),
        outputs=(y,),
        labels="files/labels.txt",
        golden=Golden(
            count=len(vectors),
            tolerances={"y": Tolerance(absolute=1e-5, relative=1e-5)},
            top1=("y",),
            source="generated",
        ),
        requires=Requires(
            runtime=runtime,
            min_runtime_version=runtime_version,
            unpacked_bytes=0,
            peak_ram_bytes=1 << 20,
        ),
        provenance=Provenance(
            source_name=Path(model_path).name,
            source_sha256=hashlib.sha256(model).hexdigest(),
            recipe="as-is",
            tools={"edgekit": "0.1.0"},
        ),
        files=(),
    )
    files = {
        model_path: model,
        "files/golden.npz": golden_bytes(vectors),
        "files/labels.txt": b"low\nmiddle\nhigh\n",
    }
    return SmallBundle(manifest=manifest).with_files(files)
