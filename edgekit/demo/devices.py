"""The demo's devices and their profiles: two small ones of exactly this machine's ISA, and one of
the generic Linux of its architecture.

Invariant: this machine can run what is built for each of them, whatever its architecture.
"""

from __future__ import annotations

import json
import re
from typing import Final

import edgekit_profiles
from edgekit.build.host import Host
from edgekit_contract.errors import Refused

__all__ = ["DEVICES", "NoProfile", "device_profiles", "small_profile"]

DEVICES: Final = ("kitchen", "garage", "workshop")
_SMALL: Final = "demo-small"
_GENERIC: Final = {"x86_64": "linux-x86-64", "aarch64": "linux-arm64"}


class NoProfile(Refused):
    """The demo has no profile for this architecture."""

    def __init__(self, arch: str) -> None:
        super().__init__(
            f"the demo runs on {' and '.join(_GENERIC)}, this machine is {arch}: take another one."
        )
        self.arch = arch


def device_profiles(host: Host) -> dict[str, bytes]:
    """TOML of each device's profile. Errors: `NoProfile`."""
    if host.arch not in _GENERIC:
        raise NoProfile(host.arch)
    small, generic = small_profile(host), edgekit_profiles.text(_GENERIC[host.arch])
    return dict(zip(DEVICES, (small, small, generic), strict=True))


def small_profile(host: Host) -> bytes:
    """TOML of the shipped demo-small, its core that of `host`: what is measured there holds."""
    text = edgekit_profiles.text(_SMALL).decode()
    core = {
        "title": f"A small device of the demo ({host.arch})",
        "arch": host.arch,
        "core": host.core,
        "features": sorted(host.features),
    }
    # strings, and arrays of them, are written the same in JSON and in TOML
    return re.sub(
        rf"^({'|'.join(core)}) = .*$",
        lambda line: f"{line[1]} = {json.dumps(core[line[1]])}",
        text,
        flags=re.MULTILINE,
    ).encode()
