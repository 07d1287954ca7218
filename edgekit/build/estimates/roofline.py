"""Work and a core to a time with an error bar. Pure.

Each operator takes as long as its arithmetic or its bytes, whichever is longer, and a call on top
(Williams, Waterman and Patterson, "Roofline: an insightful visual performance model for multicore
architectures", CACM 52, 2009). What part of a core's peak a runtime's kernels get differs by the
kind of operator, and so does how well that is known: errors within a kind go together, those of
different kinds do not.

Invariant: low < ms < high for any work at all. Nothing here was fitted to the models that
docs/benchmarks.md compares with.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from edgekit.build.estimates.cores import Core
from edgekit.build.estimates.operators import Arithmetic, Kind, Work
from edgekit.build.report import Estimate

__all__ = ["LITERT", "LITERT_IN_PIECES", "ONNXRUNTIME", "Kernels", "estimate"]

_F32, _F16, _I8 = Arithmetic.FLOAT32, Arithmetic.FLOAT16, Arithmetic.INT8


@dataclass(frozen=True, kw_only=True)
class Kernels:
    """What is known of a runtime's kernels."""

    share: Mapping[Kind, Mapping[Arithmetic, float]]
    """Of the core's peak that products get."""
    unblocked: float
    """What of the share of depthwise filters is left on a core without a layout in blocks."""
    spread: float
    """All of a model may take so many times longer or shorter, whatever it is made of."""
    slowdown: float = 1.0
    """So many times as long does all of it take."""


ONNXRUNTIME: Final = Kernels(
    share={
        Kind.DENSE: {_F32: 0.60, _F16: 0.50, _I8: 0.40},
        Kind.DEPTHWISE: {_F32: 0.15, _F16: 0.10, _I8: 0.08},
        Kind.VECTOR: {_F32: 0.30, _F16: 0.25, _I8: 0.20},
        Kind.RECURRENT: {_F32: 0.20, _F16: 0.15, _I8: 0.12},
        Kind.UNPACKING: {_F32: 0.20, _F16: 0.15, _I8: 0.15},
    },
    unblocked=0.4,
    spread=1.0,
)
"""Published for comparison: 0.33 of four Cortex-A73's peak for ResNet50. Depthwise filters:
MobileNet v1 takes 75 ms on a board that takes 351 ms for ResNet50, which has seven times as much to
do and no such filters (both gist.github.com/zihaomu/1cf236339099708a0c75aeef5620433e)."""

LITERT: Final = Kernels(
    share={
        Kind.DENSE: {_F32: 0.70, _F16: 0.60, _I8: 0.55},
        Kind.DEPTHWISE: {_F32: 0.25, _F16: 0.20, _I8: 0.20},
        Kind.VECTOR: {_F32: 0.30, _F16: 0.25, _I8: 0.20},
        Kind.RECURRENT: {_F32: 0.15, _F16: 0.10, _I8: 0.10},
        Kind.UNPACKING: {_F32: 0.20, _F16: 0.15, _I8: 0.15},
    },
    unblocked=1.0,
    spread=1.5,
)
"""With XNNPACK, which keeps channels last. Of one core of a Pixel 2 (Cortex-A73, 2.35 GHz) it gets
0.70 of the peak for MobileNet v1 (86 ms) and 0.60 for v2 (53 ms), in float32 (its README); of 8
bits nothing is published by core but that they are 1.3 times as fast as LiteRT's own kernels on ARM
and 5 times on x86-64 (blog.tensorflow.org/2021/09/faster-quantized-inference-with-xnnpack.html).
The spread is for what is not known: which operators it takes in a release, and the board. MobileNet
v1 on a Raspberry Pi 4 is 75 ms in the README and 142 ms in github.com/google/XNNPACK/issues/814."""

LITERT_IN_PIECES: Final = replace(LITERT, slowdown=1.5, spread=2.5)
"""Where XNNPACK leaves a part to LiteRT's own kernels, and how much is not known here: with them
alone a model takes 2.3 times as long
(blog.tensorflow.org/2020/07/accelerating-tensorflow-lite-xnnpack-integration.html)."""

