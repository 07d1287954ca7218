"""The demo's profiles follow the machine that it runs on."""

from __future__ import annotations

import pytest

import edgekit_profiles
from edgekit.build.host import parse_cpuinfo, read_host
from edgekit.demo.devices import DEVICES, NoProfile, device_profiles, small_profile
from edgekit_contract.profile import Arch, parse_profile

HASWELL = ('flags: fpu sse4_1 avx avx2 fma\nmodel name: A "quoted" \\1 CPU \u00ae', "x86_64")
EPYC = ("flags: avx avx2 fma avx512f avx512_vnni\nmodel name: AMD EPYC", "x86_64")
PI5 = ("Features: fp asimd asimddp\nCPU part: 0xd0b", "aarch64")
UNKNOWN = ("Features: fp asimd sve\nCPU part: 0xfff", "aarch64")


@pytest.mark.parametrize(("cpuinfo", "arch"), [HASWELL, EPYC, PI5, UNKNOWN])
def test_small_device_is_of_exactly_this_machine_s_isa(cpuinfo: str, arch: str) -> None:
    host = parse_cpuinfo(cpuinfo, arch=arch, cores=2)
    profile = parse_profile(small_profile(host), source="small")
    assert host.is_of(profile.cpu)
    assert profile.cpu.int8_saturates == host.int8_saturates
    shipped = edgekit_profiles.load("demo-small")
    assert profile.name == shipped.name
    assert (profile.runtimes, profile.budget) == (shipped.runtimes, shipped.budget)
    assert {runtime.threads for runtime in profile.runtimes} == {1}


@pytest.mark.parametrize(
    ("cpuinfo", "arch", "generic"),
    [(*HASWELL, "linux-x86-64"), (*PI5, "linux-arm64")],
)
def test_other_device_is_the_generic_one_of_the_architecture(
    cpuinfo: str, arch: str, generic: str
) -> None:
    texts = device_profiles(parse_cpuinfo(cpuinfo, arch=arch, cores=2))
    assert tuple(texts) == DEVICES
    parsed = {device: parse_profile(text, source=device) for device, text in texts.items()}
    assert [profile.name for profile in parsed.values()] == ["demo-small", "demo-small", generic]
    assert {profile.cpu.arch for profile in parsed.values()} == {Arch(arch)}


def test_machine_without_a_generic_profile_is_refused() -> None:
    with pytest.raises(NoProfile, match="riscv64"):
        device_profiles(parse_cpuinfo("", arch="riscv64", cores=2))


def test_small_device_of_this_machine_can_be_built_for_here() -> None:
    assert read_host().is_of(parse_profile(small_profile(read_host()), source="small").cpu)
