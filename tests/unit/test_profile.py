"""Profiles: what is shipped is true and whole; what is not a profile is refused by its field."""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path

import onnx
import onnxruntime as ort
import pytest

import edgekit_profiles
from edgekit_contract.compatibility import version_tuple
from edgekit_contract.errors import Misused
from edgekit_contract.profile import (
    FEATURES,
    Arch,
    Profile,
    RuntimeKind,
    parse_profile,
    read_features,
)
from edgekit_profiles import UnknownProfile

SHIPPED = edgekit_profiles.names()
DEMO = edgekit_profiles.text("demo-small")


@pytest.fixture(params=SHIPPED)
def profile(request: pytest.FixtureRequest) -> Profile:
    return edgekit_profiles.load(request.param)


def test_the_promised_profiles_are_shipped() -> None:
    promised = (
        "android-arm64 demo-small jetson-agx-orin jetson-orin-nano linux-arm64 linux-x86-64 "
        "raspberry-pi-3b-plus raspberry-pi-4 raspberry-pi-5 raspberry-pi-zero-2w"
    )
    assert promised.split() == SHIPPED


def test_name_is_that_of_the_file(profile: Profile) -> None:
    assert edgekit_profiles.load(profile.name) == profile
    assert profile.title


def test_features_are_those_of_the_architecture(profile: Profile) -> None:
    of_arm = {"asimd"} <= set(profile.cpu.features)
    assert of_arm == (profile.cpu.arch is Arch.AARCH64)
    assert {"avx2", "fma"} <= set(profile.cpu.features) or of_arm


def test_threads_fit_the_cores(profile: Profile) -> None:
    assert all(1 <= runtime.threads <= profile.cpu.cores for runtime in profile.runtimes)


def test_budget_fits_the_memory(profile: Profile) -> None:
    assert profile.budget.ram_mib <= profile.memory.ram_mib * 0.6


def test_onnxruntime_says_what_it_reads(profile: Profile) -> None:
    for runtime in profile.runtimes:
        reads_onnx = runtime.kind is RuntimeKind.ONNXRUNTIME
        assert (runtime.max_ir is not None) == reads_onnx
        assert (runtime.max_opset is not None) == reads_onnx


def test_thermal_paths_are_absolute(profile: Profile) -> None:
    for pattern in (*profile.thermal.temperature, *profile.thermal.throttled):
        assert pattern.startswith("/sys/")


def test_x86_profiles_run_on_any_avx2_machine_and_so_saturate() -> None:
    for name in ("demo-small", "linux-x86-64"):
        cpu = edgekit_profiles.load(name).cpu
        assert cpu.int8_saturates
        assert not any("512" in feature or "vnni" in feature for feature in cpu.features)
    assert not edgekit_profiles.load("raspberry-pi-4").cpu.int8_saturates


NO_FACTS = {"name", "title", "platform", "kind", "arch", "wheel", "providers"}
"""Names, and members whose text is its own explanation."""
SHARED = {"python": "version", "max_opset": "max_ir"}
"""Facts of which the line of another tells."""


def unsourced(toml: str) -> list[str]:
    """Facts with no comment at their line, above it, or above their table."""
    found = []
    lines = toml.splitlines()
    is_sourced: dict[str, bool] = {}
    for number, line in enumerate(lines):
        if (match := re.match(r"(\w+) = ", line)) is None:
            continue
        fact, above = match[1], lines[max(0, number - 1)]
        if above.startswith("["):
            above = lines[max(0, number - 2)]
        elif fact == "version":  # below `kind`, the first of its table
            above = lines[max(0, number - 3)]
        is_sourced[fact] = "#" in line or above.startswith("#")
        if fact not in NO_FACTS and not is_sourced[SHARED.get(fact, fact)]:
            found.append(line)
    return found


def test_every_fact_has_its_source_beside_it() -> None:
    for name in SHIPPED:
        assert unsourced(edgekit_profiles.text(name).decode()) == [], name


def test_fact_without_a_source_is_found() -> None:
    toml = edgekit_profiles.text("raspberry-pi-4").decode()
    for fact in ("cores", "clock_mhz", "ram_mib", "threads", "bundle_mib", "version", "limit_c"):
        bare = re.sub(rf"^({fact} = [^#\n]*)#.*$", r"\1", toml, flags=re.MULTILINE)
        assert any(line.startswith(fact) for line in unsourced(bare)), fact