_CYCLES: Final[Mapping[Kind, float]] = {
    Kind.ELEMENTWISE: 0.6,
    Kind.TRANSCENDENTAL: 4.0,
    Kind.REDUCTION: 1.0,
    Kind.POOLING: 4.0,
    Kind.ROUNDING: 1.0,
    Kind.MOVEMENT: 1.0,
    Kind.UNKNOWN: 10.0,
}
"""For each element, of a core of `steps` 1: vectors of four numbers and a few instructions each."""

_LAYING_OUT_CYCLES: Final = 0.5
"""The same, where a convolution's windows are laid out as a matrix."""
_CALL_CYCLES: Final = 5000.0
"""What a runtime does around a kernel."""
_CACHE_BYTES_A_CYCLE: Final = 8.0

_SPREAD: Final[Mapping[Kind, float]] = {
    Kind.DENSE: 1.5,
    Kind.DEPTHWISE: 2.5,
    Kind.VECTOR: 1.6,
    Kind.RECURRENT: 1.8,
    Kind.UNPACKING: 2.5,
    Kind.ELEMENTWISE: 1.8,
    Kind.TRANSCENDENTAL: 2.0,
    Kind.REDUCTION: 2.0,
    Kind.POOLING: 2.0,
    Kind.ROUNDING: 2.0,
    Kind.MOVEMENT: 2.0,
    Kind.FREE: 2.0,
    Kind.UNKNOWN: 5.0,
}
"""So many times longer or shorter a kind may take."""
_INT8_SPREAD: Final = 1.25
"""On top, in 8 bits: whether a kernel is made for the core's instructions differs by release."""


def estimate(
    works: Iterable[Work], core: Core, *, threads: int, kernels: Kernels = ONNXRUNTIME
) -> Estimate:
    """How long one inference may take. The bar is meant to hold for nine of ten models."""
    listed = list(works)
    weights = sum(work.weight_bytes for work in listed)
    spent: dict[tuple[Kind, bool], float] = {}
    for work in listed:
        key = (work.kind, work.arithmetic is Arithmetic.INT8 and work.macs > 0)
        spent[key] = spent.get(key, 0.0) + _seconds(
            work, core, threads, kernels, model_bytes=weights
        )
    spent = {key: seconds * kernels.slowdown for key, seconds in spent.items()}
    total = sum(spent.values()) or 1e-9
    logs = [math.log(core.spread), math.log(kernels.spread)]
    for (kind, is_int8), seconds in spent.items():
        spread = _SPREAD[kind] * (_INT8_SPREAD if is_int8 else 1.0)
        logs.append(seconds / total * math.log(spread))
    factor = math.exp(math.hypot(*logs))
    return Estimate(ms=total * 1e3, low=total / factor * 1e3, high=total * factor * 1e3)


def _seconds(work: Work, core: Core, threads: int, kernels: Kernels, *, model_bytes: int) -> float:
    call = _CALL_CYCLES / (core.clock_hz * core.steps)
    cycles = work.elements * _CYCLES.get(work.kind, _LAYING_OUT_CYCLES)
    if work.macs:
        peak = {
            Arithmetic.FLOAT32: core.float_macs,
            Arithmetic.FLOAT16: core.half_macs,
            Arithmetic.INT8: core.int8_macs,
        }[work.arithmetic]
        speedup = 1 + core.next_thread * (threads - 1)
        share = kernels.share[work.kind][work.arithmetic]
        if work.kind is Kind.DEPTHWISE and not core.has_blocks:
            share *= kernels.unblocked
        arithmetic = work.macs / (peak * share * core.clock_hz * speedup)
        arithmetic += cycles / (core.steps * core.clock_hz * speedup)
    else:
        speedup = 1 + core.next_thread / 2 * (threads - 1)  # kernels that gain less
        arithmetic = cycles / (core.steps * core.clock_hz * speedup)
    # weights stay in the cache from one inference to the next only if all of them fit
    fits = model_bytes <= core.cache_bytes
    memory = _moving(work.weight_bytes, core, in_cache=fits)
    memory += _moving(
        work.activation_bytes, core, in_cache=work.activation_bytes <= core.cache_bytes
    )
    return max(arithmetic, memory) + call


def _moving(size_bytes: int, core: Core, *, in_cache: bool) -> float:
    if in_cache:
        return size_bytes / (_CACHE_BYTES_A_CYCLE * core.clock_hz)
    return size_bytes / core.bytes_per_s
