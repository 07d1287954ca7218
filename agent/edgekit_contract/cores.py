"""Microarchitectures by the names that profiles give them: which core is this, and what can it not
have? Pure tables, and one look at the text of /proc/cpuinfo.

Sources: MIDR_EL1.PartNum in Arm's technical reference manuals (also in Linux,
arch/arm64/include/asm/cputype.h), the names of `qemu-aarch64 -cpu help`, and for what each version
of the architecture brought Arm's "Feature names in A-profile architecture".
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Final

from edgekit_contract.profile import FEATURES, Arch

__all__ = [
    "ANY_CORE",
    "ARM_LEVELS",
    "FEATURES_OF",
    "IMPLIED",
    "Level",
    "core_of",
    "lacking",
    "part_of",
]


class Level(enum.IntEnum):
    """Version of the architecture that a core is of, as far as features of `FEATURES` differ."""

    V7 = 7
    V8_0 = 80
    V8_2 = 82
    V8_4 = 84
    V9 = 90


_PARTS: Final[Mapping[str, tuple[str, Level]]] = {
    "0xc05": ("cortex-a5", Level.V7),
    "0xc07": ("cortex-a7", Level.V7),
    "0xc08": ("cortex-a8", Level.V7),
    "0xc09": ("cortex-a9", Level.V7),
    "0xc0f": ("cortex-a15", Level.V7),
    "0xd03": ("cortex-a53", Level.V8_0),
    "0xd04": ("cortex-a35", Level.V8_0),
    "0xd05": ("cortex-a55", Level.V8_2),
    "0xd07": ("cortex-a57", Level.V8_0),
    "0xd08": ("cortex-a72", Level.V8_0),
    "0xd09": ("cortex-a73", Level.V8_0),
    "0xd0a": ("cortex-a75", Level.V8_2),
    "0xd0b": ("cortex-a76", Level.V8_2),
    "0xd0c": ("neoverse-n1", Level.V8_2),
    "0xd0d": ("cortex-a77", Level.V8_2),
    "0xd0e": ("cortex-a76ae", Level.V8_2),
    "0xd40": ("neoverse-v1", Level.V8_4),
    "0xd41": ("cortex-a78", Level.V8_2),
    "0xd42": ("cortex-a78ae", Level.V8_2),
    "0xd44": ("cortex-x1", Level.V8_2),
    "0xd46": ("cortex-a510", Level.V9),
    "0xd47": ("cortex-a710", Level.V9),
    "0xd48": ("cortex-x2", Level.V9),
    "0xd49": ("neoverse-n2", Level.V9),
    "0xd4b": ("cortex-a78c", Level.V8_2),
    "0xd4d": ("cortex-a715", Level.V9),
    "0xd4f": ("neoverse-v2", Level.V9),
    "0xd80": ("cortex-a520", Level.V9),
    "0xd81": ("cortex-a720", Level.V9),
    "0xd8e": ("neoverse-n3", Level.V9),
}
_ARM_LIMITED: Final = "0x41"
"""`CPU implementer` of Arm's own designs: others number theirs as they like."""

ARM_LEVELS: Final = dict(_PARTS.values()) | {"a64fx": Level.V8_2}
ANY_CORE: Final = frozenset({"any", "max"})
"""What qemu calls a core that has everything."""

_SINCE: Final = {
    Level.V8_2: frozenset("atomics asimdrdm fphp asimdhp asimddp".split()),
    Level.V8_4: frozenset("i8mm bf16 sve fcma".split()),
    Level.V9: frozenset({"sve2"}),
}
"""The least version with which a core may have a feature; most are optional there."""
_SCALABLE_BEFORE: Final = {"a64fx": frozenset({"sve", "fcma"})}

_X86: Final = frozenset(
    "sse4_1 sse4_2 avx avx2 fma f16c avx512f avx512bw avx512vl avx512_vnni avx_vnni avx512_bf16 "
    "amx_tile amx_int8".split()
)
_ARM32: Final = frozenset({"neon", "vfpv4"})
FEATURES_OF: Final[Mapping[Arch, frozenset[str]]] = {
    Arch.X86_64: _X86,
    Arch.AARCH64: FEATURES - _X86 - _ARM32,
    Arch.ARMV7: _ARM32 | frozenset("aes sha2 crc32".split()),
}
"""Those of `FEATURES` that the kernel of each architecture may list."""

IMPLIED: Final[Mapping[str, str]] = {
    "sse4_2": "sse4_1",
    "avx": "sse4_2",
    "avx2": "avx",
    "fma": "avx",
    "f16c": "avx",
    "avx512f": "avx2",
    "avx512bw": "avx512f",
    "avx512vl": "avx512f",
    "avx512_vnni": "avx512f",
    "avx512_bf16": "avx512f",
    "avx_vnni": "avx2",
    "amx_int8": "amx_tile",
    "asimdhp": "fphp",
    "asimddp": "asimd",
    "i8mm": "asimd",
    "sve": "asimd",
    "sve2": "sve",
}
"""No processor has the first without the second."""


def core_of(cpuinfo: str) -> str:
    """The microarchitecture that a /proc/cpuinfo tells: its name on ARM, the vendor's model name on
    x86-64, else what it has; empty where it tells nothing. Of several kinds, the first."""
    fields: dict[str, str] = {}
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip().lower(), value.strip())
    part, implementer = fields.get("cpu part", ""), fields.get("cpu implementer", _ARM_LIMITED)
    if implementer == _ARM_LIMITED and part in _PARTS:
        return _PARTS[part][0]
    return fields.get("model name") or part


def part_of(core: str) -> str | None:
    """The `CPU part` of one of Arm's cores by its name."""
    return next((part for part, (name, _) in _PARTS.items() if name == core), None)


def lacking(core: str, features: frozenset[str]) -> list[str]:
    """Those of `features` that no core of this name has, sorted; none for an unknown core."""
    level = ARM_LEVELS.get(core)
    if level is None:
        return []
    later = frozenset[str]().union(*(names for since, names in _SINCE.items() if since > level))
    return sorted((later - _SCALABLE_BEFORE.get(core, frozenset())) & features)
