"""The plan: what is tried for a profile, and why the rest is not."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

import edgekit_profiles
from edgekit.build.host import Host, parse_cpuinfo
from edgekit.build.plan import Plan, make_plan, min_runtime_version
from edgekit_contract.errors import Misused, Refused
from edgekit_contract.profile import Profile, RuntimeKind
from edgekit_converters.calibration.estimators import CHOSEN_AMONG, OF_STATISTICS
from edgekit_converters.facts import ModelFacts
from edgekit_converters.recipes import all_recipes

CONV = ModelFacts(size_bytes=1000, opset=17, ir=8, weighted={"Conv": 3})


TFLITE = ModelFacts(size_bytes=1000, weighted={"Conv": 3})


def plan(*profiles: Profile, kind: RuntimeKind = RuntimeKind.ONNXRUNTIME, **changes: Any) -> Plan:
    values: dict[str, Any] = {
        "given": CONV,
        "normalized": CONV,
        "changed": True,
        "profiles": profiles or (edgekit_profiles.load("linux-x86-64"),),
        "recipes": all_recipes(),
        "patterns": (),
        "has_data": True,
        "host_saturates": False,
    }
    return make_plan(kind, **(values | changes))


def ids(made: Plan) -> set[str]:
    return {recipe.id for recipe in made.profiles[0].recipes}


def onnx_ids(made: Plan) -> set[str]:
    recipes = made.profiles[0].recipes
    return {r.id for r in recipes if r.needs.runtime is RuntimeKind.ONNXRUNTIME}


def with_runtimes(name: str, *kinds: RuntimeKind) -> Profile:
    profile = edgekit_profiles.load(name)
    runtimes = tuple(r for r in profile.runtimes if r.kind in kinds)
    return msgspec.structs.replace(profile, runtimes=runtimes)


def why_not(made: Plan, recipe: str) -> str:
    return next(s.reason for s in made.profiles[0].skipped if s.recipe == recipe)


def test_saturating_core_gets_the_reduced_range_only() -> None:
    static = {i for i in onnx_ids(plan(edgekit_profiles.load("linux-x86-64"))) if "static" in i}
    assert static and all("-reduced/" in i for i in static)


@pytest.mark.parametrize("name", ["raspberry-pi-4", "jetson-orin-nano"])
def test_arm_core_gets_the_full_range_only(name: str) -> None:
    static = {i for i in onnx_ids(plan(edgekit_profiles.load(name))) if "static" in i}
    assert static and not any("reduced" in i for i in static)


def test_core_with_a_dot_product_gets_the_full_range() -> None:
    profile = edgekit_profiles.load("demo-small")
    cpu = msgspec.structs.replace(profile.cpu, features=(*profile.cpu.features, "avx512_vnni"))
    static = {i for i in onnx_ids(plan(msgspec.structs.replace(profile, cpu=cpu))) if "static" in i}
    assert static and not any("reduced" in i for i in static)


@pytest.mark.parametrize(("feature", "reduced"), [("avx512_vnni", True), ("avx_vnni", False)])
def test_a_minimal_build_has_no_avx_512(feature: str, reduced: bool) -> None:
    """Seen with one that was compiled: what 8 bits gave was off by a tenth."""
    profile = with_runtimes("demo-small", RuntimeKind.ONNXRUNTIME)
    cpu = msgspec.structs.replace(profile.cpu, features=(*profile.cpu.features, feature))
    (runtime,) = (msgspec.structs.replace(r, minimal=True) for r in profile.runtimes)
    made = plan(msgspec.structs.replace(profile, cpu=cpu, runtimes=(runtime,)))
    static = {i for i in onnx_ids(made) if "static" in i}
    assert static and all(("reduced" in i) is reduced for i in static)


def test_both_runtimes_of_a_profile_compete_for_an_onnx_model() -> None:
    made = plan(edgekit_profiles.load("linux-x86-64")).profiles[0]
    assert made.recipes[0].id == "float32"
    assert [r.kind.value for r in made.runtimes] == ["onnxruntime", "litert"]
    assert {"litert/float32", "litert/int8-static", "int8-weights/per-channel"} <= ids(
        plan(edgekit_profiles.load("linux-x86-64"))
    )
    assert made.runtime(RuntimeKind.LITERT).version == made.runtimes[1].version


def test_profile_with_litert_alone_has_the_converted_model_for_its_baseline() -> None:
    made = plan(with_runtimes("linux-x86-64", RuntimeKind.LITERT))
    assert made.profiles[0].recipes[0].id == "litert/float32"
    assert not onnx_ids(made)
    assert why_not(made, "float32") == "linux-x86-64 has no onnxruntime"


def test_profile_without_litert_has_none_of_its_recipes() -> None:
    made = plan(with_runtimes("linux-x86-64", RuntimeKind.ONNXRUNTIME))
    assert ids(made) == onnx_ids(made)
    assert why_not(made, "litert/float32") == "linux-x86-64 has no litert"


def test_litert_recipes_say_how_to_get_their_tools() -> None:
    missing = {RuntimeKind.LITERT: "run setup"}
    made = plan(edgekit_profiles.load("linux-x86-64"), missing=missing)
    assert ids(made) == onnx_ids(made)
    assert why_not(made, "litert/int8-static") == "run setup"


def test_litert_model_is_searched_without_onnx() -> None:
    made = plan(kind=RuntimeKind.LITERT, given=TFLITE, normalized=TFLITE, changed=False)
    assert [r.kind for r in made.profiles[0].runtimes] == [RuntimeKind.LITERT]
    assert made.profiles[0].recipes[0].id == "float32"
    assert {"litert/int8-static", "litert/float16"} <= ids(made)
    assert why_not(made, "litert/float32") == "the model is of litert as it is"
    assert "the model is of litert" in why_not(made, "int8-weights/per-channel")
    assert made.estimators == ()


def test_litert_model_without_float_weights_has_nothing_to_quantize() -> None:
    narrow = ModelFacts(size_bytes=1000)
    made = plan(kind=RuntimeKind.LITERT, given=narrow, normalized=narrow)
    assert ids(made) == {"float32"}
    assert "no float32 weights" in why_not(made, "litert/int8-dynamic")


def test_litert_without_data_has_nothing_static() -> None:
    made = plan(has_data=False)
    assert "litert/int8-dynamic" in ids(made)
    assert "no data" in why_not(made, "litert/int8-static")


@pytest.mark.parametrize("name", ["raspberry-pi-5", "linux-x86-64"])
def test_machine_that_saturates_plans_only_what_it_can_prove(name: str) -> None:
    """Its full-range outputs would be wrong, and with them accuracy and golden vectors."""
    made = plan(edgekit_profiles.load(name), host_saturates=True)
    int8 = {i for i in ids(made) if i.startswith(("int8-static", "int8-dynamic"))}
    assert int8 and all("reduced" in i for i in int8)
    reason = why_not(made, "int8-static/per-channel/u8s8/minmax")
    assert ("this machine" in reason) == (name == "raspberry-pi-5")


def test_baseline_is_always_planned_and_first() -> None:
    made = plan(patterns=("int8-static/per-tensor/*",))
    assert made.profiles[0].recipes[0].id == "float32"
    assert "float32-optimized" not in ids(made)


def test_without_data_nothing_static_is_planned() -> None:
    made = plan(has_data=False)
    assert not any("static" in i for i in ids(made))
    assert made.estimators == ()
    assert "no data" in why_not(made, "int8-static/per-channel/s8s8-reduced/minmax")


def test_for_ranges_that_are_measured_those_are_estimated_that_they_are_chosen_among() -> None:
    only = plan(patterns=("int8-static/per-channel/*/measured",))
    assert set(only.estimators) == set(CHOSEN_AMONG)
    assert set(plan().estimators) == set(OF_STATISTICS)


def test_model_that_could_not_be_raised_has_no_static_recipe() -> None:
    old = ModelFacts(size_bytes=1000, opset=9, ir=4, weighted={"Conv": 3})
    made = plan(normalized=old)
    assert "opset 13" in why_not(made, "int8-static/per-channel/s8s8-reduced/minmax")


def test_model_that_normalization_left_alone_is_not_made_twice() -> None:
    assert "float32-optimized" not in ids(plan(changed=False))


def test_unknown_pattern_is_wrong_usage() -> None:
    with pytest.raises(Misused, match="no recipe matches 'int9'"):
        plan(patterns=("int9",))


def test_model_newer_than_the_runtime_is_refused() -> None:
    new = ModelFacts(size_bytes=1000, opset=99, ir=8)
    with pytest.raises(Refused, match="opset 99"):
        plan(given=new)
    with pytest.raises(Refused, match="IR version 99"):
        plan(given=ModelFacts(size_bytes=1000, opset=17, ir=99))


def test_model_over_four_gib_is_refused_when_planning() -> None:
    with pytest.raises(Refused, match="at most 4 GiB"):
        plan(given=ModelFacts(size_bytes=1 << 33, opset=17, ir=8))


def test_runtime_is_demanded_no_newer_than_the_opset_needs() -> None:
    profile = edgekit_profiles.load("linux-x86-64")
    runtime = profile.runtime(RuntimeKind.ONNXRUNTIME)
    assert runtime is not None
    baseline = all_recipes()[0]

    def demanded(opset: int, *operators: str) -> str:
        held = dict.fromkeys(operators, 1)
        facts = ModelFacts(size_bytes=1000, opset=opset, ir=8, operators=held)
        return min_runtime_version(runtime, baseline, facts)

    assert demanded(17) == "1.12"
    assert demanded(13) == "1.10"
    assert demanded(27) == runtime.version
    assert demanded(13, "Conv", "com.microsoft:QuickGelu") == "1.14"
    assert demanded(17, "com.microsoft:Gelu", "com.microsoft:ScaledSiLU") == "1.31"


@pytest.mark.parametrize(
    ("operator", "first"),
    [
        ("com.microsoft:ScaledSiLU", "1.31"),
        ("com.microsoft:GatedRMSNorm", "1.30"),
        ("com.microsoft:CausalConvWithState", "1.26"),
        ("DeformConv", "1.25"),
    ],
)
def test_operator_that_came_after_the_profiles_runtime_is_refused(
    operator: str, first: str
) -> None:
    given = ModelFacts(size_bytes=1000, opset=19, ir=9, operators={"Conv": 1, operator: 2})
    said = f"operator {operator}, which onnxruntime 1.23.2 of jetson-orin-nano .* {first}"
    with pytest.raises(Refused, match=said):
        plan(edgekit_profiles.load("jetson-orin-nano"), given=given, normalized=given)
    assert ids(plan(edgekit_profiles.load("raspberry-pi-5"), given=given, normalized=given))


def test_operator_that_simplification_brought_costs_the_recipes_and_not_the_model() -> None:
    fused = ModelFacts(
        size_bytes=1000,
        opset=17,
        ir=8,
        weighted={"Conv": 3},
        operators={"com.microsoft:ScaledSiLU": 1},
    )
    made = plan(edgekit_profiles.load("jetson-orin-nano"), normalized=fused)
    assert {i for i in ids(made) if not i.startswith("litert/")} == {"float32"}
    assert "ScaledSiLU, which onnxruntime has since 1.31" in why_not(made, "float32-optimized")


def test_recipe_ids_are_unique_and_each_has_needs() -> None:
    recipes = all_recipes()
    assert len({r.id for r in recipes}) == len(recipes)
    assert recipes[0].id == "float32"


CPUINFO = """\
processor\t: 0
Features\t: fp asimd evtstrm aes crc32 atomics asimddp
CPU implementer\t: 0x41
CPU part\t: 0xd0b
"""


def test_board_of_the_profile_is_recognized_by_its_core() -> None:
    host = parse_cpuinfo(CPUINFO, arch="aarch64", cores=4)
    assert host.core == "cortex-a76"
    pi5 = edgekit_profiles.load("raspberry-pi-5").cpu
    without_more = msgspec.structs.replace(pi5, features=("asimd", "asimddp"))
    assert host.is_of(without_more)
    assert not host.is_of(edgekit_profiles.load("raspberry-pi-4").cpu)
    assert not host.is_of(edgekit_profiles.load("linux-x86-64").cpu)


AVX2 = "sse4_1 sse4_2 avx avx2 fma f16c"
VNNI = f"{AVX2} avx512f avx512bw avx512vl avx512_vnni"


def x86(features: str) -> Host:
    return parse_cpuinfo(f"flags\t: fpu {features}\n", arch="x86_64", cores=2)


def test_machine_whose_runtime_takes_other_kernels_is_not_the_profile_s() -> None:
    generic = edgekit_profiles.load("linux-x86-64").cpu
    assert x86(f"{AVX2} aes").is_of(generic)
    assert not x86(VNNI).is_of(generic), "it would measure kernels that the fleet does not have"
    with_vnni = msgspec.structs.replace(generic, features=tuple(VNNI.split()))
    assert x86(VNNI).is_of(with_vnni)
    assert not x86(AVX2).is_of(with_vnni)


def test_feature_that_one_core_lacks_is_not_the_machine_s() -> None:
    two = parse_cpuinfo(f"flags: {VNNI}\nflags: {AVX2}\n", arch="x86_64", cores=2)
    assert two.int8_saturates
    assert not x86(VNNI).int8_saturates
    assert not parse_cpuinfo(CPUINFO, arch="aarch64", cores=4).int8_saturates
