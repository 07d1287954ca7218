"""The catalogue: which environments there are, and what is in each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from edgekit_contract.errors import Misused

__all__ = ["ENVIRONMENTS", "LITERT", "TENSORFLOW", "Environment", "find_environment"]


@dataclass(frozen=True, kw_only=True)
class Environment:
    """What goes into one, and which Python it needs."""

    name: str
    title: str
    """What it is for."""
    versions: tuple[str, ...]
    """Of Python, the best first."""
    pins: tuple[str, ...]
    """All distributions with their versions: nothing else is installed, whatever they declare."""
    proof: str
    """A program that ends with 0 where all is there."""
    size_mb: int
    """About what it takes on disk, in 10^6 bytes."""


LITERT: Final = Environment(
    name="litert",
    title="writing and quantizing LiteRT models",
    # onnx2tf 2.x declares 3.12 and newer. On 3.11 all that is used here works, and is tested.
    versions=("3.12", "3.13", "3.11"),
    # What onnx2tf's direct writer and ai-edge-quantizer import, found by running them; of what they
    # declare besides (OpenCV, pytest, onnxscript, a builder of language models) nothing is used.
    pins=(
        "absl-py==2.5.1",
        "ai-edge-litert==2.3.0",
        "ai-edge-quantizer==0.10.0",
        "flatbuffers==25.12.19",
        "immutabledict==4.3.1",
        "ml_dtypes==0.5.4",
        "numpy==2.2.6",
        "onnx==1.20.1",
        "onnx2tf==2.6.9",
        "onnxruntime==1.26.0",
        "packaging==26.0",
        "protobuf==6.33.2",
        "psutil==7.1.3",
        "scipy==1.16.3",
        "sne4onnx==2.0.1",
        "sng4onnx==2.0.1",
        "tqdm==4.67.1",
        "typing_extensions==4.15.0",
    ),
    proof="import onnx2tf; from ai_edge_quantizer import quantizer",
    size_mb=430,
)

TENSORFLOW: Final = Environment(
    name="tensorflow",
    title="reading TensorFlow and Keras models",
    versions=("3.12", "3.13", "3.11"),
    # TensorFlow on the CPU with what it imports, Keras, and tf2onnx, whose own pins are older.
    pins=(
        "absl-py==2.5.1",
        "astunparse==1.6.3",
        "certifi==2025.11.12",
        "charset-normalizer==3.4.4",
        "flatbuffers==25.12.19",
        "gast==0.7.0",
        "google-pasta==0.2.0",
        "grpcio==1.76.0",
        "h5py==3.14.0",
        "idna==3.11",
        "keras==3.12.0",
        "markdown-it-py==4.0.0",
        "mdurl==0.1.2",
        "ml_dtypes==0.5.4",
        "namex==0.1.0",
        "numpy==2.2.6",
        "onnx==1.20.1",
        "opt_einsum==3.4.0",
        "optree==0.18.0",
        "packaging==26.0",
        "protobuf==6.33.2",
        "Pygments==2.19.2",
        "requests==2.32.5",
        "rich==14.2.0",
        "six==1.17.0",
        "tensorflow-cpu==2.21.0",
        "termcolor==3.2.0",
        "tf2onnx==1.17.0",
        "typing_extensions==4.15.0",
        "urllib3==2.6.2",
        "wheel==0.45.1",
        "wrapt==2.0.1",
    ),
    proof="import tensorflow, tf2onnx",
    size_mb=1500,
)

ENVIRONMENTS: Final[Mapping[str, Environment]] = {e.name: e for e in (LITERT, TENSORFLOW)}


def find_environment(name: str) -> Environment:
    """Errors: `Misused`."""
    try:
        return ENVIRONMENTS[name]
    except KeyError:
        known = ", ".join(ENVIRONMENTS)
        raise Misused(f"there is no environment {name!r}; there are {known}.") from None
