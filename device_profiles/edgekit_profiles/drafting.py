"""From a survey to a profile, and from a profile to its TOML. Pure.

Invariant: what `render` writes parses to the same profile, and `plausibility.mistakes` has nothing
to say of what `draft` makes, unless the survey has a core or sizes that nobody knows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from edgekit_contract import limits, names
from edgekit_contract.cores import FEATURES_OF, IMPLIED, lacking
from edgekit_contract.errors import Misused, Refused
from edgekit_contract.profile import (
    PROVIDERS,
    Arch,
    Budget,
    Cpu,
    Memory,
    Profile,
    Runtime,
    RuntimeKind,
    parse_profile,
)
from edgekit_profiles.survey import Survey

__all__ = ["draft", "render"]

_MOST_THREADS: Final = 4
"""More seldom help a model for a small device, and one cluster of cores has no more."""
_SOLD_SHARE: Final = 0.85
"""The kernel keeps some memory for itself and the GPU: it shows no less than this."""
_LEAST_CORE: Final = {
    Arch.AARCH64: "cortex-a53",
    Arch.ARMV7: "cortex-a7",
    Arch.X86_64: "x86-64",
}
_MOST_BUNDLE_MIB: Final = 2048
_LEAST_PYTHON: Final = "3.10"


def draft(survey: Survey, name: str | None, *, taken: frozenset[str] = frozenset()) -> Profile:
    """A profile of the surveyed machine. Without a name it is called after its board, but not as
    one of `taken`. Errors: `Refused` where it has no runtime; `Misused` for a name that is none, or
    taken."""
    if name in taken:
        raise Misused(f"{name} is a profile that edgekit ships: choose another name.")
    if not survey.runtimes:
        raise Refused(
            "no runtime is installed there: pip install 'edgekit[onnx]' or 'edgekit[tflite]' in "
            "the Python that models will run in, and make the profile again."
        )
    ram_mib = _sold_mib(max(1, survey.ram_bytes >> 20))
    core = _plain(survey.core) or _LEAST_CORE[survey.arch]
    profile = Profile(
        name=names.profile_name(name) if name is not None else _own_name(survey, taken),
        title=_plain(survey.board) or f"{survey.platform.value.title()} on {survey.arch.value}",
        platform=survey.platform,
        cpu=Cpu(
            arch=survey.arch,
            core=core,
            cores=min(max(1, survey.cores), limits.MAX_THREADS),
            features=_sound_features(survey, core),
            clock_mhz=survey.clock_mhz,
        ),
        memory=Memory(ram_mib=ram_mib),
        runtimes=tuple(_runtimes(survey)),
        thermal=survey.thermal,
        budget=Budget(
            bundle_mib=min(max(16, ram_mib // 8), _MOST_BUNDLE_MIB),
            ram_mib=max(1, ram_mib * 3 // 8),
        ),
    )
    if parse_profile(render(profile, source="").encode(), source="the draft") != profile:
        raise RuntimeError("a drafted profile does not parse to itself")
    return profile


def _runtimes(survey: Survey) -> Iterator[Runtime]:
    for kind, version in survey.runtimes.items():
        is_onnx = kind is RuntimeKind.ONNXRUNTIME
        onnx = survey.onnx if is_onnx else None
        providers = survey.providers if is_onnx else PROVIDERS[:1]
        yield Runtime(
            kind=kind,
            version=_plain(version) or "0",
            python=_plain(survey.python) or _LEAST_PYTHON,
            threads=max(1, min(_MOST_THREADS, survey.cores)),
            providers=providers,
            wheel=_wheel(kind, providers),
            max_ir=onnx[0] if onnx else None,
            max_opset=onnx[1] if onnx else None,
        )


def _wheel(kind: RuntimeKind, providers: tuple[str, ...]) -> str:
    if kind.is_plugin:
        return f"the runtime plug-in {kind.value}"
    if providers != PROVIDERS[:1]:
        return f"the build of {kind.value} that was on the machine of this profile"
    return ""


def _sound_features(survey: Survey, core: str) -> tuple[str, ...]:
    """Those that such a core can have: what is told wrongly is not promised."""
    found = FEATURES_OF[survey.arch].intersection(survey.features)
    found -= set(lacking(core, found))
    while lame := {name for name in found if name in IMPLIED and IMPLIED[name] not in found}:
        found -= lame
    return tuple(sorted(found))


def _sold_mib(shown_mib: int) -> int:
    """The amount that memory is sold in (powers of two, and half as much again) which the kernel
    shows as `shown_mib`, or `shown_mib` itself where there is none, as in a virtual machine."""
    power = 1 << (shown_mib - 1).bit_length()
    sold = power * 3 // 4 if power * 3 // 4 >= shown_mib else power
    return sold if shown_mib >= sold * _SOLD_SHARE else shown_mib


def _own_name(survey: Survey, taken: frozenset[str]) -> str:
    words = re.sub(r"[^a-z0-9]+", "-", survey.board.lower()).strip("-")[:48].strip("-")
    name = words or f"{survey.platform.value}-{survey.arch.value}".replace("_", "-")
    if name in taken:
        name = f"{name}-own"
    try:
        return names.profile_name(name)
    except Misused:  # a board without a letter to its name
        return "own-device"


def _plain(text: str) -> str:
    """A vendor's text, which may hold anything."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:100]


def render(profile: Profile, *, source: str) -> str:
    """The TOML of a profile, with what it is from in its first line. What is as by default, and is
    no fact, is left out."""
    plain: dict[str, Any] = msgspec.to_builtins(profile)
    lines = [f"# {_plain(source)}"] if source else []
    lines += _members(plain, ("name", "title", "platform"))
    for table in ("cpu", "memory"):
        lines += ["", f"[{table}]", *_members(plain[table])]
    for runtime in plain["runtimes"]:
        if runtime["kind"] != RuntimeKind.ONNXRUNTIME.value:
            del runtime["providers"]
        lines += ["", "[[runtimes]]", *_members(runtime)]
    for table in ("thermal", "budget"):
        if members := _members(plain[table]):
            lines += ["", f"[{table}]", *members]
    return "\n".join(lines) + "\n"


def _members(table: dict[str, Any], chosen: tuple[str, ...] | None = None) -> list[str]:
    return [
        f"{name} = {_value(table[name])}"
        for name in chosen or table
        if table[name] not in (None, "", False, [], ())
    ]


def _value(value: Any) -> str:
    """TOML 1.0 spells strings without surrogates, integers and arrays as JSON does."""
    return json.dumps(value, ensure_ascii=False)
