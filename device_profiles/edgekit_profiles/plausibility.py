"""What is wrong with a profile: every mistake, a sentence each. Pure.

First its form: members, types, names, with a near match for what is misspelled. Where that holds, a
table of rules asks whether such a machine can be.
"""

from __future__ import annotations

import difflib
import re
import typing
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from typing import Any, Final

import msgspec

from edgekit_contract import limits, names
from edgekit_contract.compatibility import version_tuple
from edgekit_contract.cores import ANY_CORE, ARM_LEVELS, FEATURES_OF, IMPLIED, lacking
from edgekit_contract.errors import EdgekitError
from edgekit_contract.profile import FEATURES, PROVIDERS, Arch, Profile, Runtime, RuntimeKind
from edgekit_profiles.onnx_versions import most_onnx

__all__ = ["mistakes", "near"]

_CLOCK_MHZ: Final = range(100, 10_001)
_LIMIT_C: Final = range(30, 126)
_LEAST_RAM_MIB: Final = 64
_MOST_RAM_MIB: Final = 1 << 24
_LEAST_PYTHON: Final = (3, 10)
_PYTHON: Final = re.compile(r"3\.\d{1,2}\Z")
_VERSION: Final = re.compile(r"\d{1,5}(\.\d{1,5}){0,3}[0-9A-Za-z.+-]{0,20}\Z")
_LIKENESS: Final = 0.6
_OTHER_WORDS: Final = {
    "arm64": "aarch64",
    "amd64": "x86_64",
    "armhf": "armv7l",
    "tflite": "litert",
    "onnx": "onnxruntime",
    "ort": "onnxruntime",
}
_SLIP: Final = 0.9
"""So like a name that it must be meant: onnxruntime has providers that are not listed here."""
_ON_GPU: Final = frozenset({"CUDAExecutionProvider", "TensorrtExecutionProvider"})


def mistakes(text: bytes) -> list[str]:
    """All that is wrong with the TOML of a profile, a sentence each; empty if nothing is."""
    try:
        plain = msgspec.toml.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return [f"it is not TOML: {error}."]
    found = list(_form(plain, Profile, ""))
    if found:
        return found
    profile = msgspec.convert(plain, Profile)
    return [sentence for rule in _RULES for sentence in rule(profile)]


def near(word: str, known: Sequence[str]) -> str:
    """`; did you mean X?`, or nothing where nothing is like it."""
    found = [name for name in known if name == _OTHER_WORDS.get(word)]
    found += difflib.get_close_matches(word, known, n=1, cutoff=_LIKENESS)
    return f"; did you mean {found[0]}?" if found else "."


def _form(plain: Any, kind: type[msgspec.Struct], where: str) -> Iterator[str]:
    """Mistakes of a table that is to be a `kind`; `where` is its place, with a dot at the end."""
    place = f"[{where.rstrip('.')}]" if where else "it"
    if not isinstance(plain, dict):
        yield f"{where.rstrip('.')} is no table."
        return
    types = typing.get_type_hints(kind, include_extras=True)
    fields = {field.name: field for field in msgspec.structs.fields(kind)}
    for name in plain.keys() - fields.keys():
        yield f"{place} has the unknown member {name[:80]!r}{near(name, list(fields))}"
    for name, field in fields.items():
        if name not in plain:
            if field.required:
                yield f"{place} lacks {name}."
            continue
        yield from _member(plain[name], types[name], f"{where}{name}")


def _member(value: Any, kind: Any, where: str) -> Iterator[str]:
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        yield from _form(value, kind, f"{where}.")
        return
    item = typing.get_args(kind)[0] if typing.get_origin(kind) is tuple else None
    if isinstance(value, list) and isinstance(item, type) and issubclass(item, msgspec.Struct):
        for index, one in enumerate(value):
            yield from _form(one, item, f"{where}.{index}.")
        return
    if isinstance(kind, type) and issubclass(kind, Enum) and isinstance(value, str):
        known = [member.value for member in kind]
        try:
            kind(value)
        except ValueError:
            yield f"{where} is {value[:80]!r}, none of {', '.join(known)}{near(value, known)}"
        return
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        said = str(error).partition(" - at ")[0]
        yield f"{where}: {said[:1].lower()}{said[1:]}."


def _names(profile: Profile) -> Iterator[str]:
    try:
        names.profile_name(profile.name)
    except EdgekitError as error:
        yield f"name: {error}"
    if not profile.title.isprintable():
        yield "title has characters that are no text: write it in one line."
    if not profile.runtimes:
        yield "it lists no runtime: add a [[runtimes]] table."
    kinds = [runtime.kind for runtime in profile.runtimes]
    for kind in dict.fromkeys(kind for kind in kinds if kinds.count(kind) > 1):
        yield f"it lists the runtime {kind.value} twice: keep one [[runtimes]] table of each kind."


def _features(profile: Profile) -> Iterator[str]:
    cpu = profile.cpu
    possible, have = FEATURES_OF[cpu.arch], frozenset(cpu.features)
    for feature in sorted(have - FEATURES):
        yield f"cpu.features has the unknown {feature[:80]!r}{near(feature, sorted(possible))}"
    for feature in sorted(have & FEATURES - possible):
        yield f"cpu.features has {feature}, which no {cpu.arch.value} has: remove it."
    for feature in lacking(cpu.core, have & possible):
        yield f"cpu.features has {feature}, which a {cpu.core} lacks: remove it or name the core."
    for feature in sorted(have & possible & IMPLIED.keys()):
        if (other := IMPLIED[feature]) not in have:
            yield f"cpu.features has {feature} without {other}, which no processor does: add it."


