"""What a machine is, as profiles see one: looked up here, or told by a device of a fleet.

Invariant: nothing is assumed that could be looked up; what cannot is left out of the profile, and
files of temperatures are read only where the kernel's name for them says that they are of a
processor (on some boards, reading others hangs).
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edgekit_contract.cores import core_of
from edgekit_contract.errors import Refused
from edgekit_contract.messages import DeviceFacts
from edgekit_contract.profile import (
    PROVIDERS,
    Arch,
    Platform,
    RuntimeKind,
    Thermal,
    read_features,
)
from edgekit_profiles.onnx_versions import OnnxVersions, newest_onnx
from edgekit_runtime.providers import why_not_loaded
from edgekit_runtime.session import installed_runtimes

__all__ = ["Survey", "of_device", "of_this_machine"]

_PROCESSOR_ZONE: Final = re.compile(r"cpu|gpu|soc|pkg|package|bigcore|littlecore|core", re.I)
_HARDWARE_MONITORS: Final = (
    "/sys/devices/platform/coretemp.*/hwmon/hwmon*/temp1_input",
    "/sys/bus/pci/drivers/k10temp/*/hwmon/hwmon*/temp1_input",
)
_THROTTLED: Final = (
    "/sys/devices/platform/soc/soc:firmware/get_throttled",
    "/sys/devices/platform/soc@*/soc@*:firmware/get_throttled",
    "/sys/devices/platform/soc/soc:firmware/raspberrypi-hwmon/hwmon/hwmon*/in0_lcrit_alarm",
    "/sys/devices/platform/soc@*/soc@*:firmware/raspberrypi-hwmon/hwmon/hwmon*/in0_lcrit_alarm",
)
"""As in the shipped profiles of the Raspberry Pi."""
_PLAUSIBLE_LIMIT_C: Final = range(40, 126)
_MAX_ZONES: Final = 64
_NO_SENSORS: Final = Thermal()
_MOST_ZONES: Final = 4
_MOST_OPSET: Final = 64


@dataclass(frozen=True, kw_only=True)
class Survey:
    board: str
    """As the vendor calls it; empty where nothing tells."""
    platform: Platform
    arch: Arch
    core: str
    """Empty where nothing tells."""
    cores: int
    features: tuple[str, ...]
    ram_bytes: int
    clock_mhz: int | None = None
    python: str
    """Major and minor version."""
    runtimes: dict[RuntimeKind, str]
    """But the null runtime."""
    onnx: OnnxVersions | None
    """What its onnxruntime reads."""
    providers: tuple[str, ...] = PROVIDERS[:1]
    """Of its onnxruntime: those that load there, the CPU's last."""
    thermal: Thermal = _NO_SENSORS


def of_this_machine(*, root: Path = Path("/")) -> Survey:
    """Look this machine over; `root` is where /proc and /sys are. Errors: `Refused`."""
    cpuinfo = _text(root / "proc/cpuinfo")
    runtimes = installed_runtimes()
    runtimes.pop(RuntimeKind.NULL, None)
    version = runtimes.get(RuntimeKind.ONNXRUNTIME)
    return Survey(
        board=_text(root / "proc/device-tree/model").strip("\0\n ")
        or _text(root / "sys/class/dmi/id/product_name").strip(),
        platform=Platform.ANDROID if "ANDROID_ROOT" in os.environ else Platform.LINUX,
        arch=_arch(platform.machine(), pointer_bytes=struct.calcsize("P")),
        core=core_of(cpuinfo),
        cores=os.cpu_count() or 1,
        features=read_features(cpuinfo),
        ram_bytes=_ram_bytes(_text(root / "proc/meminfo")),
        clock_mhz=_clock_mhz(root),
        python=".".join(platform.python_version_tuple()[:2]),
        runtimes=runtimes,
        onnx=(_loaded_onnx() or newest_onnx(version)) if version is not None else None,
        providers=_loaded_providers(),
        thermal=_thermal(root),
    )


def of_device(facts: DeviceFacts) -> Survey:
    """What a device said of itself. Errors: `Refused`."""
    runtimes: dict[RuntimeKind, str] = {}
    for name, told in facts.runtimes.items():
        with contextlib.suppress(ValueError):  # of an agent that is newer than this
            runtimes[RuntimeKind(name)] = told
    runtimes.pop(RuntimeKind.NULL, None)
    version = runtimes.get(RuntimeKind.ONNXRUNTIME)
    return Survey(
        board=facts.board,
        platform=Platform.ANDROID if facts.platform == "android" else Platform.LINUX,
        arch=_arch(facts.arch, pointer_bytes=8),
        core=facts.core,
        cores=facts.cores,
        features=facts.features,
        ram_bytes=facts.ram_bytes,
        python=".".join(facts.python.split(".")[:2]),
        runtimes=runtimes,
        onnx=newest_onnx(version) if version is not None else None,
    )


