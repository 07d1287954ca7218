"""This machine as profiles see one: architecture, cores and ISA features, read from Linux."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

from edgekit_contract.cores import core_of
from edgekit_contract.profile import VNNI, Arch, Cpu, read_features

__all__ = ["Host", "parse_cpuinfo", "read_host"]

_SELECT_KERNELS: Final = VNNI | frozenset(
    "avx512f avx512bw avx512vl amx_tile amx_int8 asimddp i8mm sve sve2".split()
)
"""Features by which runtimes choose kernels among those that a profile's core can run
(onnxruntime/core/mlas/lib/platform.cpp; XNNPACK, src/configs)."""


@dataclass(frozen=True, kw_only=True)
class Host:
    arch: str
    """As `uname -m`."""
    core: str
    """Microarchitecture on ARM, the vendor's model name on x86-64."""
    features: frozenset[str]
    """Those that every core has."""
    cores: int
    """How many this process may use."""

    @property
    def title(self) -> str:
        return f"{self.core} ({self.arch})"

    @property
    def int8_saturates(self) -> bool:
        """As `Cpu.int8_saturates`."""
        return self.arch == Arch.X86_64.value and not VNNI & self.features

    def is_of(self, cpu: Cpu) -> bool:
        """Whether what is measured here holds for a profile."""
        return self.difference(cpu) is None

    def difference(self, cpu: Cpu) -> str | None:
        """Why what is measured here does not hold for a profile: another architecture, a feature
        too few, one too many of those that select kernels, or, on ARM, where a profile names a
        board's core, another core."""
        features = frozenset(cpu.features)
        if self.arch != cpu.arch.value:
            return f"this machine is {self.arch}"
        if lacking := features - self.features:
            return f"this machine lacks {', '.join(sorted(lacking))}"
        if beyond := (self.features - features) & _SELECT_KERNELS:
            return f"this machine has {', '.join(sorted(beyond))}, by which kernels are chosen"
        if cpu.arch is Arch.X86_64 or cpu.core in (self.core, "any", "max"):
            return None
        return f"this machine's core is {self.core}"


@lru_cache(maxsize=1)
def read_host() -> Host:
    arch = platform.machine()
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    return parse_cpuinfo(text, arch=arch, cores=len(os.sched_getaffinity(0)))


def parse_cpuinfo(text: str, *, arch: str, cores: int) -> Host:
    """From the text of /proc/cpuinfo; of several kinds of core, the first names it."""
    core = core_of(text) or "unknown core"
    return Host(arch=arch, core=core, features=frozenset(read_features(text)), cores=cores)
