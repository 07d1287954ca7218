"""What computes a model: what was asked for, what is used, and why not more. On real runtimes."""

from __future__ import annotations

import contextlib
import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import litert_bundle, null_bundle, onnx_bundle
from parts import need_package

from edgekit_contract.messages import Execution
from edgekit_contract.profile import RuntimeKind
from edgekit_runtime import providers
from edgekit_runtime.session import Optimization, Session, SessionOptions, open_session

CPU = "CPUExecutionProvider"


def onnx_session(tmp_path: Path, *asked: str, threads: int = 1) -> Session:
    path = tmp_path / "model.onnx"
    path.write_bytes(onnx_bundle().files["files/model.onnx"])
    options = SessionOptions(threads=threads, providers=asked, cache=tmp_path / "cache")
    return open_session(RuntimeKind.ONNXRUNTIME, path, options)


def test_without_a_wish_the_cpu_computes(tmp_path: Path) -> None:
    assert onnx_session(tmp_path).execution == Execution(asked=(CPU,), used=(CPU,))


@pytest.mark.parametrize("asked", providers.__dict__["_OPTIONS"])
def test_a_provider_that_the_wheel_lacks_is_named_and_the_model_runs(
    tmp_path: Path, asked: str
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    assert asked not in onnxruntime.get_available_providers(), "this wheel has it: test it, then"
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()) as said:
        warnings.simplefilter("error")
        session = onnx_session(tmp_path, asked, CPU)
        assert said.getvalue() == ""
    assert session.execution == Execution(
        asked=(asked, CPU), used=(CPU,), reason=f"{asked}: this onnxruntime is built without it."
    )
    assert session.execution.missed == (asked,)
    assert session.run({"x": np.ones((1, 2), np.float32)})["y"].shape == (1, 3)


def test_a_provider_that_is_registered_and_takes_no_operator_is_not_in_use(tmp_path: Path) -> None:
    """The wheel has Azure's provider, which takes one operator only; `get_providers` lists it."""
    execution = onnx_session(tmp_path, "AzureExecutionProvider").execution
    assert execution.used == (CPU,)
    assert execution.reason == ("AzureExecutionProvider: it takes none of this model's operators.")


def test_a_provider_that_idles_takes_no_threads_from_the_cpu_s(tmp_path: Path) -> None:
    session: Any = onnx_session(tmp_path, "AzureExecutionProvider", threads=2)
    assert session._session.get_providers() == [CPU]
    assert session._session.get_session_options().intra_op_num_threads == 2


def test_a_provider_that_fails_is_left_out_and_the_next_is_tried(tmp_path: Path) -> None:
    """What onnxruntime does with a provider that raises; this wheel has none that would."""
    import onnxruntime

    tried: list[tuple[str, ...]] = []

    class Picky:
        __file__ = onnxruntime.__file__

        @staticmethod
        def get_available_providers() -> list[str]:
            return ["TensorrtExecutionProvider", "QNNExecutionProvider", CPU]

        @staticmethod
        def InferenceSession(path: str, **given: object) -> object:  # noqa: N802
            wanted = tuple(given["providers"])  # type: ignore[arg-type]
            tried.append(wanted)
            if "QNNExecutionProvider" in wanted:
                raise RuntimeError("QNN is not set up on this board")
            return onnxruntime.InferenceSession(path, providers=[CPU])

    path = tmp_path / "m.onnx"
    path.write_bytes(onnx_bundle().files["files/model.onnx"])
    options = SessionOptions(providers=("TensorrtExecutionProvider", "QNNExecutionProvider"))
    opened = providers.open_with(Picky, str(path), lambda wanted: None, options)
    assert ("TensorrtExecutionProvider", CPU) in tried
    assert tried[-1] == (CPU,), "the other one was not registered"
    assert opened.used == (CPU,)
    assert "not set up" in opened.lost["QNNExecutionProvider"]
    # the loader's own words: this wheel has no such library
    assert "its library does not load" in opened.lost["TensorrtExecutionProvider"]
    assert "cannot open shared object file" in opened.lost["TensorrtExecutionProvider"]


def test_each_provider_gets_the_options_that_matter_on_a_device(tmp_path: Path) -> None:
    options = SessionOptions(threads=3, cache=tmp_path)
    of = {name: make(options) for name, make in providers.__dict__["_OPTIONS"].items()}
    assert of[providers.XNNPACK] == {"intra_op_num_threads": "3"}
    assert of["TensorrtExecutionProvider"]["trt_engine_cache_path"] == str(tmp_path)
    assert of["CUDAExecutionProvider"]["use_tf32"] == "0"


def test_a_model_that_no_provider_loads_is_unloadable(tmp_path: Path) -> None:
    from edgekit_runtime.session import ModelUnloadable

    path = tmp_path / "m.onnx"
    path.write_bytes(b"\x08\x08nothing of the kind")
    options = SessionOptions(providers=("AzureExecutionProvider",))
    with pytest.raises(ModelUnloadable):
        open_session(RuntimeKind.ONNXRUNTIME, path, options)


def test_litert_says_whether_xnnpack_computes(tmp_path: Path) -> None:
    need_package("ai_edge_litert", install="'edgekit[tflite]'")
    path = tmp_path / "m.tflite"
    path.write_bytes(litert_bundle().files["files/model.tflite"])
    used = {
        level: open_session(RuntimeKind.LITERT, path, SessionOptions(optimization=level)).execution
        for level in (Optimization.ALL, Optimization.NONE)
    }
    assert used[Optimization.ALL].used == ("XNNPACK", "built-in kernels")
    assert used[Optimization.ALL].missed == ()
    assert used[Optimization.NONE].used == ("built-in kernels",)


def test_litert_says_when_xnnpack_takes_nothing(tmp_path: Path) -> None:
    need_package("ai_edge_litert", install="'edgekit[tflite]'")
    from tflite_files import add_file

    path = tmp_path / "m.tflite"
    path.write_bytes(add_file(3, integers=True))
    session = open_session(RuntimeKind.LITERT, path)
    assert session.execution.missed == ("XNNPACK",)
    assert session.execution.reason == "XNNPACK: it takes none of this model's operators."
    rows = np.array([[1, 2, 3]], np.int32)
    assert session.run({"a": rows, "b": rows})["y"].tolist() == [[2, 4, 6]]


def test_a_runtime_without_a_choice_says_nothing(tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    path.write_bytes(null_bundle().files["files/model.json"])
    assert open_session(RuntimeKind.NULL, path).execution == Execution()
