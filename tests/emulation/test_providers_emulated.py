"""XNNPACK as one of onnxruntime's execution providers, computing on a Raspberry Pi's CPU.

PyPI's wheels have no provider but the CPU's that computes on this machine; Debian's package has
XNNPACK, and `apt-get install python3-onnxruntime` puts it on a device with Debian 13. Its 1.21 is
older than what tells which provider took which operator, so a fallback is found in the log there.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import onnx
import pytest
from build_requests import DIGITS, request
from onnx import TensorProto, helper
from tools import need_layer

import edgekit_profiles
from edgekit.build import build
from edgekit.build.pack import Sealed
from edgekit.emulation import Emulated, Sysroot, debian, layers, wheels
from edgekit.emulation.trial import emulate
from edgekit_contract.messages import Execution
from edgekit_contract.profile import Profile, Runtime, RuntimeKind

XNNPACK, CPU = "XnnpackExecutionProvider", "CPUExecutionProvider"
SUITE = debian.SUITES["3.13"]
PACKAGES = (f"python{SUITE.python}", "libstdc++6", "python3-onnxruntime")


@pytest.fixture(scope="module")
def pi5() -> Profile:
    runtime = Runtime(
        kind=RuntimeKind.ONNXRUNTIME,
        version="1.21",
        python=SUITE.python,
        threads=2,
        max_ir=10,
        max_opset=22,
        providers=(XNNPACK, CPU),
    )
    return msgspec.structs.replace(edgekit_profiles.load("raspberry-pi-5"), runtimes=(runtime,))


@pytest.fixture(scope="module")
def sysroot(cache: None) -> Sysroot:
    """With Debian's onnxruntime in place of PyPI's."""
    base = layers.layer(f"debian-{SUITE.name}-onnxruntime-arm64", PACKAGES)
    need_layer(base, lambda directory: debian.unpack(directory, SUITE, PACKAGES))
    wheels.make_wheels(SUITE, ())
    wheels.make_own(SUITE)
    return Sysroot(
        suite=SUITE, base=base, wheels=wheels.wheels_layer(SUITE, ()), own=wheels.own_layer()
    )


def emulated(model: Path, pi5: Profile, sysroot: Sysroot) -> Emulated:
    """What becomes of a build's bundle."""
    found = []

    def gate(profile: Profile, sealed: Sealed) -> None:
        found.append(emulate(sealed, profile, sysroot))

    recipe = ("float32",)
    build(request(model, model.parent / "out", profiles=(pi5,), recipes=recipe), gate=gate)
    return found[0]


def test_xnnpack_computes_what_it_takes(pi5: Profile, sysroot: Sysroot, tmp_path: Path) -> None:
    model = tmp_path / "digits.onnx"
    model.write_bytes((DIGITS / "digits.onnx").read_bytes())
    tried = emulated(model, pi5, sysroot)
    assert tried.execution == Execution(asked=(XNNPACK, CPU), used=(XNNPACK, CPU))
    assert "reproduced in onnxruntime 1.21 on a cortex-a76" in str(tried)


def test_a_model_of_which_xnnpack_takes_nothing_is_reported(
    pi5: Profile, sysroot: Sysroot, tmp_path: Path
) -> None:
    graph = helper.make_graph(
        [helper.make_node("Exp", ["x"], ["y"])],
        "curve",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "curve.onnx")
    tried = emulated(tmp_path / "curve.onnx", pi5, sysroot)
    assert tried.execution.used == (CPU,)
    assert tried.execution.reason == f"{XNNPACK}: it takes none of this model's operators."
    assert str(tried).endswith(f"on a cortex-a76, without {XNNPACK}")
