"""A profile: what a kind of device has and allows. Parsed once from TOML, a value ever after."""

from __future__ import annotations

import difflib
import enum
import re
from typing import Annotated, Final, TypeAlias

import msgspec

from edgekit_contract import names
from edgekit_contract.errors import EdgekitError, Misused

__all__ = [
    "FEATURES",
    "PLUGIN_PATTERN",
    "PROVIDERS",
    "VNNI",
    "Arch",
    "Budget",
    "Cpu",
    "Memory",
    "Platform",
    "Profile",
    "Runtime",
    "RuntimeKind",
    "Thermal",
    "parse_profile",
    "read_features",
]


Positive: TypeAlias = Annotated[int, msgspec.Meta(ge=1)]


class Arch(enum.Enum):
    X86_64 = "x86_64"
    AARCH64 = "aarch64"
    ARMV7 = "armv7l"


class RuntimeKind(enum.Enum):
    """What runs a model: one of edgekit's own, or a plug-in by its name (docs/runtimes.md).

    `RuntimeKind("hailo")` is the plug-in of that name, the same value each time; iteration gives
    edgekit's own. Whether a plug-in is installed, `edgekit_runtime.session` knows.
    """

    ONNXRUNTIME = "onnxruntime"
    LITERT = "litert"
    NULL = "null"
    """Computes a checksum of its input: tests the stack where no runtime is installed."""

    @classmethod
    def _missing_(cls, value: object) -> RuntimeKind | None:
        if not isinstance(value, str) or not _PLUGIN.match(value) or _nearly(value):
            return None
        member = object.__new__(cls)
        member._name_ = member._value_ = value
        return cls._value2member_map_.setdefault(value, member)  # type: ignore[return-value]

    @property
    def is_plugin(self) -> bool:
        return self.name not in RuntimeKind.__members__


PLUGIN_PATTERN: Final = r"\A[a-z][a-z0-9]{0,15}(?:-[a-z0-9]{1,16})?\Z"
_PLUGIN: Final = re.compile(PLUGIN_PATTERN)
_LIKENESS: Final = 0.8
_OTHER_WORDS: Final = frozenset({"onnx", "ort", "tflite"})


def _nearly(value: str) -> bool:
    """Whether a name is so near one of edgekit's own that it must be meant, and is a mistake."""
    own = [kind.value for kind in RuntimeKind]
    return value in _OTHER_WORDS or bool(
        difflib.get_close_matches(value, own, n=1, cutoff=_LIKENESS)
    )


class Platform(enum.Enum):
    LINUX = "linux"
    ANDROID = "android"


FEATURES: Final = frozenset(
    # x86-64, as /proc/cpuinfo `flags` spells them
    "sse4_1 sse4_2 avx avx2 fma f16c avx512f avx512bw avx512vl avx512_vnni avx_vnni avx512_bf16 "
    "amx_tile amx_int8 "
    # ARM, as /proc/cpuinfo `Features` spells them
    "neon vfpv4 asimd fphp asimdhp asimdrdm asimddp i8mm bf16 sve sve2 aes sha2 crc32 atomics "
    "fcma".split()
)
"""The ISA features that kernels care about: what profiles list, bundles require, devices report."""

VNNI: Final = frozenset({"avx512_vnni", "avx_vnni"})
"""x86-64 dot products of 8 bits, either of which sums in 32 bits: nothing saturates."""


def read_features(cpuinfo: str) -> tuple[str, ...]:
    """Those of `FEATURES` that every processor of a `/proc/cpuinfo` text has, sorted: a model may
    run on any of them."""
    found = [
        FEATURES.intersection(value.split())
        for label, _, value in (line.partition(":") for line in cpuinfo.splitlines())
        if label.strip() in ("flags", "Features")
    ]
    return tuple(sorted(frozenset.intersection(*found))) if found else ()


class Cpu(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    arch: Arch
    core: str
    """Microarchitecture as `qemu -cpu` names it where it can (`cortex-a72`), else the vendor's."""
    cores: Positive
    features: tuple[str, ...] = ()
    clock_mhz: Positive | None = None

    @property
    def int8_saturates(self) -> bool:
        """Whether U8S8 products may saturate in 16 bits (x86 `vpmaddubsw` without VNNI)."""
        return self.arch is Arch.X86_64 and not VNNI & set(self.features)


class Memory(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    ram_mib: Positive


PROVIDERS: Final = (
    "CPUExecutionProvider",
    "XnnpackExecutionProvider",
    "CUDAExecutionProvider",
    "TensorrtExecutionProvider",
)
"""ONNX Runtime's execution providers that edgekit knows how to set up, the fastest last; others get
no options."""


class Runtime(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One runtime that the device can install, and the newest model format that it loads."""

    kind: RuntimeKind
    version: str
    python: str
    """Python version whose wheel it is, such as "3.11"."""
    threads: Positive
    providers: tuple[str, ...] = (PROVIDERS[0],)
    """ONNX Runtime's, in order of preference; the CPU's runs what no other takes."""
    wheel: str = ""
    """Where the device gets it, for a person, where `pip install` alone does not."""
    minimal: bool = False
    """It is a minimal build of onnxruntime, which reads no ONNX, only onnxruntime's own format."""
    max_ir: Positive | None = None
    """Greatest ONNX IR version; None where the runtime does not read ONNX."""
    max_opset: Positive | None = None

    def int8_saturates(self, cpu: Cpu) -> bool:
        """As `Cpu.int8_saturates`, with what this runtime has of the core: a minimal build of
        onnxruntime has no AVX-512 (onnxruntime/core/mlas/lib/platform.cpp)."""
        if self.minimal and cpu.arch is Arch.X86_64:
            return "avx_vnni" not in cpu.features
        return cpu.int8_saturates


class Thermal(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the device tells its temperature and throttling: shell patterns of absolute paths."""

    temperature: tuple[str, ...] = ()
    """Files that hold millidegrees C; the greatest that can be read is the temperature."""
    throttled: tuple[str, ...] = ()
    """Files that hold a hexadecimal word; the first that can be read counts. The device is
    throttled now where any of the low four bits is set: the higher ones say that it once was."""
    limit_c: int | None = None
    """Where the device begins to throttle itself."""


class Budget(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What edgekit may use of the device; a bundle over it is refused when planning."""

    bundle_mib: Positive
    ram_mib: Positive


class Profile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: str
    title: str
    platform: Platform
    cpu: Cpu
    memory: Memory
    runtimes: tuple[Runtime, ...]
    thermal: Thermal = Thermal()
    budget: Budget

    def runtime(self, kind: RuntimeKind) -> Runtime | None:
        """The profile's runtime of this kind, or None."""
        return next((r for r in self.runtimes if r.kind is kind), None)


def parse_profile(text: bytes, *, source: str) -> Profile:
    """Parse a profile's TOML.

    Errors: `Misused` naming `source` and the field that is wrong.
    """
    try:
        profile = msgspec.toml.decode(text, type=Profile)
        names.profile_name(profile.name)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, EdgekitError) as error:
        raise Misused(
            f"{source} is not a profile: {error} (edgekit profiles check lists all that is wrong)."
        ) from error
    unknown = sorted(set(profile.cpu.features) - FEATURES)
    if unknown:
        raise Misused(f"{source} lists the unknown CPU features {', '.join(unknown)}: remove them.")
    if not profile.runtimes:
        raise Misused(f"{source} lists no runtime: add a [[runtimes]] table.")
    if len({runtime.kind for runtime in profile.runtimes}) != len(profile.runtimes):
        raise Misused(f"{source} lists a runtime twice: keep one [[runtimes]] table of each kind.")
    return profile
