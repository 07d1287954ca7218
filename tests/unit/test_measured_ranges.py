"""Ranges by what they do to the outputs: each tensor gets its own, and none costs long."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit_contract.profile import RuntimeKind
from edgekit_converters.calibration.estimators import Estimator, Range
from edgekit_converters.quantization import measuring
from edgekit_converters.quantization.measuring import measure_ranges
from edgekit_converters.quantization.qdq import Activations, Granularity, quantize_static
from edgekit_converters.quantization.switching import (
    NONE,
    SCALE,
    SWITCH,
    ZERO,
    grid_of,
    make_roundable,
)
from edgekit_runtime.session import open_session

WIDTH = 32
WIDE, NARROW = Range(-60.0, 60.0), Range(-4.0, 4.0)
BEYOND = 50.0
"""What the first channel of both inputs holds, the others lie within `NARROW`."""


def saved(path: Path, graph: onnx.GraphProto) -> Path:
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


def value(name: str, *shape: int | str, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def two_readers(path: Path) -> Path:
    """What reads `deaf` hardly heeds its outlier; what reads `keen` heeds little else."""
    random = np.random.default_rng(2)
    deaf, keen = (random.standard_normal((WIDTH, WIDTH)).astype(np.float32) for _ in range(2))
    deaf[0] *= 1e-4
    keen[1:] *= 1e-2
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["deaf", "v"], ["a"], name="deaf reader"),
            helper.make_node("MatMul", ["keen", "w"], ["b"], name="keen reader"),
        ],
        "two",
        [value("deaf", "n", WIDTH), value("keen", "n", WIDTH)],
        [value("a", "n", WIDTH), value("b", "n", WIDTH)],
        [numpy_helper.from_array(deaf, "v"), numpy_helper.from_array(keen, "w")],
    )
    return saved(path, graph)


def samples(*names: str) -> list[dict[str, np.ndarray]]:
    random = np.random.default_rng(3)
    found = []
    for rows in (1, 4, 2, 7, 3):
        feeds = {name: random.standard_normal((rows, WIDTH)).astype(np.float32) for name in names}
        for array in feeds.values():
            array[:, 0] = BEYOND
        found.append(feeds)
    return found


TWO = samples("deaf", "keen")
ESTIMATED = {
    Estimator.MSE: {"deaf": WIDE, "keen": NARROW, "a": WIDE, "b": WIDE},
    Estimator.PERCENTILE: {"deaf": NARROW, "keen": NARROW, "a": NARROW, "b": NARROW},
    Estimator.MINMAX: {"deaf": WIDE, "keen": WIDE, "a": WIDE, "b": WIDE},
}


def closeness(model: Path, ranges: dict[str, Range], out: Path) -> float:
    """Of the variant to the model, in dB, of its worst output."""
    quantize_static(
        model, out, ranges=ranges, activations=Activations.U8, granularity=Granularity.PER_CHANNEL,
        reduce_range=False,
    )  # fmt: skip
    floats, integers = (open_session(RuntimeKind.ONNXRUNTIME, path) for path in (model, out))
    error, power = np.zeros(2), np.zeros(2)
    for feeds in TWO:
        want, got = floats.run(feeds), integers.run(feeds)
        error += [float(((got[name] - want[name]) ** 2).sum()) for name in "ab"]
        power += [float((want[name] ** 2).sum()) for name in "ab"]
    return float(10 * np.log10(power / error).min())


def test_each_tensor_gets_its_own_and_the_variant_is_closer_than_with_one_estimator(
    tmp_path: Path,
) -> None:
    model = two_readers(tmp_path / "m.onnx")
    before = model.read_bytes()
    found = measure_ranges(model, ESTIMATED, TWO, threads=1, scratch=tmp_path)
    assert found["deaf"] == NARROW
    assert found["keen"] == WIDE
    # nobody rounds results that a product gives as floats: the first estimator's stand
    assert found["a"] == found["b"] == WIDE
    own = closeness(model, found, tmp_path / "measured.onnx")
    others = [closeness(model, each, tmp_path / "other.onnx") for each in ESTIMATED.values()]
    assert own > max(others) + 6
    assert model.read_bytes() == before
    assert measure_ranges(
        model, ESTIMATED, TWO, threads=1, scratch=tmp_path, embedded_bytes=WIDTH
    ) == found  # fmt: skip


def test_what_the_samples_do_not_hold_is_not_cut_for_a_little_less_noise(tmp_path: Path) -> None:
    """They do not show what that costs; where it gains much, it is worth it."""
    model = two_readers(tmp_path / "m.onnx")
    small = [{name: np.clip(array, -3, 3) for name, array in feeds.items()} for feeds in TWO]
    for high, narrower in ((5.0, Range(-5.0, 5.0)), (30.0, NARROW)):
        wider = Range(-high, high)
        estimated = {
            Estimator.MSE: {"deaf": wider},
            Estimator.PERCENTILE: {"deaf": NARROW},
        }
        found = measure_ranges(model, estimated, small, threads=1, scratch=tmp_path)
        assert found == {"deaf": narrower}


def test_without_time_the_first_estimator_s_ranges_stand(tmp_path: Path) -> None:
    ticks = itertools.count(step=10)
    found = measure_ranges(
        two_readers(tmp_path / "m.onnx"), ESTIMATED, TWO, threads=1, scratch=tmp_path,
        clock=lambda: float(next(ticks)),
    )  # fmt: skip
    assert found == ESTIMATED[Estimator.MSE]


def test_time_is_for_whole_tensors_those_first_that_differ_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Time for one tensor and a range of another: that has no figure to go by."""
    now, runs = [0.0], 0
    real = measuring._run

    def run(*arguments: object) -> list[np.ndarray]:
        nonlocal runs
        runs += len(arguments) > 2
        now[0] += 0.25
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(measuring, "_run", run)
    narrower = Range(-30.0, 30.0)  # half as wide as `WIDE`: nearer than `NARROW` is
    estimated = {
        Estimator.MSE: {"deaf": WIDE, "keen": narrower},
        Estimator.MINMAX: {"deaf": NARROW, "keen": WIDE},
    }
    found = measure_ranges(
        two_readers(tmp_path / "m.onnx"), estimated, TWO, threads=1, scratch=tmp_path,
        clock=lambda: now[0],
    )  # fmt: skip
    assert found == {"deaf": NARROW, "keen": narrower}
    assert runs == 3 * 4


