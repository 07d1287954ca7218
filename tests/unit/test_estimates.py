"""Estimates of latency: what operators cost, what a core makes of it, and the store of figures."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import edgekit_profiles
from edgekit.build.estimates import core_of, estimate, trace
from edgekit.build.estimates.operators import (
    Arithmetic,
    Executed,
    Kind,
    Tensor,
    Work,
    work_of,
)
from edgekit.build.notebook import Key, Note, Notebook, NotebookBroken, default_path
from edgekit.build.report import Figure
from edgekit_converters.structure import structure_digest

PROFILES = {name: edgekit_profiles.load(name) for name in edgekit_profiles.names()}


def tensor(*shape: int, dtype: str = "float32") -> Tensor:
    return Tensor(dtype=dtype, shape=shape)


def ran(operator: str, *inputs: Tensor, out: Tensor, weight_bytes: int = 64) -> Work:
    return work_of(
        Executed(
            operator=operator,
            inputs=inputs,
            outputs=(out,),
            weight_bytes=weight_bytes,
            activation_bytes=1024,
        )
    )


def dense(macs: int = 10**8, arithmetic: Arithmetic = Arithmetic.FLOAT32) -> Work:
    return Work(
        kind=Kind.DENSE,
        arithmetic=arithmetic,
        macs=macs,
        elements=0,
        weight_bytes=1000,
        activation_bytes=1000,
    )


@pytest.mark.parametrize(
    ("operator", "inputs", "out", "kind", "macs"),
    [
        ("Conv", [(1, 3, 8, 8), (16, 3, 3, 3), (16,)], (1, 16, 8, 8), Kind.DENSE, 16 * 64 * 27),
        ("FusedConv", [(1, 16, 8, 8), (16, 1, 3, 3)], (1, 16, 8, 8), Kind.DEPTHWISE, 16 * 64 * 9),
        ("ConvTranspose", [(1, 4, 5, 5), (4, 2, 2, 2)], (1, 2, 10, 10), Kind.DENSE, 100 * 8),
        ("MatMul", [(1, 24, 32), (32, 8)], (1, 24, 8), Kind.DENSE, 24 * 8 * 32),
        ("MatMul", [(1, 32), (32, 8)], (1, 8), Kind.VECTOR, 8 * 32),
        ("Gemm", [(32, 24), (32, 8)], (24, 8), Kind.DENSE, 24 * 8 * 32),
        ("LSTM", [(5, 1, 16), (1, 64, 16), (1, 64, 16)], (5, 1, 1, 16), Kind.RECURRENT, 5 * 2048),
        ("MatMulNBits", [(1, 32), (8, 1, 16)], (1, 8), Kind.UNPACKING, 8 * 32),
    ],
)
def test_products_are_counted_from_shapes(
    operator: str,
    inputs: list[tuple[int, ...]],
    out: tuple[int, ...],
    kind: Kind,
    macs: int,
) -> None:
    work = ran(operator, *(tensor(*shape) for shape in inputs), out=tensor(*out))
    assert (work.kind, work.macs) == (kind, macs)


def test_quantized_convolution_is_of_int8_and_finds_its_kernel_behind_scales() -> None:
    scale, zero = tensor(), tensor(dtype="uint8")
    work = ran(
        "QLinearConv", tensor(1, 8, 4, 4, dtype="uint8"), scale, zero,
        tensor(16, 8, 1, 1, dtype="int8"), scale, zero, scale, zero,
        out=tensor(1, 16, 4, 4, dtype="uint8"),
    )  # fmt: skip
    assert (work.kind, work.macs, work.elements) == (Kind.DENSE, 16 * 16 * 8, 0)
    assert work.arithmetic is Arithmetic.INT8


def test_windows_of_a_convolution_are_laid_out_but_for_1x1() -> None:
    wide = ran("Conv", tensor(1, 3, 8, 8), tensor(16, 3, 3, 3), out=tensor(1, 16, 8, 8))
    assert wide.elements == 64 * 27


def test_table_costs_the_rows_that_are_looked_up() -> None:
    work = ran(
        "Gather", tensor(30000, 384), tensor(1, 24), out=tensor(1, 24, 384), weight_bytes=46 << 20
    )
    assert work.weight_bytes == 1024


def test_operator_that_nothing_is_known_of_is_so_called() -> None:
    assert ran("TreeEnsembleClassifier", tensor(1, 4), out=tensor(1, 3)).kind is Kind.UNKNOWN


def test_reshape_costs_nothing_but_the_call() -> None:
    work = ran("Reshape", tensor(1, 4096), out=tensor(64, 64))
    assert (work.kind, work.elements, work.activation_bytes) == (Kind.FREE, 0, 0)


@pytest.mark.parametrize("name", PROFILES)
def test_every_shipped_profile_has_an_estimate_between_its_bounds(name: str) -> None:
    core = core_of(PROFILES[name].cpu)
    assert core is not None
    found = estimate([dense(), dense(arithmetic=Arithmetic.INT8)], core, threads=1)
    assert 0 < found.low < found.ms < found.high


def test_core_that_nothing_is_published_of_has_none() -> None:
    cpu = msgspec.structs.replace(PROFILES["raspberry-pi-4"].cpu, core="cortex-x99")
    assert core_of(cpu) is None


def test_faster_board_and_dot_products_and_threads_take_less_time() -> None:
    def ms(name: str, arithmetic: Arithmetic = Arithmetic.FLOAT32, threads: int = 1) -> float:
        core = core_of(PROFILES[name].cpu)
        assert core is not None
        return estimate([dense(arithmetic=arithmetic)], core, threads=threads).ms

    assert ms("raspberry-pi-5") < ms("raspberry-pi-4") < ms("raspberry-pi-3b-plus")
    assert ms("raspberry-pi-5", threads=4) < ms("raspberry-pi-5") / 2
    int8 = {name: ms(name, Arithmetic.INT8) / ms(name) for name in PROFILES}
    # the Pi 4 has no dot products: there 8 bits gain less
    assert int8["raspberry-pi-5"] < int8["raspberry-pi-4"] < 1


def test_large_weights_are_bound_by_memory() -> None:
    core = core_of(PROFILES["raspberry-pi-4"].cpu)
    assert core is not None
    work = Work(
        kind=Kind.VECTOR,
        arithmetic=Arithmetic.FLOAT32,
        macs=25 * 10**6,
        elements=0,
        weight_bytes=10**8,
        activation_bytes=8000,
    )
    assert estimate([work], core, threads=4).ms == pytest.approx(1e11 / core.bytes_per_s, rel=0.01)


def test_error_bar_grows_with_what_is_not_known() -> None:
    core = core_of(PROFILES["raspberry-pi-5"].cpu)
    assert core is not None
    unknown = Work(
        kind=Kind.UNKNOWN,
        arithmetic=Arithmetic.FLOAT32,
        macs=0,
        elements=10**7,
        weight_bytes=0,
        activation_bytes=0,
    )
    sure = estimate([dense()], core, threads=1)
    unsure = estimate([dense(), unknown], core, threads=1)
    assert unsure.high / unsure.ms > sure.high / sure.ms
    guessed = core_of(msgspec.structs.replace(PROFILES["raspberry-pi-5"].cpu, clock_mhz=None))
    assert guessed is not None
    wide = estimate([dense()], guessed, threads=1)
    assert wide.high / wide.ms > sure.high / sure.ms


def small_model(path: Path, *, seed: int = 0, width: int = 4, name: str = "w") -> Path:
    weights = np.random.default_rng(seed).normal(size=(width, 3, 3, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", name], ["h"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["h"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", width, 8, 8])],
        [numpy_helper.from_array(weights, name)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save_model(model, path)
    return path


def test_trace_lists_what_ran_with_the_shapes_of_the_sample(tmp_path: Path) -> None:
    model = small_model(tmp_path / "m.onnx")
    feeds = {"x": np.zeros((2, 3, 8, 8), np.float32)}
    (run,) = trace(model, feeds, scratch=tmp_path)
    assert run.operator == "FusedConv"
    assert [t.shape for t in run.inputs] == [(2, 3, 8, 8), (4, 3, 3, 3)]
    assert run.weight_bytes == 4 * 27 * 4
    assert work_of(run).macs == 2 * 4 * 64 * 27
    assert list(tmp_path.iterdir()) == [model]


def test_structure_is_that_of_a_model_trained_again(tmp_path: Path) -> None:
    first = structure_digest(small_model(tmp_path / "a.onnx"))
    assert structure_digest(small_model(tmp_path / "b.onnx", seed=1, name="other")) == first
    assert structure_digest(small_model(tmp_path / "c.onnx", width=8)) != first


def two_branches(path: Path, read: str) -> Path:
    """A wide and a narrow pooling of one input, and an operator that reads one of them."""
    nodes = [
        helper.make_node("MaxPool", ["x"], ["wide"], kernel_shape=[1, 1], strides=[1, 1]),
        helper.make_node("MaxPool", ["x"], ["narrow"], kernel_shape=[1, 1], strides=[8, 8]),
        helper.make_node("LeakyRelu", [read], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save_model(model, path)
    return path


def test_structure_is_how_operators_are_wired_too(tmp_path: Path) -> None:
    wide = structure_digest(two_branches(tmp_path / "a.onnx", "wide"))
    assert structure_digest(two_branches(tmp_path / "b.onnx", "narrow")) != wide


def figure(median_ms: float) -> Figure:
    return Figure(
        median_ms=median_ms,
        low=median_ms * 0.99,
        high=median_ms * 1.01,
        p95_ms=median_ms * 1.2,
        rss_bytes=1 << 26,
        runs=50,
        device="kitchen",
        at="2026-01-01T00:00:00Z",
    )


KEY = Key(
    profile="raspberry-pi-4",
    core="cortex-a72",
    runtime="onnxruntime",
    version="1.32.0",
    threads=4,
    model="0" * 64,
)


def test_later_figure_replaces_the_earlier_one_of_its_key(tmp_path: Path) -> None:
    notebook = Notebook(tmp_path / "deep" / "figures.json")
    assert notebook.figures() == {}
    other = msgspec.structs.replace(KEY, version="1.33.0")
    notebook.add([Note(key=KEY, bundle="a 1", figure=figure(1.0))])
    notebook.add([Note(key=other, bundle="a 1", figure=figure(2.0))])
    notebook.add([Note(key=KEY, bundle="a 2", figure=figure(3.0))])
    assert {k: f.median_ms for k, f in notebook.figures().items()} == {KEY: 3.0, other: 2.0}
    assert len(notebook.notes()) == 2


def test_broken_notebook_is_refused_with_a_sentence_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    path.write_text("{")
    with pytest.raises(NotebookBroken, match="move it away"):
        Notebook(path).add([Note(key=KEY, bundle="a 1", figure=figure(1.0))])
    assert path.read_text() == "{"


def test_notebook_is_where_the_user_keeps_data() -> None:
    assert default_path({"EDGEKIT_FIGURES": "/a/b"}) == Path("/a/b")
    assert default_path({"XDG_DATA_HOME": "/d"}) == Path("/d/edgekit/figures.json")
    assert default_path({}).parts[-4:] == (".local", "share", "edgekit", "figures.json")


def test_estimate_of_nothing_is_finite() -> None:
    core = core_of(PROFILES["raspberry-pi-5"].cpu)
    assert core is not None
    assert math.isfinite(estimate([], core, threads=1).high)
