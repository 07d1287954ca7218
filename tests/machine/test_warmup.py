"""WARMUP as a process: what passes, what is refused, and with which sentence."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
from bundles import SmallBundle, litert_bundle, null_bundle, onnx_bundle
from parts import need_package
from workers import unpack, warm_up

MIB = 1 << 20


def hungry_bundle(size_mib: int) -> SmallBundle:
    """The ONNX model with a detour over a tensor of this size: it expands, sums and adds zero."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    bundle = onnx_bundle()
    model = onnx.load_from_string(bundle.files["files/model.onnx"])
    elements = size_mib * MIB // 4
    graph = model.graph
    graph.initializer.append(numpy_helper.from_array(np.array([elements], np.int64), "count"))
    graph.initializer.append(numpy_helper.from_array(np.zeros(1, np.float32), "zero"))
    relu = next(node for node in graph.node if node.op_type == "Relu")
    relu.output[0] = "relu"
    graph.node.extend(
        [
            helper.make_node("ReduceMax", ["relu"], ["any"], keepdims=0),
            helper.make_node("Mul", ["any", "zero"], ["nothing"]),
            helper.make_node("Expand", ["nothing", "count"], ["large"]),
            helper.make_node("ReduceMax", ["large"], ["still_nothing"], keepdims=0),
            helper.make_node("Add", ["relu", "still_nothing"], ["y"]),
        ]
    )
    assert graph.output[0].type.tensor_type.elem_type == TensorProto.FLOAT
    return bundle.with_files(bundle.files | {"files/model.onnx": model.SerializeToString()})


@pytest.mark.parametrize(
    "make", [onnx_bundle, litert_bundle, null_bundle], ids=["onnxruntime", "litert", "null"]
)
def test_sound_bundle_passes_on_each_runtime(tmp_path: Path, make) -> None:
    need_package("ai_edge_litert", install="'edgekit[tflite]'")
    digest = unpack(make(), tmp_path / "slot")
    code, report = warm_up(
        tmp_path / "slot", digest, "--max-rss-bytes", str(2048 * MIB), "--max-latency-ms", "60000"
    )
    assert (code, report.passed, report.reason) == (0, True, "")
    assert report.load_s is not None and report.load_s > 0
    assert report.latency_ms is not None and report.latency_ms > 0
    assert report.rss_bytes is not None and report.rss_bytes > MIB


def test_a_provider_that_is_not_to_be_had_is_in_the_report(tmp_path: Path) -> None:
    bundle = onnx_bundle().changed(providers=("CUDAExecutionProvider",))
    code, report = warm_up(tmp_path / "slot", unpack(bundle, tmp_path / "slot"))
    assert (code, report.passed) == (0, True)
    assert report.execution is not None
    assert report.execution.missed == ("CUDAExecutionProvider",)
    assert report.execution.used == ("CPUExecutionProvider",)


def test_other_outputs_than_golden_are_refused(tmp_path: Path) -> None:
    bundle = null_bundle()
    model = msgspec.json.decode(bundle.files["files/model.json"]) | {"scale": 1.5}
    digest = unpack(
        bundle.with_files(bundle.files | {"files/model.json": msgspec.json.encode(model)}),
        tmp_path / "slot",
    )
    code, report = warm_up(tmp_path / "slot", digest)
    assert (code, report.passed) == (1, False)
    assert report.reason.startswith("golden vector 0, output 'y':")


def test_damaged_directory_is_refused(tmp_path: Path) -> None:
    digest = unpack(null_bundle(), tmp_path / "slot")
    (tmp_path / "slot" / "files" / "labels.txt").unlink()
    code, report = warm_up(tmp_path / "slot", digest)
    assert (code, "files/labels.txt" in report.reason) == (1, True)


def test_model_that_is_too_slow_is_refused(tmp_path: Path) -> None:
    digest = unpack(onnx_bundle(), tmp_path / "slot")
    code, report = warm_up(tmp_path / "slot", digest, "--max-latency-ms", "0.000001")
    assert (code, "ms" in report.reason) == (1, True)


def test_model_that_takes_too_much_memory_is_stopped_and_told(tmp_path: Path) -> None:
    digest = unpack(hungry_bundle(600), tmp_path / "slot")
    assert warm_up(tmp_path / "slot", digest)[0] == 0
    code, report = warm_up(tmp_path / "slot", digest, "--max-rss-bytes", str(300 * MIB))
    assert code == 1
    assert "of memory" in report.reason
    assert "300 MiB are allowed" in report.reason


def test_crash_is_named_by_its_signal(tmp_path: Path) -> None:
    digest = unpack(null_bundle(), tmp_path / "slot")
    crashing = (
        "import os, signal, sys\n"
        "from edgekit_agent import warmup\n"
        "def prove(*given, **options):\n"
        "    os.kill(os.getpid(), signal.SIGILL)\n"
        "warmup.prove = prove\n"
        "sys.exit(warmup.main())\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", crashing, "--bundle", str(tmp_path / "slot"), "--digest", digest],
        stdout=subprocess.PIPE,
        check=False,
    )
    report = msgspec.json.decode(run.stdout)
    assert run.returncode == 1
    assert "instruction" in report["reason"]
    assert "SIGILL" in report["reason"]


def test_killed_warm_up_takes_its_child_along(tmp_path: Path) -> None:
    bundle = null_bundle()
    model = msgspec.json.decode(bundle.files["files/model.json"]) | {"delay_s": 600}
    digest = unpack(
        bundle.with_files(bundle.files | {"files/model.json": msgspec.json.encode(model)}),
        tmp_path / "slot",
    )
    command = [sys.executable, "-m", "edgekit_agent.warmup"]
    command += ["--bundle", str(tmp_path / "slot"), "--digest", digest]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        while not children.read_text():
            pass
        process.send_signal(signal.SIGKILL)
        assert process.stdout is not None
        # The child holds this pipe and would sleep for ten minutes: its end is the pipe's.
        assert process.stdout.read() == b""
