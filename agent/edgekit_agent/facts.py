"""What the device finds out about itself, in a child process: the daemon imports none of this.

`python -m edgekit_agent.facts --profile NAME` prints one JSON `DeviceFacts`.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from edgekit_contract.cores import core_of
from edgekit_contract.messages import DeviceFacts, cut
from edgekit_contract.profile import read_features
from edgekit_runtime.session import installed_runtimes

__all__ = ["collect", "main"]


def collect(profile: str, *, root: Path = Path("/")) -> DeviceFacts:
    """The facts of this machine; `root` is where /proc and /sys are."""
    cpuinfo = _text(root / "proc/cpuinfo")
    return DeviceFacts(
        profile=profile,
        platform="android" if "ANDROID_ROOT" in os.environ else "linux",
        arch=platform.machine(),
        core=cut(core_of(cpuinfo)),
        features=read_features(cpuinfo),
        cores=len(os.sched_getaffinity(0)),
        ram_bytes=_ram_bytes(_text(root / "proc/meminfo")),
        board=_text(root / "proc/device-tree/model").strip("\0\n ")
        or _text(root / "sys/class/dmi/id/product_name").strip(),
        os=_pretty_name(_text(root / "etc/os-release")),
        python=platform.python_version(),
        agent=importlib.metadata.version("edgekit"),
        runtimes={kind.value: version for kind, version in installed_runtimes().items()},
    )


def _ram_bytes(meminfo: str) -> int:
    for line in meminfo.splitlines():
        name, _, value = line.partition(":")
        if name == "MemTotal":
            return int(value.split()[0]) * 1024
    return 0


def _pretty_name(os_release: str) -> str:
    for line in os_release.splitlines():
        name, _, value = line.partition("=")
        if name == "PRETTY_NAME":
            return value.strip().strip('"')
    return platform.system()


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="edgekit_agent.facts")
    parser.add_argument("--profile", required=True)
    facts = collect(parser.parse_args(arguments).profile)
    sys.stdout.write(msgspec.json.encode(facts).decode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
