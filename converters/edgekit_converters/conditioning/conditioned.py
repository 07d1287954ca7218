"""A model with its weights conditioned for a grid, kept beside its moments.

Layers are conditioned one by one against the float model's activations, so that what is right for
one variant is right for all that share the grid: it is computed once, and layers that a variant
spares get their own weights back.

Invariant: a file that is there is whole.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

import onnx
from onnx import ModelProto

from edgekit_converters import graph
from edgekit_converters.conditioning.bias import bias_slot, correct_biases
from edgekit_converters.conditioning.grid import Grid
from edgekit_converters.conditioning.layers import layers
from edgekit_converters.conditioning.moments import read_moments
from edgekit_converters.conditioning.rounding import reconstruct

__all__ = ["condition"]


def condition(
    model: ModelProto,
    moments: Path,
    *,
    grid: Grid,
    reconstructed: bool,
    corrected: bool,
    spared: Collection[str],
) -> ModelProto:
    """The model with every layer but the spared ones rounded and corrected as asked."""
    named = (
        "per-channel" if grid.per_channel else "per-tensor",
        str(grid.levels),
        *(["reconstructed"] if reconstructed else []),
        *(["corrected"] if corrected else []),
    )
    kept = moments.with_name(f"{moments.stem}-{'-'.join(named)}.onnx")
    if not kept.exists():
        _write(model, moments, kept, grid=grid, reconstructed=reconstructed, corrected=corrected)
    found = onnx.load_model(kept)
    _restore(found, model, spared)
    return found


def _write(
    model: ModelProto,
    moments: Path,
    kept: Path,
    *,
    grid: Grid,
    reconstructed: bool,
    corrected: bool,
) -> None:
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    seen = read_moments(moments)
    if reconstructed:
        reconstruct(changed, seen, nodes=seen.keys(), grid=grid, corrected=corrected)
    else:
        correct_biases(changed, seen, nodes=seen.keys(), grid=grid)
    partial = kept.with_name(f"{kept.name}.{os.getpid()}")
    onnx.save_model(changed, partial)
    partial.replace(kept)


def _restore(changed: ModelProto, original: ModelProto, spared: Collection[str]) -> None:
    """Give spared layers the original's weights and biases."""
    ours, theirs = graph.initializers(changed.graph), graph.initializers(original.graph)
    nodes = {node.name: node for node in changed.graph.node}
    for layer in layers(original):
        if layer.name not in spared:
            continue
        ours[layer.weight].CopyFrom(theirs[layer.weight])
        slot = bias_slot(original, layer)
        if slot is None:
            continue
        node = nodes[slot.node.name]
        del node.input[slot.at :]
        node.input.extend(slot.node.input[slot.at :])
        for name in slot.node.input[slot.at :]:
            if name in theirs:
                ours[name].CopyFrom(theirs[name])
