"""Tensors observed inside a running model, against the same tensors given out whole."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import psutil
import pytest
from onnx import TensorProto, helper, numpy_helper
from sessions import opened_sessions, still_open

from edgekit_converters.calibration import probes
from edgekit_converters.calibration.apart import observe_apart
from edgekit_converters.calibration.estimators import OF_STATISTICS, Estimator, estimate
from edgekit_converters.calibration.noise import power_of
from edgekit_converters.calibration.observer import observe
from edgekit_converters.calibration.probes import Probe, Telling, probe_for
from edgekit_converters.calibration.statistics import TensorStatistics
from edgekit_converters.calibration.watcher import SampleFailed, plan_probes
from edgekit_converters.isolation import Limits, StepFailed, StepRefused, Workshop

Feeds = dict[str, np.ndarray]
FLOAT = TensorProto.FLOAT


def write(
    path: Path,
    nodes: list[onnx.NodeProto],
    weights: dict[str, np.ndarray],
    *,
    shape: list[int | str],
    outputs: list[str],
) -> Path:
    graph = helper.make_graph(
        nodes,
        "observed",
        [helper.make_tensor_value_info("x", FLOAT, shape)],
        [helper.make_tensor_value_info(name, FLOAT, None) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save_model(model, path)
    return path


def convolutions(path: Path) -> Path:
    """Images: a clamped and a linear convolution, a residual, a head."""
    random = np.random.default_rng(0)

    def weight(*shape: int) -> np.ndarray:
        return (random.standard_normal(shape) / np.prod(shape[1:]) ** 0.5).astype(np.float32)

    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["wide"], pads=[1, 1, 1, 1]),
        helper.make_node("Clip", ["wide", "zero", "six"], ["clamped"]),
        helper.make_node("Conv", ["clamped", "w2"], ["linear"]),
        helper.make_node("Conv", ["clamped", "w3"], ["other"]),
        helper.make_node("Add", ["linear", "other"], ["sum"]),
        helper.make_node("GlobalAveragePool", ["sum"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w4"], ["y"]),
    ]
    weights = {
        "w1": 4 * weight(32, 3, 3, 3),
        "w2": weight(16, 32, 1, 1),
        "w3": weight(16, 32, 1, 1),
        "w4": weight(16, 5),
        "zero": np.array(0, np.float32),
        "six": np.array(6, np.float32),
    }
    return write(path, nodes, weights, shape=["n", 3, "h", "w"], outputs=["y"])


IMAGE_TENSORS = ("x", "clamped", "linear", "other", "sum", "flat", "y")


def images(count: int, *sides: int) -> list[Feeds]:
    random = np.random.default_rng(1)
    lengths = [sides[index % len(sides)] for index in range(count)]
    return [{"x": random.standard_normal((1, 3, s, s + 4)).astype(np.float32)} for s in lengths]


def given_out(model: Path, tensors: tuple[str, ...], samples: list[Feeds]) -> list[Feeds]:
    """The tensors of each sample, as the unchanged model computes them."""
    proto = onnx.load_model(model)
    known = {value.name for value in proto.graph.output}
    proto.graph.output.extend(
        onnx.ValueInfoProto(name=name) for name in tensors if name not in {"x", *known}
    )
    session = ort.InferenceSession(proto.SerializeToString())
    names = [name for name in tensors if name != "x"]
    return [
        {**dict(zip(names, session.run(names, feeds), strict=True)), "x": feeds["x"]}
        for feeds in samples
    ]


def state(found: dict[str, TensorStatistics]) -> dict[str, object]:
    return {
        name: (
            s.low, s.high, s.observations, s.sum_low, s.sum_high, s.not_finite,
            s.histogram.exponent, s.histogram.first, s.histogram.zeros,
            s.histogram.counts.tolist(),
        )
        for name, s in found.items()
    }  # fmt: skip


def test_extremes_are_of_all_values_whatever_is_given_out(tmp_path: Path) -> None:
    model, samples = convolutions(tmp_path / "m.onnx"), images(3, 40, 56)
    found = observe(model, IMAGE_TENSORS, samples, threads=1, scratch=tmp_path)
    whole = given_out(model, IMAGE_TENSORS, samples)
    for name in IMAGE_TENSORS:
        lows = [min(float(tensors[name].min()), 0.0) for tensors in whole]
        highs = [max(float(tensors[name].max()), 0.0) for tensors in whole]
        seen = found[name]
        told = (seen.low, seen.high, seen.mean_low, seen.mean_high)
        expected = (min(lows), max(highs), np.mean(lows), np.mean(highs))
        # fused otherwise, the model itself rounds otherwise
        assert told == pytest.approx(expected, rel=1e-5, abs=1e-6), name


def test_selected_values_are_spread_as_all_are(tmp_path: Path) -> None:
    model, samples = convolutions(tmp_path / "m.onnx"), images(12, 40, 56)
    found = observe(model, IMAGE_TENSORS, samples, threads=1, scratch=tmp_path)
    whole = given_out(model, IMAGE_TENSORS, samples)
    for name in ("clamped", "linear", "sum"):
        values = np.concatenate([tensors[name].ravel() for tensors in whole])
        assert found[name].histogram.total < values.size / 4
        assert power_of(found[name]) == pytest.approx(float((values**2).mean()), rel=0.1)
        percentile = estimate(found[name], Estimator.PERCENTILE)
        assert percentile is not None
        assert percentile.high == pytest.approx(np.percentile(values, 99.995), rel=0.15)


def test_big_tensors_are_pooled_where_they_are_images_and_sliced_else(tmp_path: Path) -> None:
    plan = plan_probes(
        convolutions(tmp_path / "m.onnx"), IMAGE_TENSORS, images(1, 40)[0], threads=1
    )
    assert {name for name, probe in plan.items() if probe.telling is Telling.POOLED} == {
        "clamped", "linear", "other", "sum",
    }  # fmt: skip
    assert {name for name, probe in plan.items() if probe.rectified} == {"clamped"}
    assert probe_for((1, 300, 300), rectified=False).telling is Telling.FLAT
    assert probe_for((1, 4096, 4, 4), rectified=False).telling is Telling.FLAT
    assert probe_for((64, 64), rectified=True) == Probe()


def test_probes_follow_what_they_read_and_nothing_is_lost(tmp_path: Path) -> None:
    model = onnx.load_model(convolutions(tmp_path / "m.onnx"))
    before = [node.output[0] for node in model.graph.node]
    probes.add_probes(
        model,
        {
            "clamped": Probe(telling=Telling.POOLED, step=2, rectified=True),
            "sum": Probe(telling=Telling.FLAT, step=3),
        },
    )
    count = len(model.graph.node)
    probes.interleave(model, frozenset({"y"}))
    made = {"x", *(tensor.name for tensor in model.graph.initializer)}
    for node in model.graph.node:
        assert made.issuperset(node.input)
        made.update(node.output)
    order = [node.output[0] for node in model.graph.node]
    assert len(order) == count and [name for name in order if name in before] == before
    following = order[order.index("clamped") + 1 : order.index("linear")]
    assert len(following) == 2 and all(name.endswith("/clamped") for name in following)
    following = order[order.index("sum") + 1 : order.index("mean")]
    assert len(following) == 4 and all(name.endswith("/sum") for name in following)


def masked(path: Path) -> Path:
    """Sequences: `scores` is minus infinity wherever x is below -2."""
    nodes = [
        helper.make_node("Less", ["x", "limit"], ["hidden"]),
        helper.make_node("Where", ["hidden", "nothing", "x"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["weights"], axis=-1),
        helper.make_node("MatMul", ["weights", "w"], ["y"]),
    ]
    weights = {
        "limit": np.array(-2, np.float32),
        "nothing": np.array(-np.inf, np.float32),
        "w": np.random.default_rng(0).standard_normal((150, 3)).astype(np.float32),
    }
    return write(path, nodes, weights, shape=["n", "length", 150], outputs=["y"])


def sequences(*lengths: int) -> list[Feeds]:
    random = np.random.default_rng(2)
    return [{"x": random.standard_normal((1, n, 150)).astype(np.float32)} for n in lengths]


def test_infinity_is_left_out_of_ranges_and_counted(tmp_path: Path) -> None:
    model, samples = masked(tmp_path / "m.onnx"), sequences(200, 120, 300)
    assert plan_probes(model, ["scores"], samples[0], threads=1)["scores"].telling is Telling.FLAT
    found = observe(model, ["scores", "weights"], samples, threads=1, scratch=tmp_path)
    kept = [feeds["x"][feeds["x"] >= -2] for feeds in samples]
    assert found["scores"].low == min(float(values.min()) for values in kept)
    assert found["scores"].high == max(float(values.max()) for values in kept)
    hidden = sum(int((feeds["x"] < -2).sum()) for feeds in samples)
    assert found["scores"].not_finite == hidden > 0
    assert found["weights"].observations == 3 and found["weights"].low == 0


def test_a_sample_that_leaves_a_tensor_empty_adds_nothing(tmp_path: Path) -> None:
    model = masked(tmp_path / "m.onnx")
    full = sequences(200)
    found = observe(model, ["x", "y"], [*full, *sequences(0)], threads=1, scratch=tmp_path)
    assert found["y"].observations == found["x"].observations == 1
    # probed, too: the runtime does not reduce what is empty
    found = observe(model, ["weights"], [*full, *sequences(0)], threads=1, scratch=tmp_path)
    assert found["weights"].observations == 1


@pytest.fixture(scope="module")
def workshop() -> Iterator[Workshop]:
    with Workshop() as opened:
        yield opened


def apart(
    workshop: Workshop, model: Path, tensors: Sequence[str], samples: Iterable[Feeds],
    *, timeout_s: float = 60.0, children: int = 1, **how: Callable[[int], None],
) -> dict[str, TensorStatistics]:  # fmt: skip
    return observe_apart(
        workshop,
        model,
        tensors,
        samples,
        bounds=Limits(timeout_s=timeout_s),
        threads=1,
        scratch=model.parent,
        children=children,
        **how,
    )


@pytest.mark.parametrize("children", [1, 2, 3])
def test_children_see_what_this_process_does_to_the_bit(
    children: int, tmp_path: Path, workshop: Workshop
) -> None:
    model, samples = convolutions(tmp_path / "m.onnx"), images(7, 40, 24, 56)
    here = observe(model, IMAGE_TENSORS, samples, threads=1, scratch=tmp_path)
    steps: list[int] = []
    there = apart(workshop, model, IMAGE_TENSORS, samples, children=children, advance=steps.append)
    assert state(here) == state(there) and steps == [1] * 7
    for estimator in OF_STATISTICS:
        ranges = [{n: estimate(s, estimator) for n, s in f.items()} for f in (here, there)]
        assert ranges[0] == ranges[1]


def failing(path: Path) -> tuple[Path, list[Feeds]]:
    """A model, and samples of which it fails on number 3."""
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    weights = {"w": np.ones((6, 2), np.float32)}
    model = write(path / "m.onnx", [node], weights, shape=["n", "k"], outputs=["y"])
    return model, [{"x": np.ones((1, 5 if i == 3 else 6), np.float32)} for i in range(6)]


def test_a_sample_that_the_model_fails_on_is_told_by_number(tmp_path: Path) -> None:
    model, samples = failing(tmp_path)
    with opened_sessions() as sessions, pytest.raises(SampleFailed) as failed:
        observe(model, ["y"], samples, threads=1, scratch=tmp_path)
    assert failed.value.index == 3
    assert sessions and not still_open(sessions)


def test_a_sample_that_the_model_fails_on_apart_is_told_by_number(
    tmp_path: Path, workshop: Workshop
) -> None:
    model, samples = failing(tmp_path)
    with pytest.raises(SampleFailed) as failed:
        apart(workshop, model, ["y"], samples)
    assert failed.value.index == 3
    assert list(tmp_path.iterdir()) == [model]


def child() -> psutil.Process:
    """The process that observes: its parent leads the call, and that one's is the workshop."""
    tree = psutil.Process().children(recursive=True)
    return next(p for p in tree if not p.children() and p.parent() in tree)