def _arch(machine: str, *, pointer_bytes: int) -> Arch:
    """A 32-bit system may run a 64-bit kernel, and `uname -m` speaks of the kernel."""
    if machine == Arch.AARCH64.value and pointer_bytes == 4:
        return Arch.ARMV7
    try:
        return Arch(machine)
    except ValueError:
        known = ", ".join(arch.value for arch in Arch)
        raise Refused(
            f"this machine is {machine or 'of no known architecture'}; profiles are for {known}."
        ) from None


def _ram_bytes(meminfo: str) -> int:
    for line in meminfo.splitlines():
        name, _, value = line.partition(":")
        if name == "MemTotal":
            return int(value.split()[0]) * 1024
    return 0


def _clock_mhz(root: Path) -> int | None:
    """The greatest that any core may run at (kernel, Documentation/admin-guide/pm/cpufreq.rst)."""
    found = []
    for path in (root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/cpuinfo_max_freq"):
        if (text := _text(path).strip()).isdigit():
            found.append(int(text) // 1000)
    return max(found, default=0) or None


def _thermal(root: Path) -> Thermal:
    zones, limits_c = [], []
    for number in range(_MAX_ZONES):
        zone = root / f"sys/class/thermal/thermal_zone{number}"
        if not _PROCESSOR_ZONE.search(_text(zone / "type")) or not _text(zone / "temp").strip():
            continue
        zones.append(f"/sys/class/thermal/thermal_zone{number}/temp")
        limits_c += _passive_trips_c(zone)
    temperature = zones[:_MOST_ZONES] or [p for p in _HARDWARE_MONITORS if _matches(root, p)]
    return Thermal(
        temperature=tuple(temperature),
        throttled=tuple(pattern for pattern in _THROTTLED if _matches(root, pattern)),
        limit_c=min(limits_c, default=None),
    )


def _passive_trips_c(zone: Path) -> list[int]:
    """Where the kernel begins to slow the processor (kernel, driver-api/thermal/sysfs-api.rst)."""
    found = []
    for kind in sorted(zone.glob("trip_point_*_type")):
        if _text(kind).strip() == "passive":
            text = _text(kind.with_name(kind.name.replace("_type", "_temp"))).strip()
            if text.isdigit() and int(text) // 1000 in _PLAUSIBLE_LIMIT_C:
                found.append(int(text) // 1000)
    return found


def _matches(root: Path, pattern: str) -> bool:
    return any(_text(path).strip() for path in root.glob(pattern.lstrip("/")))


def _loaded_onnx() -> OnnxVersions | None:
    """The newest IR version and opset that the installed onnxruntime loads, by loading them; None
    where the `onnx` package, which writes such models, is not there."""
    try:
        import onnx
        import onnxruntime
    except ImportError:
        return None

    def loads(ir: int, opset: int) -> bool:
        value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
        out = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
        node = onnx.helper.make_node("Identity", ["x"], ["y"])
        model = onnx.helper.make_model(
            onnx.helper.make_graph([node], "g", [value], [out]),
            opset_imports=[onnx.helper.make_opsetid("", opset)],
            ir_version=ir,
        )
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        try:
            onnxruntime.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except Exception:  # of onnxruntime's own classes; that it refuses is the answer
            return False
        return True

    ir, opset = 8, 13
    if not loads(ir, opset):
        return None
    while opset < _MOST_OPSET and loads(ir, opset + 1):
        opset += 1
    while ir < _MOST_OPSET and loads(ir + 1, opset):
        ir += 1
    return ir, opset


def _loaded_providers() -> tuple[str, ...]:
    """A list of what onnxruntime was built with does not say that a driver is there, too."""
    try:
        import onnxruntime
    except ImportError:
        return PROVIDERS[:1]
    libraries = Path(onnxruntime.__file__).parent / "capi"
    built_with = onnxruntime.get_available_providers()
    return tuple(
        name
        for name in reversed(PROVIDERS)
        if name in built_with and why_not_loaded(name, libraries) is None
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
