"""Fewer bits for a LiteRT model, by ai-edge-quantizer. Runs in a child process.

What its kernels do with a scheme is the quantizer's and the runtime's business: that a variant is
any good only its figures say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Final

from edgekit_converters import environments

__all__ = ["Granularity", "Kind", "Scheme", "quantize", "rank"]

_TOOL: Final = Path(__file__).parent / "tools" / "quantize.py"


class Kind(Enum):
    """How a scheme treats numbers that are not weights."""

    DYNAMIC = "dynamic"
    """Activations are quantized while the model runs."""
    STATIC = "static"
    """Activations are integers whose ranges calibration has found."""
    WEIGHTS = "weights"
    """Weights alone are narrow, and widened for arithmetic in float32."""
    FLOAT16 = "float16"
    """The same, with weights in float16."""


class Granularity(Enum):
    """How many weights share a scale, as ai-edge-quantizer names it."""

    PER_TENSOR = "TENSORWISE"
    PER_CHANNEL = "CHANNELWISE"
    BLOCK_32 = "BLOCKWISE_32"
    BLOCK_128 = "BLOCKWISE_128"


@dataclass(frozen=True, kw_only=True)
class Scheme:
    kind: Kind
    weight_bits: int
    activation_bits: int | None = None
    granularity: Granularity = Granularity.PER_CHANNEL


def quantize(
    model: Path,
    out: Path,
    scheme: Scheme,
    *,
    spared: Sequence[str] = (),
    samples: Path | None = None,
    home: Path,
) -> None:
    """Write `out`. Operators that write a tensor in `spared` keep their number format.

    `samples` is a directory of tensor files, for a static scheme; `home` is a scratch directory.
    Errors: `EnvironmentMissing`, `ToolRefused`, `ToolFailed`.
    """
    arguments = {
        "work": "quantize",
        "model": str(model),
        "out": str(out),
        "home": str(home),
        "scheme": _told(scheme),
        "spared": list(spared),
        "samples": str(samples) if samples is not None else None,
    }
    environments.call(environments.LITERT, _TOOL, arguments, home=home)


def rank(model: str, layers: Sequence[str], samples: str, most_s: float, home: str) -> Any:
    """Noise over signal of the worst output where one layer alone is of 8 bits, by layer.

    Layers that cannot be quantized alone are left out, and all where `most_s` seconds are not
    enough. Errors: as `quantize`.
    """
    arguments = {
        "work": "rank",
        "model": model,
        "home": home,
        "scheme": _told(Scheme(kind=Kind.STATIC, weight_bits=8, activation_bits=8)),
        "layers": list(layers),
        "samples": samples,
        "most_s": most_s,
    }
    return environments.call(environments.LITERT, _TOOL, arguments, home=Path(home))


def _told(scheme: Scheme) -> dict[str, Any]:
    return {
        "kind": scheme.kind.value,
        "weight_bits": scheme.weight_bits,
        "activation_bits": scheme.activation_bits,
        "granularity": scheme.granularity.value,
    }
