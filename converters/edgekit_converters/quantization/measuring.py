"""The range of each tensor that does least to the outputs: for every tensor, with one model.

Each tensor stands in an If (`switching`), and inputs of the model say which one is rounded, and to
what levels, so that trying a range costs a run. What estimators cannot see is in the figure:
whether what reads a tensor heeds its outliers or what lies between them.

Few samples show what rounding does, since all values of a tensor take part; what cutting does they
show only where they hold what is cut. Therefore a narrower range has to gain more, and estimators
that cut more still are not asked.

Invariant: the model file is only read. The ranges of a tensor are compared on the same samples, and
one without a figure keeps that of the estimator that comes first in `CHOSEN_AMONG`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Final

import numpy as np
import onnx
from onnx import ModelProto

from edgekit_contract.errors import Refused
from edgekit_converters import external, graph
from edgekit_converters.calibration.estimators import CHOSEN_AMONG, Estimator, Range
from edgekit_converters.quantization.outputs import opened, powers
from edgekit_converters.quantization.selection import float_results, select_static
from edgekit_converters.quantization.switching import (
    NONE,
    SCALE,
    SWITCH,
    ZERO,
    grid_of,
    make_roundable,
)
from edgekit_runtime.session import Optimization, Session

__all__ = ["measure_ranges"]

_CUTTING: Final = 3.0
"""So many times less noise a range has to make that cuts what the first one keeps."""
_ALIKE: Final = 0.01
"""Ranges whose ends are so near, as a part of their width, are one."""
_TIME_S: Final = 4.0
_LEAST_SAMPLES: Final = 4
_MOST_SAMPLES: Final = 16
_ANY: Final = Range(0.0, 1.0)
_MIN_OPSET: Final = 10
"""The first with QuantizeLinear."""

_Known = tuple[Mapping[str, np.ndarray], Sequence[np.ndarray]]
"""A sample's feeds, and what the model gives for them with nothing rounded."""


def measure_ranges(
    model: Path,
    estimated: Mapping[Estimator, Mapping[str, Range]],
    samples: Iterable[Mapping[str, np.ndarray]],
    *,
    threads: int,
    scratch: Path,
    embedded_bytes: int = external.MAX_EMBEDDED_BYTES,
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, Range]:
    """Of each tensor's `estimated` ranges the one that makes least noise at the outputs of a
    normalized model, by rounding that tensor alone.

    Tensors whose ranges differ most are tried first, and nothing is begun after `_TIME_S`.
    Errors: `Refused`, also those of the runtime.
    """
    proto = onnx.load_model(model)
    if graph.opset(proto) < _MIN_OPSET:
        raise Refused(f"measuring ranges needs opset {_MIN_OPSET}.")
    offered = _offered(estimated)
    best = {name: ranges[0] for name, ranges in offered.items()}
    tensors = _contested(proto, offered)
    if not tensors:
        return best
    make_roundable(proto.graph, tensors)
    runs = sum(len(offered[name]) for name in tensors)
    with closing(opened(proto, threads, scratch, embedded_bytes, Optimization.ALL)) as session:
        began = clock()
        ends = began + _TIME_S
        known: list[_Known] = []
        for feeds in islice(samples, _MOST_SAMPLES):
            known.append((feeds, _run(session, feeds)))
            now, count = clock(), len(known)
            if now >= ends:
                return best
            if count >= _LEAST_SAMPLES and now + (now - began) / count * runs * (count + 1) > ends:
                break  # there is no time for one more
        for number, name in enumerate(tensors):
            noise = []
            for found in offered[name]:
                if clock() >= ends:
                    return best
                made = _noise(session, known, number, found)
                noise.append(made * (_CUTTING if _cuts(found, offered[name][0]) else 1.0))
            best[name] = offered[name][int(np.argmin(noise))]
    return best


def _offered(estimated: Mapping[Estimator, Mapping[str, Range]]) -> dict[str, list[Range]]:
    """Of each tensor the ranges that are not alike, in the order of `CHOSEN_AMONG`."""
    offered: dict[str, list[Range]] = {}
    for estimator in CHOSEN_AMONG:
        for name, found in estimated.get(estimator, {}).items():
            others = offered.setdefault(name, [])
            if all(_distance(found, other) > _ALIKE for other in others):
                others.append(found)
    return offered


def _distance(one: Range, other: Range) -> float:
    """Of their ends, as a part of the wider one's width."""
    apart = max(abs(one.low - other.low), abs(one.high - other.high))
    return apart / max(one.high - one.low, other.high - other.low, 1e-30)


def _cuts(found: Range, first: Range) -> bool:
    """Whether a range lacks what the first one has at either end."""
    least = _ALIKE * (first.high - first.low)
    return found.low > first.low + least or found.high < first.high - least


def _contested(proto: ModelProto, offered: Mapping[str, Sequence[Range]]) -> list[str]:
    """Tensors that quantization rounds and that have a choice of ranges, those first whose ranges
    are furthest apart."""
    selection = select_static(proto)
    floats = float_results(proto.graph, selection.nodes)
    unrounded = {node.output[0] for node in proto.graph.node if node.name in floats}
    return sorted(
        (name for name in selection.observed
         if len(offered.get(name, ())) > 1 and name not in unrounded),
        key=lambda name: -max(_distance(offered[name][0], other) for other in offered[name]),
    )  # fmt: skip


def _noise(
    session: Session,
    known: Sequence[_Known],
    number: int,
    found: Range,
) -> float:
    """Noise to signal of rounding one tensor to a range, summed over outputs."""
    sums = sum(powers(_run(session, feeds, number, found), right) for feeds, right in known)
    noise, signal = np.asarray(sums).T
    return float((noise / np.maximum(signal, 1e-30)).sum())


def _run(
    session: Session,
    feeds: Mapping[str, np.ndarray],
    number: int = NONE,
    found: Range = _ANY,
) -> list[np.ndarray]:
    scale, zero = grid_of(found)
    chosen = {SWITCH: np.array(number, np.int64), SCALE: scale, ZERO: zero}
    return list(session.run({**feeds, **chosen}).values())