def _core(profile: Profile) -> Iterator[str]:
    cpu = profile.cpu
    if cpu.arch is Arch.X86_64:
        if cpu.core in ARM_LEVELS:
            yield f"cpu.core is {cpu.core}, an ARM core, and cpu.arch is {cpu.arch.value}."
        return
    known = sorted({*ARM_LEVELS, *ANY_CORE})
    if cpu.core not in known and not cpu.core.startswith("0x"):
        yield f"cpu.core is {cpu.core[:80]!r}, which is not known{near(cpu.core, known)}"


def _sizes(profile: Profile) -> Iterator[str]:
    cpu, memory, budget = profile.cpu, profile.memory, profile.budget
    if not _LEAST_RAM_MIB <= memory.ram_mib <= _MOST_RAM_MIB:
        yield f"memory.ram_mib is {memory.ram_mib}: it is in MiB, and 1 GB is 1024."
    if budget.ram_mib > memory.ram_mib:
        yield (
            f"budget.ram_mib is {budget.ram_mib}, more than the {memory.ram_mib} MiB that there "
            "are: leave some to the system."
        )
    if budget.bundle_mib << 20 > limits.MAX_BUNDLE_BYTES + 1:
        yield f"budget.bundle_mib is {budget.bundle_mib}, a bundle holds at most 4096 MiB."
    if cpu.clock_mhz is not None and cpu.clock_mhz not in _CLOCK_MHZ:
        yield f"cpu.clock_mhz is {cpu.clock_mhz}: it is in MHz, and 1.5 GHz is 1500."
    if cpu.cores > limits.MAX_THREADS:
        yield f"cpu.cores is {cpu.cores}: count the cores, not the machines."


def _runtimes(profile: Profile) -> Iterator[str]:
    for runtime in profile.runtimes:
        where = f"runtimes.{runtime.kind.value}"
        if runtime.threads > profile.cpu.cores:
            yield (
                f"{where} has {runtime.threads} threads, the machine {profile.cpu.cores} cores: "
                "more threads than cores wait for each other."
            )
        if not _VERSION.match(runtime.version):
            yield f"{where}.version is {runtime.version[:40]!r}: say one such as 1.32.0."
        if not _PYTHON.match(runtime.python):
            yield f'{where}.python is {runtime.python[:40]!r}: say major.minor, such as "3.11".'
        elif version_tuple(runtime.python) < _LEAST_PYTHON:
            yield f"{where}.python is {runtime.python}; the agent needs 3.10 or newer."
        yield from _onnx(runtime, where)
        yield from _providers(profile, runtime, where)


def _onnx(runtime: Runtime, where: str) -> Iterator[str]:
    told = {"max_ir": runtime.max_ir, "max_opset": runtime.max_opset}
    if runtime.kind is not RuntimeKind.ONNXRUNTIME:
        if runtime.minimal:
            yield f"{where}.minimal is for onnxruntime alone: remove it."
        for name in (name for name, value in told.items() if value is not None):
            yield f"{where}.{name} is for onnxruntime alone: remove it."
        return
    for name in (name for name, value in told.items() if value is None):
        yield f"{where} lacks {name}: without it nothing stops a model that is too new."
    most = most_onnx(runtime.version) if _VERSION.match(runtime.version) else None
    for (name, value), known in zip(told.items(), most or (), strict=False):
        if value is not None and value > known:
            yield f"{where}.{name} is {value}, onnxruntime {runtime.version} reads up to {known}."


def _providers(profile: Profile, runtime: Runtime, where: str) -> Iterator[str]:
    if runtime.kind is not RuntimeKind.ONNXRUNTIME:
        if runtime.providers != PROVIDERS[:1]:
            yield f"{where}.providers are ONNX Runtime's: remove them."
        if runtime.kind.is_plugin and not runtime.wheel:
            yield f"{where} lacks wheel: say where a device gets the plug-in."
        return
    for provider in runtime.providers:
        if provider in PROVIDERS:
            continue
        likely = [other for other in PROVIDERS if other.casefold() == provider.casefold()]
        likely += difflib.get_close_matches(provider, PROVIDERS, n=1, cutoff=_SLIP)
        if likely or not provider.endswith("ExecutionProvider"):
            hint = f"; did you mean {likely[0]}?" if likely else near(provider, PROVIDERS)
            yield f"{where}.providers has the unknown {provider[:80]!r}{hint}"
    on_gpu = sorted(_ON_GPU.intersection(runtime.providers))
    if on_gpu and profile.cpu.arch is Arch.AARCH64 and not runtime.wheel:
        yield (
            f"{where} asks for {on_gpu[0]} and PyPI has no such wheel for aarch64: say in wheel "
            "where a device gets one."
        )


def _thermal(profile: Profile) -> Iterator[str]:
    thermal = profile.thermal
    for name, patterns in (("temperature", thermal.temperature), ("throttled", thermal.throttled)):
        for pattern in patterns:
            if not pattern.startswith("/"):
                yield f"thermal.{name} has {pattern[:80]!r}: give the pattern of an absolute path."
    if thermal.limit_c is not None and thermal.limit_c not in _LIMIT_C:
        yield f"thermal.limit_c is {thermal.limit_c}: it is in degrees C."


Rule: typing.TypeAlias = Callable[[Profile], Iterator[str]]

_RULES: Final[tuple[Rule, ...]] = (_names, _core, _features, _sizes, _runtimes, _thermal)
