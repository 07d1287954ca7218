"""A profile of a machine: what is found is written, what is written is sound and says the same."""

from __future__ import annotations

import dataclasses
import platform
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import edgekit_profiles
from edgekit_contract.errors import Misused, Refused
from edgekit_contract.messages import DeviceFacts
from edgekit_contract.profile import FEATURES, Arch, Platform, RuntimeKind, Thermal, parse_profile
from edgekit_profiles.drafting import draft, render
from edgekit_profiles.plausibility import mistakes
from edgekit_profiles.survey import Survey, of_device, of_this_machine

FEATURES_OF_PI5 = (
    "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop "
    "asimddp"
)
PI5 = f"""processor\t: 0
BogoMIPS\t: 108.00
Features\t: {FEATURES_OF_PI5}
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x4
CPU part\t: 0xd0b
CPU revision\t: 1

Revision\t: c04170
Model\t\t: Raspberry Pi 5 Model B Rev 1.0
"""
FILES = {
    "proc/cpuinfo": PI5,
    "proc/meminfo": "MemTotal:        4135452 kB\nMemFree:  1 kB\n",
    "proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0",
    "sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq": "2400000\n",
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
    "sys/class/thermal/thermal_zone0/temp": "48000\n",
    "sys/class/thermal/thermal_zone0/trip_point_0_type": "critical\n",
    "sys/class/thermal/thermal_zone0/trip_point_0_temp": "110000\n",
    "sys/class/thermal/thermal_zone0/trip_point_1_type": "passive\n",
    "sys/class/thermal/thermal_zone0/trip_point_1_temp": "85000\n",
    "sys/class/thermal/thermal_zone1/type": "cv0-thermal\n",
    "sys/devices/platform/soc@107c/soc@107c:firmware/get_throttled": "0\n",
}


@pytest.fixture
def pi5(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    # reading it would hang a Jetson; a test only notices that it is a directory
    (tmp_path / "sys/class/thermal/thermal_zone1/temp").mkdir()
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    return tmp_path


def test_a_board_is_found_as_it_is(pi5: Path) -> None:
    profile = draft(of_this_machine(root=pi5), None)
    shipped = edgekit_profiles.load("raspberry-pi-5")
    assert profile.name == "raspberry-pi-5-model-b-rev-1-0"
    assert profile.title == "Raspberry Pi 5 Model B Rev 1.0"
    assert (profile.cpu.core, profile.cpu.clock_mhz) == (shipped.cpu.core, shipped.cpu.clock_mhz)
    assert set(profile.cpu.features) == set(shipped.cpu.features)
    assert profile.memory.ram_mib == 4096, "as sold, of which the kernel shows somewhat less"
    assert profile.thermal == Thermal(
        temperature=("/sys/class/thermal/thermal_zone0/temp",),
        throttled=("/sys/devices/platform/soc@*/soc@*:firmware/get_throttled",),
        limit_c=85,
    )


def test_this_machine_has_a_sound_profile_with_what_its_runtimes_read() -> None:
    profile = draft(of_this_machine(), "here")
    assert mistakes(render(profile, source="here").encode()) == []
    runtime = profile.runtime(RuntimeKind.ONNXRUNTIME)
    shipped = edgekit_profiles.load("linux-x86-64").runtime(RuntimeKind.ONNXRUNTIME)
    assert runtime is not None and shipped is not None
    if runtime.version == shipped.version:
        assert (runtime.max_ir, runtime.max_opset) == (shipped.max_ir, shipped.max_opset)
    assert profile.runtime(RuntimeKind.NULL) is None


def test_a_32_bit_system_under_a_64_bit_kernel_is_32_bit(
    pi5: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("struct.calcsize", lambda _: 4)
    assert of_this_machine(root=pi5).arch is Arch.ARMV7


def test_an_unknown_architecture_is_refused(pi5: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    with pytest.raises(Refused, match="riscv64; profiles are for x86_64, aarch64, armv7l"):
        of_this_machine(root=pi5)


def test_a_device_is_described_by_what_it_reported() -> None:
    facts = DeviceFacts(
        profile="jetson-orin-nano",
        arch="aarch64",
        core="cortex-a78ae",
        features=("asimd", "asimddp", "asimdhp", "fphp"),
        cores=6,
        ram_bytes=7_800 << 20,
        board="NVIDIA Jetson Orin Nano",
        python="3.10.12",
        runtimes={"onnxruntime": "1.23.2", "hailo": "4.20", "null": "1.0.0", "Not A Name": "1"},
    )
    profile = draft(of_device(facts), "orin")
    assert profile.memory.ram_mib == 8192
    assert [(r.kind.value, r.version, r.python, r.threads) for r in profile.runtimes] == [
        ("onnxruntime", "1.23.2", "3.10", 4),
        ("hailo", "4.20", "3.10", 4),
    ]
    onnx = profile.runtimes[0]
    assert (onnx.max_ir, onnx.max_opset) == (11, 23)
    assert mistakes(render(profile, source="x").encode()) == []


def test_providers_that_load_are_in_the_profile_and_where_they_are_from() -> None:
    gpu = ("CUDAExecutionProvider", "CPUExecutionProvider")
    survey = dataclasses.replace(of_this_machine(), providers=gpu, arch=Arch.AARCH64, core="")
    text = render(draft(survey, "p"), source="x").encode()
    runtime = parse_profile(text, source="x").runtime(RuntimeKind.ONNXRUNTIME)
    assert runtime is not None and runtime.providers == gpu
    assert mistakes(text) == [], "a wheel for a GPU on ARM says where it is from"


def test_a_machine_without_a_runtime_has_no_profile() -> None:
    facts = DeviceFacts(profile="p", arch="aarch64", cores=1, ram_bytes=1, runtimes={"null": "1"})
    with pytest.raises(Refused, match="no runtime is installed there"):
        draft(of_device(facts), "p")


def test_a_name_that_is_none_is_refused() -> None:
    with pytest.raises(Misused, match="'My Pi' is not a profile name"):
        draft(of_this_machine(), "My Pi")


def test_it_is_not_called_as_a_shipped_profile() -> None:
    survey = of_this_machine()
    name = draft(survey, None).name
    assert draft(survey, None, taken=frozenset({name})).name == f"{name}-own"


anything = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
surveys = st.builds(
    Survey,
    board=anything,
    platform=st.sampled_from(Platform),
    arch=st.sampled_from(Arch),
    core=st.one_of(anything, st.sampled_from(["cortex-a72", "cortex-a76", "cortex-a7"])),
    cores=st.integers(0, 256),
    features=st.lists(st.sampled_from(sorted(FEATURES)), unique=True).map(tuple),
    ram_bytes=st.integers(64 << 20, 1 << 40),
    clock_mhz=st.one_of(st.none(), st.integers(100, 6000)),
    python=st.just("3.11"),
    runtimes=st.just({RuntimeKind.LITERT: "2.3.0"}),
    onnx=st.none(),
    thermal=st.builds(Thermal, temperature=st.just(("/sys/a*/temp",))),
)


@given(surveys)
def test_whatever_a_machine_tells_its_profile_parses_to_itself(survey: Survey) -> None:
    profile = draft(survey, None)
    text = render(profile, source="x").encode()
    assert parse_profile(text, source="x") == profile
    assert [said for said in mistakes(text) if not said.startswith("cpu.core ")] == []


@pytest.mark.parametrize("name", edgekit_profiles.names())
def test_shipped_profiles_render_to_themselves(name: str) -> None:
    profile = edgekit_profiles.load(name)
    assert parse_profile(render(profile, source="").encode(), source="x") == profile
