"""What processors can do, as published: the priors of estimates. Values only.

Products are multiplications with an addition each, of one core in one cycle: the peak that the
pipelines allow. How much of it a runtime gets is `roofline`'s. Bytes are those that all cores
together move to and from memory, reads and writes counted each.

Sources:
- Peaks of Cortex-A53, A55, A72, A73, A76, A78 and A78AE: Arm's "Software Optimization Guide" of
  each core (throughput of ASIMD FMLA, SMLAL and SDOT on 128-bit registers). Checks: a Raspberry
  Pi 5 is given 38 GFLOP/s for a thread of 2.4 GHz, which is 8 products in a cycle
  (github.com/Bing1002/rpi-deploy); a Raspberry Pi 4 has half as many.
- Bytes: twice `memcpy` of sbc-bench (github.com/ThomasKaiser/sbc-bench, Sorted-Results.md):
  Raspberry Pi 4 2,330 to 2,780 MB/s, Raspberry Pi 5 5,270 and 6,025 MB/s, VIM3 (A73) 4,980 MB/s,
  Jetson Orin Nano 6,730 and AGX Orin 10,600 MB/s. STREAM copies 5,527 MB/s on a Raspberry Pi 4
  (sci-pi.org.uk/bench/stream.html), and 2,346 to 2,491 MB/s on Cortex-A53 with 16 bits of DDR4
  (Texas Instruments, SPRADO9 and SPRAD45A, table 3), about what the LPDDR2 of the boards with this
  core gives.
- What a thread more adds: the cores of a Raspberry Pi 3 and 4 share one second-level cache and 32
  bits of memory (XNNPACK's README: MobileNet v1 takes 77 ms on four Cortex-A72, hardly less than
  the 82 to 88 ms of one core of a phone), a phone with four Cortex-A73 goes from 86 to 27 ms; from
  Cortex-A76 on each core has a second-level cache of its own.
- Last-level caches: data sheets and technical reference manuals.
- x86-64: Agner Fog, "Instruction tables" (FMA, VPMADDUBSW and VPDPBUSD on 256-bit registers, two
  units each); a server core without AMX.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from edgekit_contract import limits
from edgekit_contract.profile import VNNI, Arch, Cpu

__all__ = ["Core", "core_of"]


@dataclass(frozen=True, kw_only=True)
class Core:
    """A core, in the machine that it usually is in."""

    name: str
    float_macs: float
    """Of float32, in a cycle."""
    int8_macs: float
    half_macs: float
    """Of float16; as float32 where the core has no such arithmetic."""
    steps: float
    """How many scalar or vector steps it takes in a cycle, to those of Cortex-A76."""
    bytes_per_s: float
    cache_bytes: int
    """Last-level cache."""
    clock_hz: float
    next_thread: float
    """What each thread after the first adds to products."""
    has_blocks: bool
    """Whether the runtime lays channels out in blocks (NCHWc), which makes depthwise filters
    fast."""
    spread: float
    """The whole of it may be so many times faster or slower."""


@dataclass(frozen=True, kw_only=True)
class _Prior:
    float_macs: float
    int8_macs: float
    dot_macs: float
    """Of 8 bits with dot products (`asimddp`)."""
    steps: float
    next_thread: float
    gb_per_s: float
    cache_mib: float
    clock_mhz: int
    """Where a profile names none: that of the usual board."""


_KNOWN_CLOCK: Final = 1.3
_GUESSED_CLOCK: Final = 1.8
"""A profile without a clock stands for machines of many clocks."""

_A53: Final = _Prior(
    float_macs=2.7, int8_macs=5.3, dot_macs=16, steps=0.4, next_thread=0.45,
    gb_per_s=2.4, cache_mib=0.5, clock_mhz=1400,
)  # fmt: skip
"""In order: a 128-bit load takes the slot of a product (XNNPACK's kernels for it load 64 bits)."""
_A72: Final = _Prior(
    float_macs=4, int8_macs=8, dot_macs=16, steps=0.7, next_thread=0.45,
    gb_per_s=5.2, cache_mib=1.0, clock_mhz=1500,
)  # fmt: skip
_A73: Final = _Prior(
    float_macs=4, int8_macs=8, dot_macs=16, steps=0.8, next_thread=0.65,
    gb_per_s=10.0, cache_mib=1.0, clock_mhz=2200,
)  # fmt: skip
_A76: Final = _Prior(
    float_macs=8, int8_macs=16, dot_macs=32, steps=1.0, next_thread=0.7,
    gb_per_s=11.0, cache_mib=2.0, clock_mhz=2400,
)  # fmt: skip
_A78AE: Final = _Prior(
    float_macs=8, int8_macs=16, dot_macs=32, steps=1.1, next_thread=0.7,
    gb_per_s=14.0, cache_mib=4.0, clock_mhz=1900,
)  # fmt: skip

_ARM: Final[Mapping[str, _Prior]] = {
    "cortex-a53": _A53,
    "cortex-a55": _A53,
    "cortex-a57": _A72,
    "cortex-a72": _A72,
    "cortex-a73": _A73,
    "cortex-a75": _A73,
    "cortex-a76": _A76,
    "cortex-a78": _A76,
    "cortex-a78ae": _A78AE,
    "neoverse-n1": _A76,
}


def core_of(cpu: Cpu) -> Core | None:
    """What is published of a profile's core; None where nothing is."""
    if cpu.arch is Arch.X86_64:
        return _x86(cpu)
    prior = _ARM.get(cpu.core)
    if prior is None or cpu.arch is not Arch.AARCH64:
        return None
    features = set(cpu.features)
    return Core(
        name=cpu.core,
        float_macs=prior.float_macs,
        int8_macs=prior.dot_macs if "asimddp" in features else prior.int8_macs,
        half_macs=prior.float_macs * (2 if "asimdhp" in features else 1),
        steps=prior.steps,
        next_thread=prior.next_thread,
        has_blocks=False,
        bytes_per_s=prior.gb_per_s * 1e9,
        cache_bytes=int(prior.cache_mib * limits.MIB),
        clock_hz=(cpu.clock_mhz or prior.clock_mhz) * 1e6,
        spread=_KNOWN_CLOCK if cpu.clock_mhz else _GUESSED_CLOCK,
    )


def _x86(cpu: Cpu) -> Core | None:
    features = set(cpu.features)
    if not {"avx2", "fma"} <= features:
        return None
    # with AVX-512, between a core that does it in halves and one that has two whole units
    wider = 1.5 if "avx512f" in features else 1.0
    return Core(
        name=cpu.core,
        float_macs=16 * wider,
        int8_macs=(64 if VNNI & features else 21) * wider,
        half_macs=16 * wider,
        steps=2.0,
        next_thread=0.7,
        has_blocks=True,
        bytes_per_s=12e9,
        cache_bytes=16 * limits.MIB,
        clock_hz=(cpu.clock_mhz or 3000) * 1e6,
        spread=_KNOWN_CLOCK if cpu.clock_mhz else _GUESSED_CLOCK,
    )
