"""Which of qemu's CPUs stands for a profile's, and what Linux would say of it. Pure.

Invariant: the stand-in executes no kernel that the profile's CPU could not: where qemu does not
know the core it is the best of the ladder whose features the profile lists. qemu gives every Armv8
core the cryptography extension, which some boards lack: `/proc/cpuinfo` then does not list it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

from edgekit_contract.cores import part_of
from edgekit_contract.profile import Cpu

__all__ = ["kernel_files", "stand_in"]

_LADDER: Final[tuple[tuple[str, frozenset[str]], ...]] = (
    (
        "cortex-a76",
        frozenset("asimd crc32 atomics fphp asimdhp asimdrdm asimddp".split()),
    ),
    ("cortex-a53", frozenset({"asimd"})),
)
"""qemu's name and what a profile must list to be emulated by it: Armv8.2-A with dot products, or
Armv8.0-A, the least that aarch64 stands for (qemu, target/arm/cpu64.c)."""
_IMPLEMENTER: Final = "0x41"
"""Arm Ltd., MIDR_EL1.Implementer."""
_IMPLIED: Final = {"aes": ("aes", "pmull"), "sha2": ("sha1", "sha2")}
"""Names of /proc/cpuinfo that come with a profile's (Linux, arch/arm64/kernel/cpuinfo.c)."""


def stand_in(cpu: Cpu, known: Collection[str]) -> str:
    """The value of `qemu -cpu` for a profile's aarch64 CPU; `known` is what this qemu has."""
    if cpu.core in known and part_of(cpu.core) is not None:  # `max` runs what no device can
        return cpu.core
    listed = frozenset(cpu.features) | {"asimd"}
    return next(core for core, features in _LADDER if features <= listed)


def kernel_files(cpu: Cpu, core: str) -> Mapping[str, str]:
    """Path to text of what runtimes read to learn which CPU it is: onnxruntime's and XNNPACK's
    library `cpuinfo` crashes where these contradict the registers. `core` is the stand-in.

    Source: Linux, Documentation/arch/arm64/cpu-feature-registers.rst and
    Documentation/ABI/testing/sysfs-devices-system-cpu.
    """
    features = [
        name
        for listed in dict.fromkeys(("asimd", *cpu.features))
        for name in _IMPLIED.get(listed, (listed,))
    ]
    processor = (
        f"Features\t: fp {' '.join(features)} cpuid\n"
        f"CPU implementer\t: {_IMPLEMENTER}\n"
        "CPU architecture: 8\n"
        "CPU variant\t: 0x0\n"
        f"CPU part\t: {part_of(core)}\n"
        "CPU revision\t: 0\n"
    )
    every = f"0-{cpu.cores - 1}\n" if cpu.cores > 1 else "0\n"
    files = {
        "proc/cpuinfo": "\n".join(f"processor\t: {n}\n{processor}" for n in range(cpu.cores)),
        **{f"sys/devices/system/cpu/{name}": every for name in ("possible", "present", "online")},
    }
    for number in range(cpu.cores):
        of = f"sys/devices/system/cpu/cpu{number}"
        files |= {
            f"{of}/topology/core_id": f"{number}\n",
            f"{of}/topology/physical_package_id": "0\n",
            f"{of}/topology/thread_siblings_list": f"{number}\n",
            f"{of}/topology/core_siblings_list": every,
        }
        if cpu.clock_mhz is not None:
            files[f"{of}/cpufreq/cpuinfo_max_freq"] = f"{cpu.clock_mhz * 1000}\n"
    return files
