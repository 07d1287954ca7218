"""`--emulate`: what a profile's CPU would do with a bundle, before a device has to."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from build_requests import request
from bundles import OTHER_KEY, SmallBundle, for_profile, litert_bundle, null_bundle, onnx_bundle
from command_line import edgekit
from onnx import TensorProto, helper

import edgekit_profiles
from edgekit.build import build
from edgekit.emulation import EmulationFailed, Emulator
from edgekit_contract.profile import Profile, parse_profile
from edgekit_runtime.golden import GoldenVector, golden_bytes


def write(bundle: SmallBundle, profile: str, directory: Path) -> Path:
    return for_profile(bundle, profile).write(directory / f"tiny-1.0-{profile}.ekb")


@pytest.mark.parametrize(
    ("make", "runtime"),
    [(onnx_bundle, "onnxruntime 1.32.0"), (litert_bundle, "litert 2.3.0")],
    ids=["onnxruntime", "litert"],
)
def test_sound_bundle_gives_on_a_cortex_a72_what_it_gave_at_build(
    pi4: Profile, tmp_path: Path, trusted: Path, make, runtime: str
) -> None:
    path = write(make(), pi4.name, tmp_path)
    answer = edgekit("verify", path, "--trust", trusted, "--emulate", "--json")
    assert answer.code == 0, answer.err
    told = json.loads(answer.out)["emulated"]
    assert (told["core"], told["runtime"], told["vectors"]) == ("cortex-a72", runtime, 2)


def test_a_provider_that_the_emulated_wheel_lacks_is_named(
    pi4: Profile, tmp_path: Path, trusted: Path
) -> None:
    asked = onnx_bundle().changed(providers=("XnnpackExecutionProvider", "CPUExecutionProvider"))
    answer = edgekit("verify", write(asked, pi4.name, tmp_path), "--trust", trusted, "--emulate")
    assert answer.code == 0, answer.err
    assert "on a cortex-a72, without XnnpackExecutionProvider" in answer.out


def test_runtime_that_needs_newer_instructions_is_refused_by_the_core_that_lacks_them(
    old_profiles: dict[str, Path], tmp_path: Path, trusted: Path
) -> None:
    """onnxruntime 1.21.0's aarch64 wheel dies on a Raspberry Pi 4, and not on a Pi 5."""
    answers = {
        core: edgekit(
            "verify", write(onnx_bundle(), profile.stem, tmp_path),
            "--trust", trusted, "--emulate", "--profile", profile,
        )
        for core, profile in old_profiles.items()
    }  # fmt: skip
    assert answers["cortex-a76"].code == 0, answers["cortex-a76"].err
    assert "2 golden vectors reproduced in onnxruntime 1.21.0" in answers["cortex-a76"].out
    refused = answers["cortex-a72"]
    assert (refused.code, refused.out) == (1, "")
    assert refused.err.count("\n") == 1
    assert "tiny@1.0 for old-cortex-a72 fails on a cortex-a72 emulated by qemu" in refused.err
    assert "with onnxruntime 1.21.0: the runtime or the model needs an instruction" in refused.err
    assert "(SIGILL)" in refused.err


def lying() -> SmallBundle:
    """The outputs of its golden vectors are not the model's."""
    small = onnx_bundle()
    vector = GoldenVector(
        inputs={"x": np.array([[1, 2]], np.float32)}, outputs={"y": np.ones((1, 3), np.float32)}
    )
    return small.with_files(small.files | {"files/golden.npz": golden_bytes([vector] * 2)})


def without_a_kernel() -> SmallBundle:
    """Its operator is in the standard, and no CPU kernel of onnxruntime is for this type."""
    small = onnx_bundle()
    nodes = [
        helper.make_node("Cast", ["x"], ["wide"], to=TensorProto.DOUBLE),
        helper.make_node("Acosh", ["wide"], ["odd"]),
        helper.make_node("Cast", ["odd"], ["y"], to=TensorProto.FLOAT),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 2])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    return small.with_files(small.files | {"files/model.onnx": model.SerializeToString()})


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lying, "golden vector 0, output 'y'"),
        (without_a_kernel, "Could not find an implementation for Acosh"),
    ],
)
def test_bundle_that_does_otherwise_or_has_no_kernel_is_refused_in_a_sentence(
    pi4: Profile, tmp_path: Path, trusted: Path, make, says: str
) -> None:
    path = write(make(), pi4.name, tmp_path)
    answer = edgekit("verify", path, "--trust", trusted, "--emulate")
    assert (answer.code, answer.out) == (1, "")
    assert answer.err.count("\n") == 1
    assert "fails on a cortex-a72 emulated by qemu" in answer.err
    assert says in answer.err


def test_bundle_that_takes_more_memory_than_its_bound_is_refused(
    pi4: Profile, tmp_path: Path, trusted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgekit.emulation.trial._MOST_RSS_BYTES", 64 << 20)
    monkeypatch.setattr("edgekit.emulation.trial._BACKSTOP", 64)
    path = write(onnx_bundle(), pi4.name, tmp_path)
    answer = edgekit("verify", path, "--trust", trusted, "--emulate")
    assert answer.code == 1
    assert answer.err.count("\n") == 1
    assert "of memory and more, 64 MiB are allowed" in answer.err


def test_a_build_stops_before_anything_is_written_where_one_profile_fails(
    pi4: Profile, old_profiles: dict[str, Path], tmp_path: Path
) -> None:
    old = old_profiles["cortex-a72"]
    profiles = (pi4, parse_profile(old.read_bytes(), source=str(old)))
    model = tmp_path / "tiny.onnx"
    onnx.save(onnx.load_from_string(onnx_bundle().files["files/model.onnx"]), model)
    emulator = Emulator((*profiles, edgekit_profiles.load("android-arm64")))
    assert emulator.left_out == {"android-arm64": "no wheels are made for android"}
    with pytest.raises(EmulationFailed, match=r"for old-cortex-a72 fails.*SIGILL"):
        build(
            request(model, tmp_path / "out", profiles=profiles, recipes=("float32",)),
            gate=emulator.try_bundle,
        )
    assert [tried.profile for tried in emulator.emulated] == [pi4.name]
    assert not (tmp_path / "out").exists()


def test_stranger_s_bundle_is_not_run(pi4: Profile, tmp_path: Path, trusted: Path) -> None:
    path = for_profile(null_bundle(), pi4.name).write(tmp_path / "tiny.ekb", OTHER_KEY)
    answer = edgekit("verify", path, "--trust", trusted, "--emulate")
    assert answer.code == 1
    assert "no signature by a trusted key" in answer.err


def test_bundle_for_another_profile_is_refused(pi4: Profile, tmp_path: Path, trusted: Path) -> None:
    path = write(onnx_bundle(), "raspberry-pi-5", tmp_path)
    answer = edgekit("verify", path, "--trust", trusted, "--emulate", "--profile", "raspberry-pi-4")
    assert answer.code == 1
    assert "the bundle is for profile raspberry-pi-5, the device is raspberry-pi-4" in answer.err
