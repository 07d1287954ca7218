"""What the self-test runs: a model of each runtime, and a bundle around the null runtime's.

They are files of those formats as any tool writes them (tests/unit/test_specimens.py makes them
again), so that a device needs none of the tools.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from edgekit_contract import envelope, limits
from edgekit_contract.manifest import (
    GOLDEN_PATH,
    FileEntry,
    Golden,
    Manifest,
    Provenance,
    Requires,
    TensorSpec,
    Tolerance,
)
from edgekit_contract.profile import RuntimeKind
from edgekit_runtime.golden import GoldenVector, golden_bytes

__all__ = ["SPECIMENS", "Specimen", "write_bundle"]


@dataclass(frozen=True, kw_only=True)
class Specimen:
    """A model with an input `x` of float32 [n, 4] and an output `y`."""

    filename: str
    model: bytes
    answer: tuple[float, ...]
    """`y` for `x` = [1, -2, 3, 4]."""


_X: Final = TensorSpec(name="x", dtype="float32", shape=("n", 4))
_Y: Final = TensorSpec(name="y", dtype="float32", shape=("n",))

SPECIMENS: Final[Mapping[RuntimeKind, Specimen]] = {
    # relu(x @ [[1, 0], [0, 1], [1, 1], [0, -1]]), opset 13, IR 8
    RuntimeKind.ONNXRUNTIME: Specimen(
        filename="model.onnx",
        model=base64.b64decode(
            "CAgSABoAOn0KEQoBeAoBdxIBcCIGTWF0TXVsCgwKAXASAXkiBFJlbHUSAXMqKwgECAIQAUIBd0ogAACAPwAAAAAA"
            "AAAAAACAPwAAgD8AAIA/AAAAAAAAgL9aFAoBeBIPCg0IARIJCgMSAW4KAggEYhQKAXkSDwoNCAESCQoDEgFuCgII"
            "AkIECgAQDQ=="
        ),
        answer=(4, 0),
    ),
    # relu(x)
    RuntimeKind.LITERT: Specimen(
        filename="model.tflite",
        model=base64.b64decode(
            "GAAAAFRGTDMAAA4AFAAQAAwACAAAAAQADgAAABAAAAA8AAAAGAAAAAMAAAABAAAACAAAAAQABAAEAAAAAQAAABAA"
            "AAAMAAwACwAAAAAABAAMAAAAEwAAAAAAABMBAAAAEAAAAAwAFAAQAAwACAAEAAwAAAAQAAAALAAAADAAAAA0AAAA"
            "AQAAABAAAAAAAAoADAAAAAgABAAKAAAACAAAAAwAAAABAAAAAQAAAAEAAAAAAAAAAgAAAEwAAAAEAAAA0P///xQA"
            "AAAIAAAAGAAAAAEAAAB5AAAAAgAAAP////8EAAAAAgAAAAEAAAAEAAAAFAAQAAwAAAAAAAgAAAAAAAAABAAUAAAA"
            "FAAAAAgAAAAYAAAAAQAAAHgAAAACAAAA/////wQAAAACAAAAAQAAAAQAAAA="
        ),
        answer=(1, 0, 3, 4),
    ),
    # the sum
    RuntimeKind.NULL: Specimen(
        filename="model.json",
        model=msgspec.json.encode({"inputs": [_X], "scale": 1.0}),
        answer=(6,),
    ),
}


def write_bundle(directory: Path) -> str:
    """Unpack a bundle `selftest` of the null runtime into a directory; its digest."""
    specimen = SPECIMENS[RuntimeKind.NULL]
    x = np.array([[1, -2, 3, 4]], np.float32)
    y = np.array(specimen.answer, np.float32)
    model = f"files/{specimen.filename}"
    files = {
        GOLDEN_PATH: golden_bytes([GoldenVector(inputs={"x": x}, outputs={"y": y})]),
        model: specimen.model,
    }
    manifest = Manifest(
        name="selftest",
        version="1.0",
        profile="selftest",
        runtime=RuntimeKind.NULL,
        threads=1,
        model=model,
        inputs=(_X,),
        outputs=(_Y,),
        golden=Golden(count=1, tolerances={"y": Tolerance(absolute=0.0)}, source="generated"),
        requires=Requires(
            runtime=RuntimeKind.NULL,
            min_runtime_version="1.0",
            unpacked_bytes=sum(map(len, files.values())),
            peak_ram_bytes=0,
        ),
        provenance=Provenance(source_name="none", source_sha256="", recipe="as-is"),
        files=tuple(_entry(path, data) for path, data in sorted(files.items())),
    )
    sealed = envelope.encode(manifest)
    for path, data in {envelope.ENVELOPE_PATH: sealed, **files}.items():
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / path).write_bytes(data)
    return hashlib.sha256(sealed).hexdigest()


def _entry(path: str, data: bytes) -> FileEntry:
    digest = hashlib.sha256(data).hexdigest()
    if len(data) > limits.BLOCK_BYTES:
        raise RuntimeError(f"{path} is longer than a block")
    return FileEntry(path=path, size=len(data), sha256=digest, blocks=(digest,))
