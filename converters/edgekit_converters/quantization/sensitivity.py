"""What quantizing one node, and no other, does to the outputs: for every node, with one model.

Each node stands in an If (`switching`), and an input of the model says which one is quantized, so
that trying one costs a run and no other making, loading or optimizing of a model. What later layers
amplify, or average out, is in the figure; only how errors of several nodes add up is not (Lin,
Talathi and Annapureddy, "Fixed point quantization of deep convolutional networks", ICML 2016,
section 3, has them add).

Invariant: the model file is only read; one sample's outputs are in memory at a time. Samples are
taken while there is time, so that all nodes are measured on the same ones.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import onnx

from edgekit_contract.errors import Refused
from edgekit_converters import external, graph
from edgekit_converters.calibration.estimators import Range
from edgekit_converters.quantization.outputs import decibels, opened, powers
from edgekit_converters.quantization.selection import Selection
from edgekit_converters.quantization.switching import NONE, SWITCH, make_switchable
from edgekit_runtime.session import Session

__all__ = ["NodeNoise", "measure_noise"]

_MIN_OPSET: Final = 10
"""The first with QuantizeLinear."""
_TIME_S: Final = 2.0
"""After so long no further sample is begun."""
_PATIENCE_S: Final = 12.0
"""So long past that the first one is given up, and nodes stay unranked."""


class NodeNoise(msgspec.Struct, frozen=True, kw_only=True):
    """What quantizing one node does to the model's outputs."""

    node: str
    operator: str
    noise_db: float
    """Noise power over signal power of the worst output: greater is worse."""
    parameters: int


def measure_noise(
    model: Path,
    selection: Selection,
    ranges: Mapping[str, Range],
    samples: Iterable[Mapping[str, np.ndarray]],
    *,
    per_channel: bool,
    threads: int,
    scratch: Path,
    embedded_bytes: int = external.MAX_EMBEDDED_BYTES,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[NodeNoise, ...]:
    """Noise of each selected node that computes something, the noisiest first.

    `ranges` are by observed tensor, as calibration gives them; without them, in subgraphs and in
    recurrent layers, the noise is that of stored weights alone. At least one sample is run for
    every node, more while there is time. Errors: `Refused`, also those of the runtime.
    """
    proto = onnx.load_model(model)
    if graph.opset(proto) < _MIN_OPSET:
        raise Refused(f"ranking nodes needs opset {_MIN_OPSET}.")
    sources = {name: ranges[seen] for name, seen in selection.sources.items() if seen in ranges}
    probes = make_switchable(proto.graph, selection, sources, per_channel=per_channel)
    if not probes:
        return ()
    sums = np.zeros((len(probes), len(proto.graph.output), 2))
    with closing(opened(proto, threads, scratch, embedded_bytes)) as session:
        ends = clock() + _TIME_S
        for feeds in samples:
            right = _run(session, feeds, NONE)
            for number in range(len(probes)):
                sums[number] += powers(_run(session, feeds, number), right)
                if clock() >= ends + _PATIENCE_S:
                    return ()
            if clock() >= ends:
                break
    found = [
        NodeNoise(
            node=probe.node,
            operator=probe.operator,
            noise_db=max(decibels(noise, signal) for noise, signal in of_outputs),
            parameters=probe.parameters,
        )
        for probe, of_outputs in zip(probes, sums, strict=True)
    ]
    return tuple(sorted(found, key=lambda noise: -noise.noise_db))


def _run(session: Session, feeds: Mapping[str, np.ndarray], number: int) -> list[np.ndarray]:
    return list(session.run({**feeds, SWITCH: np.array(number, np.int64)}).values())