def test_greatest_ir_and_opset_are_what_the_runtime_loads() -> None:
    """Exactly for the version that is installed here, and at least that much of older ones."""
    installed = version("onnxruntime")
    listed = {
        runtime.version: runtime
        for name in SHIPPED
        if (runtime := edgekit_profiles.load(name).runtime(RuntimeKind.ONNXRUNTIME))
        and version_tuple(runtime.version) <= version_tuple(installed)
    }
    assert listed

    def loads(ir: int, opset: int) -> bool:
        node = onnx.helper.make_node("Relu", ["x"], ["y"])
        x, y = (onnx.helper.make_tensor_value_info(n, 1, [1]) for n in "xy")
        graph = onnx.helper.make_graph([node], "g", [x], [y])
        opsets = [onnx.helper.make_opsetid("", opset)]
        model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=ir)
        options = ort.SessionOptions()
        options.log_severity_level = 4
        try:
            ort.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except Exception:
            return False
        return True

    for runtime in listed.values():
        assert runtime.max_ir is not None
        assert runtime.max_opset is not None
        assert loads(runtime.max_ir, 13)
        assert loads(10, runtime.max_opset)
        if runtime.version == installed:
            assert not loads(runtime.max_ir + 1, 13)
            assert not loads(10, runtime.max_opset + 1)


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("rpi5", "raspberry-pi-5"),
        ("pi4", "raspberry-pi-4"),
        ("raspberry-pi5", "raspberry-pi-5"),
        ("zero2w", "raspberry-pi-zero-2w"),
        ("nano", "jetson-orin-nano"),
        ("x86", "linux-x86-64"),
        ("Demo", "demo-small"),
        ("rasberry-pi-4", "raspberry-pi-4"),
    ],
)
def test_unknown_profile_names_the_nearest(given: str, meant: str) -> None:
    with pytest.raises(UnknownProfile) as caught:
        edgekit_profiles.load(given)
    assert caught.value.nearest == meant
    assert str(caught.value) == (
        f"unknown profile {given!r}; did you mean {meant}? Known are {', '.join(SHIPPED)}, and the "
        "path of any TOML file."
    )


@pytest.mark.parametrize("given", ["", " ", "💥", "x" * 10_000, "\x1b[2J"])
def test_any_unknown_name_gives_one_printable_sentence(given: str) -> None:
    with pytest.raises(UnknownProfile) as caught:
        edgekit_profiles.load(given)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


def test_profile_may_be_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(DEMO.replace(b'"demo-small"', b'"mine"'))
    assert edgekit_profiles.load(str(path)).name == "mine"
    with pytest.raises(Misused, match="No such file"):
        edgekit_profiles.load(str(tmp_path / "none.toml"))
    path.write_bytes(b"#" * 100_000)
    with pytest.raises(Misused, match="too long"):
        edgekit_profiles.load(str(path))


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (b"", b"\xff", "utf-8"),
        (b"name", b"nom", "nom"),
        (b"cores = 1", b"cores = 0", "$.cpu.cores"),
        (b"cores = 1", b'cores = "one"', "$.cpu.cores"),
        (b"cores = 1", b"colour = 1\ncores = 1", "colour"),
        (b'"x86_64"', b'"z80"', "z80"),
        (b'"avx2"', b'"avx3"', "avx3"),
        (b"threads = 1", b"threads = -1", "threads"),
        (b'kind = "litert"', b'kind = "onnxruntime"', "twice"),
        (b'"demo-small"', b'"../x"', "../x"),
        (b"[memory]", b"[memory", "mine.toml"),
        (b"[memory]", b"x = " + b"[" * 5000, "mine.toml"),
    ],
)
def test_what_is_no_profile_is_refused_by_its_field(old: bytes, new: bytes, says: str) -> None:
    with pytest.raises(Misused) as caught:
        parse_profile(DEMO.replace(old, new, 1), source="mine.toml")
    assert "mine.toml" in str(caught.value)
    assert says in str(caught.value)


def test_profile_without_a_runtime_is_refused() -> None:
    bare = re.sub(rb"\[\[runtimes\]\].*?(?=\n\[budget\])", b"", DEMO, flags=re.DOTALL)
    with pytest.raises(Misused, match="no runtime"):
        parse_profile(b"runtimes = []\n" + bare, source="mine.toml")


def test_features_are_read_from_cpuinfo() -> None:
    pi5 = (
        "processor\t: 0\nBogoMIPS\t: 108.00\n"
        "Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid "
        "asimdrdm lrcpc dcpop asimddp\nCPU implementer\t: 0x41\n\nprocessor\t: 1\n"
        "Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid "
        "asimdrdm lrcpc dcpop asimddp\n"
    )
    assert set(read_features(pi5)) == set(edgekit_profiles.load("raspberry-pi-5").cpu.features)
    assert set(read_features("Features : fp asimd evtstrm crc32 cpuid\n")) == set(
        edgekit_profiles.load("raspberry-pi-4").cpu.features
    )


def test_feature_that_one_core_lacks_is_not_the_machine_s() -> None:
    assert read_features("flags: avx2 fma\nflags: fma sse4_1\n") == ("fma",)
    assert read_features("") == ()
    assert set(read_features("flags : " + " ".join(FEATURES))) == FEATURES
