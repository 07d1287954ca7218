"""A sysroot: the whole agent works in it, and it shows the profile's CPU and keeps its bounds."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

import edgekit_profiles
from edgekit.emulation import Sysroot, self_test
from edgekit.emulation.machine import Machine
from edgekit_contract.limits import GIB
from edgekit_contract.profile import Profile, read_features
from edgekit_converters.isolation import Limits, StepFailed

BOUNDS = Limits(timeout_s=120.0, memory_bytes=2 * GIB)
LOOK = """
import json, os, platform, sys
print(json.dumps({
    "arch": platform.machine(),
    "cpuinfo": open("/proc/cpuinfo").read(),
    "possible": open("/sys/devices/system/cpu/possible").read(),
    "dotprod": bool(__import__("ctypes").CDLL(None).getauxval(16) & (1 << 20)),
    "prefix": sys.prefix,
}))
"""


def test_the_whole_agent_installs_from_its_wheel_and_passes_its_self_test(
    pi4: Profile, sysroot: Sysroot
) -> None:
    tested = self_test(pi4, sysroot)
    assert [check for check in tested.checks if not check.passed] == []
    assert {check.name for check in tested.checks} >= {
        "imports", "storage", "cryptography", "tls", "local API", "onnxruntime", "litert",
    }  # fmt: skip
    assert tested.core == "cortex-a72"


@pytest.mark.parametrize(
    ("name", "core", "dotprod"),
    [("raspberry-pi-4", "cortex-a72", False), ("jetson-orin-nano", "cortex-a76", True)],
)
def test_process_sees_the_profile_s_cpu_and_its_instructions(
    sysroot: Sysroot, name: str, core: str, dotprod: bool
) -> None:
    profile = edgekit_profiles.load(name)
    machine = Machine(sysroot, profile.cpu)
    assert machine.core == core
    ended = machine.run_python(["-c", LOOK], step="a look", bounds=BOUNDS)
    seen = json.loads(ended.out)
    assert seen["arch"] == "aarch64"
    assert read_features(seen["cpuinfo"]) == tuple(sorted(profile.cpu.features))
    assert seen["possible"] == f"0-{profile.cpu.cores - 1}\n"
    assert seen["dotprod"] is dotprod


def test_process_that_hangs_is_stopped_and_leaves_nothing(sysroot: Sysroot, pi4: Profile) -> None:
    machine = Machine(sysroot, pi4.cpu)
    marker = "time.sleep(3599.25)"
    with pytest.raises(StepFailed, match="a nap failed: it did not end within 2 s"):
        machine.run_python(
            ["-c", f"import time; {marker}"],
            step="a nap",
            bounds=Limits(timeout_s=2.0, memory_bytes=GIB),
        )
    deadline = time.monotonic() + 5
    while (left := running(marker)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left == []


def running(marker: str) -> list[str]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if marker.encode() in (process / "cmdline").read_bytes():
                found.append(process.name)
        except OSError:
            continue
    return found
