"""Activations of 16 bits for weights of 8: what a product reads is rounded, its sum is not.

Runtimes without 16-bit kernels, onnxruntime's CPU among them, compute in float between: the file is
that of 8-bit weights, and what is gained over 8-bit activations is accuracy. QuantizeLinear and
DequantizeLinear are those of onnxruntime's own domain, which take 16 bits at any opset (ONNX's
do from opset 21 on).

Invariant: an activation is quantized once, whoever reads it, over the range that was observed; the
runtime does not round the weights again (`shielding`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Final

import numpy as np
import onnx
from onnx import NodeProto

from edgekit_contract.errors import Refused
from edgekit_converters.calibration.estimators import Range
from edgekit_converters.quantization.draft import CONTRIB, Draft, Place
from edgekit_converters.quantization.selection import STATIC_OPERATORS, select_static
from edgekit_converters.quantization.shielding import ROUNDED_OPERATORS, channels
from edgekit_converters.quantization.weight_only import stored_weights

__all__ = ["quantize_16x8"]

_LEVELS: Final = 2**16 - 1


def quantize_16x8(
    source: Path, out: Path, *, ranges: Mapping[str, Range], spared: Collection[str] = ()
) -> None:
    """Write `source` with 8-bit weights and 16-bit activations. Errors: `Refused`."""
    model = onnx.load_model(source)
    selection = select_static(model, spared=tuple(spared))
    chosen = frozenset(selection.nodes)

    def change(place: Place, node: NodeProto) -> bool:
        if node.name not in chosen or node.op_type not in STATIC_OPERATORS:
            return False
        seen = ranges.get(selection.sources[node.input[0]])
        if seen is None or not np.isfinite([seen.low, seen.high]).all():
            return False
        weight = place.shape(node.input[1]) if node.op_type in ROUNDED_OPERATORS else None
        shielded = None if weight is None else channels(node, weight)
        taken = stored_weights(place, node)
        if shielded is None or shielded[0] > 1:  # one channel cannot be shielded
            taken[node.input[0]] = _rounded(place, node.input[0], seen, shielded)
        place.again(node, taken)
        return True

    draft = Draft(model)
    if not draft.replace(change):
        raise Refused("no node could be quantized.")
    draft.save(out)


def _rounded(place: Place, name: str, seen: Range, shielded: tuple[int, int] | None) -> str:
    """Name of the activation after quantization and back; `shielded` as `channels` gives it."""
    key = ("int16", name)
    if key not in place.memory:
        low, high = min(seen.low, 0.0), max(seen.high, 0.0)
        step = np.float32((high - low) / _LEVELS) or np.float32(1)
        zero = np.clip(np.rint(-low / step), 0, _LEVELS).astype(np.uint16)
        grid = [place.constant(np.array(step), "step"), place.constant(np.array(zero), "zero")]
        small = place.add("QuantizeLinear", [name, *grid], f"{name}_uint16", domain=CONTRIB)
        place.memory[key] = small, step, zero
    small, step, zero = place.memory[key]
    read = ("int16", name, shielded)
    if read not in place.memory:
        count, axis = shielded or (None, 1)
        shape = () if count is None else (count,)
        grid = [
            place.constant(np.full(shape, step), "step"),
            place.constant(np.full(shape, zero), "zero"),
        ]
        place.memory[read] = place.add(
            "DequantizeLinear", [small, *grid], f"{name}_rounded", domain=CONTRIB, axis=axis
        )
    rounded: str = place.memory[read]
    return rounded
