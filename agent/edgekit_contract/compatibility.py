"""Does a bundle fit a device? Pure: the manifest, the profile and the device's facts decide."""

from __future__ import annotations

import re
from typing import Final

from edgekit_contract.manifest import Manifest
from edgekit_contract.messages import DeviceFacts
from edgekit_contract.profile import Budget

__all__ = ["over_budget", "unmet", "version_tuple"]

_RAM_SHARE: Final = 0.9
"""What a model may take of the memory that the device shows: the rest is the system's."""
_VERSION_PARTS: Final = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,9})*")


def version_tuple(version: str) -> tuple[int, ...]:
    """The leading numbers of a dotted version, to compare: `1.23.0+cu12` is (1, 23).

    Trailing zeros are left out, so that 1.23 is not older than 1.23.0.
    """
    found = _VERSION_PARTS.match(version)
    parts = [int(part) for part in found.group().split(".")] if found else []
    while parts and parts[-1] == 0:
        parts.pop()
    return tuple(parts)


def unmet(manifest: Manifest, facts: DeviceFacts, *, beside_bytes: int = 0) -> list[str]:
    """What `manifest` requires and the device lacks, a phrase each; empty if it fits.

    `beside_bytes`: RAM of what serves meanwhile, since a switch has both loaded.
    """
    requires, lacks = manifest.requires, []
    if manifest.profile != facts.profile:
        lacks.append(f"the bundle is for profile {manifest.profile}, the device is {facts.profile}")
    if requires.arch and facts.arch not in {arch.value for arch in requires.arch}:
        lacks.append(f"it needs {'/'.join(a.value for a in requires.arch)}, not {facts.arch}")
    if missing := sorted(set(requires.features) - set(facts.features)):
        lacks.append(f"the CPU lacks {', '.join(missing)}")
    have = facts.runtimes.get(requires.runtime.value)
    if have is None:
        what = "the runtime plug-in " if requires.runtime.is_plugin else ""
        lacks.append(f"{what}{requires.runtime.value} is not installed")
    elif version_tuple(have) < version_tuple(requires.min_runtime_version):
        lacks.append(
            f"{requires.runtime.value} {have} is older than {requires.min_runtime_version}"
        )
    if requires.peak_ram_bytes + beside_bytes > facts.ram_bytes * _RAM_SHARE:
        beside = f" beside {beside_bytes >> 20} MiB of what serves" if beside_bytes else ""
        lacks.append(
            f"it needs {requires.peak_ram_bytes >> 20} MiB of RAM{beside}, "
            f"the device has {facts.ram_bytes >> 20}"
        )
    return lacks


def over_budget(manifest: Manifest, budget: Budget) -> list[str]:
    """What `manifest` needs beyond a profile's budget, a phrase each."""
    needs = (
        ("unpacked", manifest.requires.unpacked_bytes, budget.bundle_mib),
        ("of RAM", manifest.requires.peak_ram_bytes, budget.ram_mib),
    )
    return [
        f"it needs {-(-size_bytes >> 20)} MiB {what}, the profile's budget is {limit_mib}"
        for what, size_bytes, limit_mib in needs
        if size_bytes > limit_mib << 20
    ]