def test_where_ranges_agree_nothing_is_run(tmp_path: Path) -> None:
    near = Range(NARROW.low * 1.005, NARROW.high)
    estimated = {
        Estimator.MINMAX: {"deaf": near, "keen": near},
        Estimator.MSE: {"deaf": NARROW, "keen": NARROW},
    }

    def untouched() -> object:
        raise AssertionError("a sample was asked for")
        yield {}

    found = measure_ranges(
        two_readers(tmp_path / "m.onnx"),
        estimated,
        untouched(),  # type: ignore[arg-type]
        threads=1,
        scratch=tmp_path,
    )
    assert found == {"deaf": NARROW, "keen": NARROW}


def branching(path: Path) -> Path:
    """A product that both branches of an If read from within, one output a number of a class."""

    def branch(name: str) -> onnx.GraphProto:
        return helper.make_graph(
            [helper.make_node("MatMul", ["h", f"w {name}"], [f"y {name}"], name=name)],
            name,
            [],
            [helper.make_tensor_value_info(f"y {name}", TensorProto.FLOAT, None)],
            [weight(f"w {name}")],
        )

    random = np.random.default_rng(4)

    def weight(name: str) -> TensorProto:
        return numpy_helper.from_array(
            random.standard_normal((WIDTH, WIDTH)).astype(np.float32), name
        )

    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["h"], name="outer"),
            helper.make_node("MatMul", ["h", "v"], ["g"], name="second"),
            helper.make_node("ReduceSum", ["g"], ["sum"], name="sum", keepdims=0),
            helper.make_node("Greater", ["sum", "zero"], ["positive"], name="positive"),
            helper.make_node(
                "If", ["positive"], ["y"], name="if",
                then_branch=branch("then"), else_branch=branch("else"),
            ),
            helper.make_node("ArgMax", ["g"], ["class"], name="class", axis=1, keepdims=0),
        ],
        "branching",
        [value("x", "n", WIDTH)],
        [
            value("y", "n", WIDTH),
            value("class", "n", kind=TensorProto.INT64),
            value("h", "n", WIDTH),
        ],
        [weight("w"), weight("v"), numpy_helper.from_array(np.array(0, np.float32), "zero")],
    )  # fmt: skip
    return saved(path, graph)


def test_nested_graphs_several_outputs_and_rows_that_vary_do_not_matter(tmp_path: Path) -> None:
    model = branching(tmp_path / "m.onnx")
    large, small = Range(-500.0, 500.0), Range(-1e-3, 1e-3)
    estimated = {
        Estimator.MSE: {"x": small, "h": large, "g": large},
        Estimator.MINMAX: {"x": WIDE, "h": small, "g": small},
    }
    found = measure_ranges(model, estimated, samples("x"), threads=1, scratch=tmp_path)
    assert found == {"x": WIDE, "h": large, "g": large}


@pytest.mark.parametrize("number", [NONE, 0, 1])
def test_switched_tensor_alone_is_on_the_grid_that_the_inputs_say(
    tmp_path: Path, number: int
) -> None:
    model, switched = branching(tmp_path / "m.onnx"), tmp_path / "s.onnx"
    proto = onnx.load(model)
    make_roundable(proto.graph, ["x", "h"])
    onnx.save(proto, switched)
    feeds = samples("x")[1]
    scale, zero = grid_of(Range(-70.0, 90.0))

    def rounded(array: np.ndarray) -> np.ndarray:
        codes = np.clip(np.rint(array / scale) + np.float32(zero), 0, 255)
        return ((codes - np.float32(zero)) * scale).astype(np.float32)

    given = {"x": rounded(feeds["x"])} if number == 0 else feeds
    floats, probe = (open_session(RuntimeKind.ONNXRUNTIME, path) for path in (model, switched))
    want = floats.run(given)["h"]
    got = probe.run({**feeds, SWITCH: np.array(number), SCALE: scale, ZERO: zero})["h"]
    np.testing.assert_allclose(got, rounded(want) if number == 1 else want, rtol=1e-5, atol=1e-4)
