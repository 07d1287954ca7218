"""Junctions: tensors whose channels can be scaled without changing what the model computes.

What makes a channel scales it by `k`, and all its readers divide by `k`. Here are those that
normalizations make, and the scaling of any; `streams` finds those that layers make.

Invariant: factors are positive, one per channel.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from onnx import ModelProto, NodeProto, numpy_helper

from edgekit_converters import external, graph
from edgekit_converters.conditioning.layers import Layer, constant, layers, replace, uses
from edgekit_converters.conditioning.probe import readings

__all__ = [
    "COMMUTING",
    "Junction",
    "Peaks",
    "Scaled",
    "collect_peaks",
    "find_junctions",
    "scale",
]

COMMUTING: Final = frozenset(
    "Relu LeakyRelu PRelu Identity Dropout "
    "MaxPool AveragePool GlobalMaxPool GlobalAveragePool".split()
)
"""Operators through which positive factors pass."""
Peaks = Mapping[str, np.ndarray]
"""Greatest absolute value of each channel, by tensor."""
Scaled = tuple[NodeProto, int, int]
"""Node, number of input and axes behind the channels', of a constant that is scaled, too."""


@dataclass(frozen=True, kw_only=True)
class Junction:
    tensor: str
    channels: int
    readers: tuple[Layer, ...]
    sources: tuple[Layer, ...] = ()
    """The layers whose outputs the channels are; none where a normalization makes them."""
    constants: tuple[Scaled, ...] = ()
    inserted: bool = False
    """The tensor has other uses: the readers get a scaled copy of it."""
    rounded: tuple[str, ...] = ()
    """All tensors with these channels that integers are made of."""

    def columns(self, reader: Layer, matrix: np.ndarray) -> np.ndarray:
        """View [group, output, channel of group, tap] of a reader's matrix."""
        taps = reader.width * reader.groups // self.channels
        return matrix.reshape(reader.groups, matrix.shape[1], -1, taps)


def find_junctions(model: ModelProto) -> list[Junction]:
    """Those that normalizations, or constant factors, make; also where the tensor has other
    uses."""
    counts = uses(model)
    producers = {output: node for node in model.graph.node for output in node.output}
    reading: dict[str, list[Layer]] = {}
    for layer in layers(model):
        if counts[layer.weight] == 1 and not layer.attributes.get("transA"):
            reading.setdefault(layer.input, []).append(layer)
    found = []
    for tensor, readers in reading.items():
        channels, trailing = readers[0].channels, readers[0].trailing
        if any((r.channels, r.trailing) != (channels, trailing) for r in readers):
            continue
        constants = _walk(model, tensor, producers=producers, counts=counts, trailing=trailing)
        if constants is None:
            continue
        alone = counts[tensor] == len(readers)
        found.append(
            Junction(
                tensor=tensor,
                channels=channels,
                readers=tuple(readers),
                constants=tuple(constants) if alone else (),
                inserted=not alone,
                rounded=(tensor,),
            )
        )
    return found


def _walk(
    model: ModelProto,
    tensor: str,
    *,
    producers: Mapping[str, NodeProto],
    counts: Mapping[str, int],
    trailing: int,
) -> list[Scaled] | None:
    """The constants to be scaled, from a tensor up to the normalization that makes its channels;
    None where none does."""
    constants: list[Scaled] = []
    current = tensor
    while (node := producers.get(current)) is not None:
        if (current != tensor and counts[current] != 1) or node.domain not in graph.ONNX_DOMAINS:
            return None
        if node.op_type in COMMUTING and len(node.output) == 1:
            current = node.input[0]
        elif _normalizes(model, node, trailing):
            return [*constants, (node, 1, 0), (node, 2, 0)]
        elif node.op_type in ("Add", "Mul"):
            at = next((i for i in (0, 1) if constant(model.graph, node.input[i]) is not None), None)
            if at is None:
                return None
            constants.append((node, at, trailing))
            if node.op_type == "Mul":
                return constants
            current = node.input[1 - at]
        else:
            return None
    return None


