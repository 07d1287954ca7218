"""What is wrong with a profile is said at once, a sentence for each mistake; what is sound, is."""

from __future__ import annotations

from typing import Any

import jsonschema
import msgspec
import pytest

import edgekit_profiles
from edgekit_contract.cores import ARM_LEVELS, lacking
from edgekit_contract.profile import parse_profile
from edgekit_profiles.plausibility import mistakes
from edgekit_profiles.schema import json_schema

PI4 = edgekit_profiles.text("raspberry-pi-4").decode()
SHIPPED = edgekit_profiles.names()


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_profiles_have_no_mistake_and_fit_the_schema(name: str) -> None:
    text = edgekit_profiles.text(name)
    assert mistakes(text) == []
    jsonschema.validate(msgspec.toml.decode(text), json_schema())


PROVIDERS = 'providers = ["{}"]\nmax_ir = 14'
MISTAKES = {
    ("cores = 4", "cors = 4"): "[cpu] has the unknown member 'cors'; did you mean cores?",
    ("cores = 4", ""): "[cpu] lacks cores.",
    ("[memory]", "[memroy]"): "it has the unknown member 'memroy'; did you mean memory?",
    ("cores = 4", 'cores = "4"'): "cpu.cores: expected `int`, got `str`.",
    ("cores = 4", "cores = 0"): "cpu.cores: expected `int` >= 1.",
    ('arch = "aarch64"', 'arch = "arm64"'): "cpu.arch is 'arm64', none of x86_64, aarch64, armv7l; "
    "did you mean aarch64?",
    ('kind = "litert"', 'kind = "lite-rt"'): "runtimes.1.kind is 'lite-rt', none of onnxruntime, "
    "litert, null; did you mean litert?",
    ('name = "raspberry-pi-4"', 'name = "Pi 4"'): "name: 'Pi 4' is not a profile name",
    ('"crc32"', '"crc23"'): "cpu.features has the unknown 'crc23'; did you mean crc32?",
    ('"crc32"', '"avx2"'): "cpu.features has avx2, which no aarch64 has",
    ('"crc32"', '"asimddp"'): "asimddp, which a cortex-a72 lacks",
    ('"asimd"', '"asimddp"'): "asimddp without asimd, which no processor does",
    ('"cortex-a72"', '"cortex-a27"'): "core is 'cortex-a27', which is not known; did you mean",
    ("clock_mhz = 1500", "clock_mhz = 2"): "it is in MHz, and 1.5 GHz is 1500",
    ("threads = 4", "threads = 8"): "has 8 threads, the machine 4 cores",
    ("ram_mib = 768", "ram_mib = 4096"): "budget.ram_mib is 4096, more than the 2048 MiB",
    ("ram_mib = 2048", "ram_mib = 8"): "memory.ram_mib is 8: it is in MiB",
    ("ram_mib = 2048", "ram_mib = 99999999999"): "memory.ram_mib is 99999999999: it is in MiB",
    ("bundle_mib = 256", "bundle_mib = 9000"): "a bundle holds at most 4096 MiB",
    ("max_opset = 28", ""): "lacks max_opset",
    ("max_opset = 28", "max_opset = 29"): "is 29, onnxruntime 1.32.0 reads up to 28",
    ('python = "3.11"', 'python = "3.9"'): "python is 3.9; the agent needs 3.10 or newer",
    ('version = "1.32.0"', 'version = "newest"'): "is 'newest': say one such as 1.32.0",
    ("max_ir = 14", PROVIDERS.format("CudaExecutionProvider")): "the unknown "
    "'CudaExecutionProvider'; did you mean CUDAExecutionProvider?",
    ("max_ir = 14", PROVIDERS.format("CUDAExecutionProvider")): "PyPI has no such wheel for "
    "aarch64: say in wheel",
    ('kind = "litert"', 'kind = "hailo"'): "runtimes.hailo lacks wheel",
    ('kind = "litert"', 'kind = "onnxruntime"'): "lists the runtime onnxruntime twice",
    ('kind = "litert"', 'kind = "litert"\nmax_ir = 3'): "litert.max_ir is for onnxruntime alone",
    ('["/sys/class', '["sys/class'): "give the pattern of an absolute path",
    ("limit_c = 80", "limit_c = 80000"): "thermal.limit_c is 80000: it is in degrees C",
    ("[budget]", "[budget"): "it is not TOML: ",
}


@pytest.mark.parametrize("edit", MISTAKES, ids=" to ".join)
def test_each_mistake_has_its_sentence(edit: tuple[str, str]) -> None:
    assert edit[0] in PI4
    found = mistakes(PI4.replace(*edit).encode())
    assert any(MISTAKES[edit] in sentence for sentence in found), found


def test_a_table_that_is_none_is_said() -> None:
    assert "cpu is no table." in mistakes(b'name = "a"\ncpu = 1\n')


def test_all_mistakes_are_said_at_once() -> None:
    text = PI4.replace("threads = 4", "threads = 9").replace("limit_c = 80", "limit_c = 1")
    assert len(mistakes(text.encode())) == 3, "of both runtimes, and of the limit"


@pytest.mark.parametrize("text", [b"", b"\xff\xfe", b"x = [[[[", b"a = " + b"[" * 9_000])
def test_what_is_no_profile_is_no_crash(text: bytes) -> None:
    assert mistakes(text)


def changed(**members: Any) -> dict[str, Any]:
    plain: dict[str, Any] = msgspec.toml.decode(PI4.encode())
    plain["runtimes"][1] |= members
    return plain


def test_the_schema_takes_plug_ins_and_refuses_what_nothing_takes() -> None:
    jsonschema.validate(changed(kind="hailo", wheel="hailo-edgekit"), json_schema())
    for members in ({"kind": "Not A Name"}, {"threads": 0}, {"treads": 1}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(changed(**members), json_schema())


def test_shipped_cores_are_known_and_lack_none_of_their_features() -> None:
    for name in SHIPPED:
        cpu = parse_profile(edgekit_profiles.text(name), source=name).cpu
        if cpu.arch.value == "aarch64":
            assert cpu.core in ARM_LEVELS
            assert lacking(cpu.core, frozenset(cpu.features)) == []