@pytest.mark.parametrize(
    ("number", "said"),
    [(signal.SIGSEGV, "it crashed (SIGSEGV)"), (signal.SIGSTOP, "it did not end within 2 s")],
)
def test_a_child_that_dies_or_hangs_is_told_and_gone(
    tmp_path: Path, number: signal.Signals, said: str
) -> None:
    model, ended = convolutions(tmp_path / "m.onnx"), []

    def samples() -> Iterator[Feeds]:
        yield from images(2, 24)
        ended.append(child())
        ended[0].send_signal(number)
        yield from images(20, 24)

    with Workshop() as own:
        with pytest.raises(StepFailed) as failed:
            apart(own, model, IMAGE_TENSORS, samples(), timeout_s=2.0)
        assert str(failed.value) == f"calibration failed: {said}."
        assert not ended[0].is_running()
        assert apart(own, model, IMAGE_TENSORS, images(1, 24))["y"].observations == 1


def test_a_child_that_refuses_a_model_says_so(tmp_path: Path, workshop: Workshop) -> None:
    (tmp_path / "m.onnx").write_bytes(
        write(tmp_path / "n.onnx", [], {}, shape=[1], outputs=["z"]).read_bytes()
    )
    with pytest.raises(StepRefused, match="does not load"):
        apart(workshop, tmp_path / "m.onnx", ["x"], [{"x": np.ones(1, np.float32)}])


def test_time_that_is_taken_between_samples_is_not_the_childs(
    tmp_path: Path, workshop: Workshop
) -> None:
    def samples() -> Iterator[Feeds]:
        for sample in images(3, 24):
            time.sleep(1.5)
            yield sample

    model = convolutions(tmp_path / "m.onnx")
    assert apart(workshop, model, ["y"], samples(), timeout_s=3.0)["y"].observations == 3
