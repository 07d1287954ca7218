"""Junctions: tensors whose channels can be scaled without changing what the model computes.

A channel that its source scales by `k` and all its readers divide by `k` is the same channel, as
long as what lies between commutes with positive factors (Nagel et al., "Data-free quantization
through weight equalization and bias correction", ICCV 2019, section 4.1).

Invariant: a junction's source, what lies between and its readers are all there is to its tensor;
factors are positive, one per channel. Clip does not commute: its bounds are the same for all.
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

__all__ = ["Junction", "Peaks", "collect_peaks", "find_junctions", "scale"]

_COMMUTING: Final = frozenset(
    "Relu LeakyRelu PRelu Identity Dropout "
    "MaxPool AveragePool GlobalMaxPool GlobalAveragePool".split()
)
Peaks = Mapping[str, np.ndarray]
"""Greatest absolute value of each channel, by tensor."""


@dataclass(frozen=True, kw_only=True)
class Junction:
    tensor: str
    channels: int
    readers: tuple[Layer, ...]
    source: Layer | None = None
    """The layer whose outputs the channels are, or None where a normalization makes them."""
    constants: tuple[tuple[NodeProto, int, int], ...] = ()
    """Node, number of input and axes behind the channels', of what is scaled with the source."""
    inserted: bool = False
    """The tensor has other uses: the readers get a scaled copy of it."""

    def columns(self, reader: Layer, matrix: np.ndarray) -> np.ndarray:
        """View [group, output, channel of group, tap] of a reader's matrix."""
        taps = reader.width * reader.groups // self.channels
        return matrix.reshape(reader.groups, matrix.shape[1], -1, taps)


def find_junctions(model: ModelProto, *, behind_layers: bool) -> list[Junction]:
    """Those that layers make, or else those that normalizations (or constant factors) make, and
    these also where the tensor has other uses."""
    counts = uses(model)
    known = {layer.name: layer for layer in layers(model)}
    producers = {output: node for node in model.graph.node for output in node.output}
    reading: dict[str, list[Layer]] = {}
    for layer in known.values():
        if counts[layer.weight] == 1 and not layer.attributes.get("transA"):
            reading.setdefault(layer.input, []).append(layer)
    found = []
    for tensor, readers in reading.items():
        channels, trailing = readers[0].channels, readers[0].trailing
        if any((r.channels, r.trailing) != (channels, trailing) for r in readers):
            continue
        walked = _walk(
            model, tensor, known=known, producers=producers, counts=counts, trailing=trailing
        )
        if walked is None or (walked[0] is None) == behind_layers:
            continue
        source, constants = walked
        alone = counts[tensor] == len(readers)
        if source is not None:
            same = (source.outputs, source.trailing) == (channels, trailing)
            if not same or not alone or counts[source.weight] != 1:
                continue
        found.append(
            Junction(
                tensor=tensor,
                channels=channels,
                readers=tuple(readers),
                source=source,
                constants=tuple(constants) if alone else (),
                inserted=not alone,
            )
        )
    return found


def _walk(
    model: ModelProto,
    tensor: str,
    *,
    known: Mapping[str, Layer],
    producers: Mapping[str, NodeProto],
    counts: Mapping[str, int],
    trailing: int,
) -> tuple[Layer | None, list[tuple[NodeProto, int, int]]] | None:
    """From a tensor up to the layer (or None: the normalization) that can scale its channels, and
    the constants to be scaled with it."""
    constants: list[tuple[NodeProto, int, int]] = []
    current = tensor
    while (node := producers.get(current)) is not None:
        if current != tensor and counts[current] != 1:
            return None
        if node.name in known:
            if len(node.input) > 2 and node.input[2]:
                if constant(model.graph, node.input[2]) is None:
                    return None
                constants.append((node, 2, 0))
            return known[node.name], constants
        if node.domain not in graph.ONNX_DOMAINS:
            return None
        if node.op_type in _COMMUTING and len(node.output) == 1:
            current = node.input[0]
        elif _normalizes(model, node, trailing):
            return None, [*constants, (node, 1, 0), (node, 2, 0)]
        elif node.op_type in ("Add", "Mul"):
            at = next((i for i in (0, 1) if constant(model.graph, node.input[i]) is not None), None)
            if at is None:
                return None
            constants.append((node, at, trailing))
            if node.op_type == "Mul":
                return None, constants
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
    axes = {j.tensor: j.readers[0].trailing for j in junctions}
    peaks = {j.tensor: np.zeros(j.channels) for j in junctions}
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
        for layer in (*junction.readers, *([junction.source] if junction.source else [])):
            if layer.weight not in weights:
                values = constant(model.graph, layer.weight)
                assert values is not None
                weights[layer.weight] = (layer, layer.matrix(values))
        for reader in junction.readers:
            columns = junction.columns(reader, weights[reader.weight][1])
            columns /= factor.reshape(reader.groups, 1, -1, 1)
        if junction.source is not None:
            matrix = weights[junction.source.weight][1]
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