def _normalizes(model: ModelProto, node: NodeProto, trailing: int) -> bool:
    """Whether a normalization multiplies and shifts each of the channels by constants."""
    axis = next((a.i for a in node.attribute if a.name == "axis"), -1)
    fits = {"LayerNormalization": trailing == 0 and axis == -1, "BatchNormalization": trailing > 0}
    held = [constant(model.graph, name) for name in node.input[1:3]]
    shaped = len(held) == 2 and all(values is not None and values.ndim == 1 for values in held)
    return fits.get(node.op_type, False) and shaped and len(node.output) == 1


def collect_peaks(
    model: ModelProto,
    junctions: Sequence[Junction],
    samples: Iterable[Mapping[str, np.ndarray]],
    *,
    threads: int,
    scratch: Path,
    embedded_bytes: int = external.MAX_EMBEDDED_BYTES,
) -> dict[str, np.ndarray]:
    """Peaks of the junctions' tensors over the samples. Errors: those of the runtime."""
    axes = {tensor: j.readers[0].trailing for j in junctions for tensor in j.rounded}
    peaks = {tensor: np.zeros(j.channels) for j in junctions for tensor in j.rounded}
    with readings(
        model, list(axes), samples, threads=threads, scratch=scratch, embedded_bytes=embedded_bytes
    ) as seen:
        for values in seen:
            for name, array in values.items():
                if not array.size:
                    continue
                across = np.moveaxis(array, array.ndim - 1 - axes[name], -1)
                flat = np.abs(across).reshape(-1, across.shape[-1])
                peaks[name] = np.maximum(peaks[name], flat.max(axis=0))
    return peaks


def scale(
    model: ModelProto, junctions: Sequence[Junction], factors: Mapping[str, np.ndarray]
) -> None:
    """Scale each junction's channels, in place."""
    counts = uses(model)
    weights: dict[str, tuple[Layer, np.ndarray]] = {}
    for junction in junctions:
        factor = factors[junction.tensor]
        for layer in (*junction.readers, *junction.sources):
            if layer.weight not in weights:
                values = constant(model.graph, layer.weight)
                assert values is not None
                weights[layer.weight] = (layer, layer.matrix(values))
        for reader in junction.readers:
            columns = junction.columns(reader, weights[reader.weight][1])
            columns /= factor.reshape(reader.groups, 1, -1, 1)
        for source in junction.sources:
            matrix = weights[source.weight][1]
            matrix *= factor.reshape(*matrix.shape[:2], 1)
        for node, at, trailing in junction.constants:
            _multiply(model, node, at, factor.reshape(-1, *[1] * trailing), counts[node.input[at]])
        if junction.inserted:
            _insert(model, junction, factor)
    held = graph.initializers(model.graph)
    for name, (layer, matrix) in weights.items():
        replace(held[name], layer.tensor(matrix))


def _multiply(model: ModelProto, node: NodeProto, at: int, factor: np.ndarray, used: int) -> None:
    values = constant(model.graph, node.input[at])
    assert values is not None
    if used == 1:
        replace(graph.initializers(model.graph)[node.input[at]], values * factor)
        return
    own = model.graph.initializer.add()
    scaled = (values * factor).astype(np.float32)
    own.CopyFrom(numpy_helper.from_array(scaled, f"{node.input[at]}/{at} of {node.output[0]}"))
    node.input[at] = own.name


def _insert(model: ModelProto, junction: Junction, factor: np.ndarray) -> None:
    """A scaled copy of the tensor, for the readers."""
    name = f"{junction.tensor}/scaled"
    held = model.graph.initializer.add()
    trailing = junction.readers[0].trailing
    shaped = factor.reshape(-1, *[1] * trailing).astype(np.float32)
    held.CopyFrom(numpy_helper.from_array(shaped, f"{name} by"))
    chosen = {reader.name for reader in junction.readers}
    at = 0
    for index, node in enumerate(model.graph.node):
        if junction.tensor in node.output:
            at = index + 1
        if node.name in chosen:
            node.input[0] = name
    scaling = NodeProto(op_type="Mul", name=name, input=[junction.tensor, held.name], output=[name])
    model.graph.node.insert(at, scaling)
