"""Metrics, latency ratios, golden vectors and preprocessing: the numbers of a build."""

from __future__ import annotations

import itertools
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import ClassVar, cast

import msgspec
import numpy as np
import onnx
import pytest
from parts import need_package
from tflite_files import relu_file

from edgekit.build.accuracy import Contestant, measure_accuracy
from edgekit.build.bench import Bench
from edgekit.build.kitchen import Variant
from edgekit.build.latency import joined, measure_latencies, race, ratio_of
from edgekit.build.metrics import Metric
from edgekit.build.model_file import ModelFile
from edgekit.build.progress import Silent
from edgekit.build.samples import DataRejected, Sample
from edgekit.build.split import MIN_HELD_OUT, Split
from edgekit.build.truths import Truths
from edgekit.build.vectors import GoldenSet, choose_vectors
from edgekit_contract.errors import Refused
from edgekit_contract.manifest import AudioPreprocess, Color, ImagePreprocess, Layout, TensorSpec
from edgekit_contract.profile import RuntimeKind
from edgekit_converters.recipes import find_recipe
from edgekit_runtime.golden import check_golden
from edgekit_runtime.preprocess import PreprocessRejected, image_tensor, resize_bilinear, windows
from edgekit_runtime.session import Session, SessionOptions, Tensors, open_session


def test_ratio_is_of_rounds_so_that_slow_rounds_cancel() -> None:
    random = np.random.default_rng(0)
    noise = random.uniform(1, 20, 60)
    found = ratio_of([(n, 0.5 * n * random.uniform(0.99, 1.01)) for n in noise])
    assert found.low < 0.5 < found.high + 0.01
    assert found.high - found.low < 0.02
    assert found.is_faster and not found.is_slower


def test_equal_models_are_neither_faster_nor_slower() -> None:
    random = np.random.default_rng(1)
    found = ratio_of([tuple(random.uniform(1, 1.2, 2)) for _ in range(60)])
    assert not found.is_faster and not found.is_slower


@pytest.mark.parametrize(("again", "is_slower"), [(1.0, False), (1.05, True)])
def test_a_difference_counts_where_two_races_agree(again: float, is_slower: bool) -> None:
    random = np.random.default_rng(2)
    first, second = (
        ratio_of([(1.0, ratio * random.uniform(0.99, 1.01)) for _ in range(60)])
        for ratio in (1.05, again)
    )
    both = joined(first, second)
    assert first.is_slower and both.is_slower is is_slower
    assert both.low <= min(first.ratio, second.ratio) <= both.ratio <= both.high
    assert both.rounds == 120


CASTS = (
    ("pixels", onnx.TensorProto.UINT8),
    ("steps", onnx.TensorProto.INT8),
    ("classes", onnx.TensorProto.INT64),
    ("places", onnx.TensorProto.INT32),
)


def null_model(path: Path, scale: float) -> Path:
    spec = TensorSpec(name="x", dtype="float32", shape=("batch", 2))
    path.write_bytes(msgspec.json.encode({"inputs": [spec], "scale": scale}))
    return path


def of(path: Path, kind: RuntimeKind = RuntimeKind.NULL) -> ModelFile:
    return ModelFile(path=path, kind=kind)


def ramp(count: int) -> list[Sample]:
    return [Sample(feeds={"x": np.full((1, 2), i, np.float32)}, labels=None) for i in range(count)]


def bench(path: Path, samples: int) -> Bench:
    return Bench(
        truth=of(null_model(path, 1.0)),
        metric=Metric(name="r2"),
        samples=lambda: ramp(samples),
        count=samples,
        search_time_s=60.0,
        progress=Silent(),
    )


def test_outputs_of_other_lengths_are_wrong_throughout_and_no_failure(tmp_path: Path) -> None:
    """As many boxes as were found: one more on one sample of twenty."""
    spec = TensorSpec(name="x", dtype="float32", shape=("batch", 2))
    model = tmp_path / "m"
    model.write_bytes(msgspec.json.encode({"inputs": [spec], "scale": 1.0}))
    contestant = Contestant("m", of(model), options=SessionOptions(), metric=Metric(name="r2"))
    for index, sample in enumerate(ramp(20)):
        total = sample.feeds["x"].sum(axis=1)
        contestant.take(sample, {"y": np.repeat(total, 2 if index == 7 else 1)})
    found = contestant.close()
    assert found.failure is None and found.samples == 20
    assert found.score is not None and 0 < found.score.value < 0.8


def test_closer_look_takes_more_of_the_selection_and_forgets_what_was_found(tmp_path: Path) -> None:
    found = bench(tmp_path / "b", 2000)
    variant = Variant(
        recipe=find_recipe("float32"), kind=RuntimeKind.NULL, path=null_model(tmp_path / "a", 1.01)
    )
    found._most = 200
    counts = []
    for _ in range(3):
        counts.append(found.accuracies([variant])["float32"].samples)
        found.look_closer()
    assert counts == [200, 600, 1000] and found.looked_at == 1000


@pytest.mark.parametrize("samples", [MIN_HELD_OUT - 1, MIN_HELD_OUT])
def test_enough_samples_are_split_between_choice_and_report(tmp_path: Path, samples: int) -> None:
    found = bench(tmp_path / "b", samples)
    variant = Variant(
        recipe=find_recipe("float32"), kind=RuntimeKind.NULL, path=null_model(tmp_path / "a", 1.01)
    )
    seen = found.accuracies([variant])["float32"]
    held_out = found.held_out([variant])
    if samples < MIN_HELD_OUT:
        assert seen.samples == samples and not held_out
    else:
        assert seen.samples == held_out["float32"].samples == MIN_HELD_OUT // 2
        chosen = [int(s.feeds["x"][0, 0]) for s in found.selection()]
        assert found.looked_at == len(chosen)
        assert chosen == [i for i in range(samples) if Split(samples=samples).selects(i)]


@pytest.mark.parametrize("period", [2, 3, 4, 10])
def test_halves_are_equal_and_see_each_class_of_those_that_take_turns(period: int) -> None:
    split = Split(samples=1001)
    selected = [i for i in range(1001) if split.selects(i)]
    assert split.selected == len(selected) in (500, 501)
    counts = np.bincount([i % period for i in selected], minlength=period)
    assert counts.min() > 0.8 * 500 / period


def test_data_that_change_from_pass_to_pass_are_refused(tmp_path: Path) -> None:
    truths = Truths(of(null_model(tmp_path / "b", 1.0)))
    assert len(list(truths.along(ramp(5)))) == 5
    with pytest.raises(DataRejected, match="other rows in another pass"):
        list(truths.along(ramp(5)[::-1]))


def test_variant_that_was_run_on_nothing_has_failed(tmp_path: Path) -> None:
    model = null_model(tmp_path / "b", 1.0)
    found = measure_accuracy(
        {"a": of(model)},
        metric=Metric(name="r2"),
        samples=list,
        truths=Truths(of(model)),
        advance=lambda steps: None,
    )
    assert found["a"].failure and found["a"].score is None


def test_outputs_without_elements_are_compared_by_the_others(tmp_path: Path) -> None:
    info, float_ = onnx.helper.make_tensor_value_info, onnx.TensorProto.FLOAT
    paths = {}
    for name, factor in (("b", 1.0), ("a", 1.1)):
        graph = onnx.helper.make_graph(
            [
                onnx.helper.make_node("Slice", ["x", "zero", "zero"], ["none"]),
                onnx.helper.make_node("Mul", ["x", "factor"], ["y"]),
            ],
            "g",
            [info("x", float_, ["n", 2])],
            [info("none", float_, ["k", 2]), info("y", float_, ["n", 2])],
            [
                onnx.numpy_helper.from_array(np.zeros(1, np.int64), "zero"),
                onnx.numpy_helper.from_array(np.array(factor, np.float32), "factor"),
            ],
        )
        opsets = [onnx.helper.make_opsetid("", 17)]
        model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8)
        paths[name] = of(tmp_path / name, RuntimeKind.ONNXRUNTIME)
        onnx.save(model, tmp_path / name)
    found = measure_accuracy(
        {"a": paths["a"]},
        metric=Metric(name="cosine"),
        samples=lambda: ramp(4),
        truths=Truths(paths["b"]),
        advance=lambda steps: None,
    )
    assert found["a"].failure is None and found["a"].errors[0].expected.startswith("y[")


def test_baseline_runs_once_over_samples_that_variants_see_again(tmp_path: Path) -> None:
    truths = Truths(of(null_model(tmp_path / "b", 1.0)))
    first = [outputs for _, outputs in truths.along(ramp(3))]
    (tmp_path / "b").unlink()
    again = [outputs for _, outputs in truths.along(ramp(3))]
    assert all(a is b for a, b in zip(first, again, strict=True))


def test_variant_that_does_not_load_or_fails_on_a_late_sample_is_out(tmp_path: Path) -> None:
    spec = TensorSpec(name="x", dtype="float32", shape=("batch", 2))
    fragile = tmp_path / "fragile"
    fragile.write_bytes(msgspec.json.encode({"inputs": [spec], "fail_above": 30}))
    (tmp_path / "broken").write_bytes(b"no model")
    seen: list[int] = []
    found = measure_accuracy(
        {"fragile": of(fragile), "broken": of(tmp_path / "broken")},
        metric=Metric(name="r2"),
        samples=lambda: ramp(50),
        truths=Truths(of(null_model(tmp_path / "b", 1.0))),
        advance=seen.append,
    )
    assert "above 30" in str(found["fragile"].failure) and len(seen) == 50
    assert "does not load" in str(found["broken"].failure)


def test_closeness_is_the_signal_over_the_noise_of_the_worst_output(tmp_path: Path) -> None:
    found = measure_accuracy(
        {
            "a": of(null_model(tmp_path / "a", 1.1)),
            "same": of(null_model(tmp_path / "s", 1.0)),
        },
        metric=Metric(name="r2"),
        samples=lambda: ramp(20),
        truths=Truths(of(null_model(tmp_path / "b", 1.0))),
        advance=lambda steps: None,
    )
    assert found["a"].closeness_db == pytest.approx(20, abs=1e-4)
    assert found["same"].closeness_db == 200
    worst = found["a"].errors
    assert len(worst) == 5 and not found["same"].errors
    assert worst[0].expected != worst[0].got


def test_golden_vectors_without_finite_output_are_refused(tmp_path: Path) -> None:
    huge = [Sample(feeds={"x": np.full((1, 2), 3e38, np.float32)}, labels=None)]
    with pytest.raises(Refused, match="NaN or infinity"), np.errstate(over="ignore"):
        choose_vectors(
            null_model(tmp_path / "m", 10.0),
            RuntimeKind.NULL,
            options=SessionOptions(),
            samples=lambda: huge,
            output_step=0.1,
            source="generated",
        )


def test_golden_tolerance_is_at_least_a_step_of_the_output(tmp_path: Path) -> None:
    found = choose_vectors(
        null_model(tmp_path / "m", 1.0),
        RuntimeKind.NULL,
        options=SessionOptions(),
        samples=lambda: ramp(20),
        output_step=1 / 255,
        source="validation",
    )
    outputs = [float(v.outputs["y"][0]) for v in found.vectors]
    assert found.golden.tolerances["y"].absolute == pytest.approx(max(outputs) / 255)
    assert found.golden.count == len(found.vectors) == 8


def golden_of(model: Path, kind: RuntimeKind, samples: list[dict[str, np.ndarray]]) -> GoldenSet:
    return choose_vectors(
        model,
        kind,
        options=SessionOptions(),
        samples=lambda: [Sample(feeds=feeds, labels=None) for feeds in samples],
        output_step=1e-4,
        source="validation",
    )


def test_golden_tolerance_of_an_int8_output_is_one_step(tmp_path: Path) -> None:
    need_package("ai_edge_litert", install="ai-edge-litert")
    model = tmp_path / "m.tflite"
    model.write_bytes(relu_file(3, scale=0.5))
    rows = [{"x": np.array([[i, -i, 2 * i]], np.int8)} for i in range(1, 10)]
    found = golden_of(model, RuntimeKind.LITERT, rows)
    assert found.vectors[0].outputs["y"].dtype == np.int8
    assert found.golden.tolerances["y"].absolute == 1


def test_golden_tolerance_of_class_numbers_is_0_and_of_pixels_a_step(tmp_path: Path) -> None:
    node = {name: onnx.helper.make_node("Cast", ["x"], [name], to=kind) for name, kind in CASTS}
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        list(node.values()),
        "casts",
        [info("x", onnx.TensorProto.FLOAT, [1, 3])],
        [info(name, kind, [1, 3]) for name, kind in CASTS],
    )
    path = tmp_path / "m.onnx"
    opsets = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    rows = [{"x": np.full((1, 3), i, np.float32)} for i in range(8)]
    found = golden_of(path, RuntimeKind.ONNXRUNTIME, rows).golden.tolerances
    assert {name: t.absolute for name, t in found.items()} == {
        "pixels": 1, "steps": 1, "classes": 0, "places": 0,
    }  # fmt: skip


def test_golden_vectors_keep_infinities_that_every_level_has(tmp_path: Path) -> None:
    """As attention masks have them: in part of the outputs of every sample."""
    info, float_ = onnx.helper.make_tensor_value_info, onnx.TensorProto.FLOAT
    mask = onnx.numpy_helper.from_array(np.array([0, -np.inf, 0], np.float32), "mask")
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Add", ["x", "mask"], ["y"])],
        "masked",
        [info("x", float_, [1, 3])],
        [info("y", float_, [1, 3])],
        [mask],
    )
    path = tmp_path / "m.onnx"
    opsets = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    rows = [{"x": np.array([[i, 1, 2]], np.float32)} for i in range(9)]
    found = golden_of(path, RuntimeKind.ONNXRUNTIME, rows)
    assert found.golden.tolerances["y"].absolute < 1 and not found.golden.top1
    session = open_session(RuntimeKind.ONNXRUNTIME, path)
    assert check_golden(session, found.golden, found.vectors) is None
    session.close()


def test_golden_tolerance_of_an_output_that_is_always_zero_is_not_0(tmp_path: Path) -> None:
    rows = [{"x": np.zeros((1, 2), np.float32)}] * 3
    found = golden_of(null_model(tmp_path / "m", 1.0), RuntimeKind.NULL, rows)
    assert found.golden.tolerances["y"].absolute == pytest.approx(1e-4)


def test_resizing_agrees_with_exact_bilinear_interpolation() -> None:
    gradient = np.broadcast_to(np.arange(8, dtype=np.float32)[None, :, None], (4, 8, 1))
    halved = resize_bilinear(gradient, 4, 4)[0, :, 0]
    assert halved.tolist() == [0.5, 2.5, 4.5, 6.5]
    assert np.array_equal(resize_bilinear(gradient, 4, 8), gradient)
    assert resize_bilinear(gradient, 7, 19).shape == (7, 19, 1)


def test_image_preprocessing_does_color_scale_mean_std_and_layout() -> None:
    red = np.zeros((2, 2, 3), np.uint8)
    red[:, :, 0] = 255
    how = ImagePreprocess(
        input="x", height=2, width=2, color=Color.BGR, mean=(0, 0, 0.5), std=(1, 1, 0.5)
    )
    tensor = image_tensor(red, how)
    assert tensor.shape == (3, 2, 2) and tensor.dtype == np.float32
    assert tensor[:, 0, 0].tolist() == [0, 0, 1]
    gray = msgspec.structs.replace(how, color=Color.GRAY, layout=Layout.NHWC, mean=(0,), std=(1,))
    assert image_tensor(red, gray).shape == (2, 2, 1)
    assert image_tensor(red, gray)[0, 0, 0] == pytest.approx(0.299)


@pytest.mark.parametrize("shape", [(2, 2, 4), (0, 2, 3), (2,), (1, 2, 2, 3)])
def test_array_that_is_no_image_is_refused(shape: tuple[int, ...]) -> None:
    how = ImagePreprocess(input="x", height=2, width=2)
    with pytest.raises(PreprocessRejected):
        image_tensor(np.zeros(shape, np.uint8), how)


def test_sound_is_mixed_resampled_and_cut() -> None:
    seconds = np.arange(16000) / 16000
    tone = np.sin(2 * np.pi * 440 * seconds).astype(np.float32)
    how = AudioPreprocess(input="x", sample_rate_hz=8000, window_samples=3000)
    found = list(windows(np.stack([tone, tone], axis=1), 16000, how))
    assert [len(w) for w in found] == [3000, 3000, 3000]
    joined = np.concatenate(found)[:8000]
    spectrum = np.abs(np.fft.rfft(joined))
    assert int(spectrum.argmax()) == 440


def test_race_gives_every_variant_its_turn_and_ends_with_its_budget(tmp_path: Path) -> None:
    slow, spec = tmp_path / "slow", TensorSpec(name="x", dtype="float32", shape=("batch", 2))
    slow.write_bytes(msgspec.json.encode({"inputs": [spec], "delay_s": 0.002}))
    fast = null_model(tmp_path / "fast", 1.0)
    found = measure_latencies(
        {"slow": of(slow), "fast": of(fast)},
        baseline=of(fast),
        options={},
        feeds=[ramp(1)[0].feeds],
        budget_s=0.2,
    )
    assert found["slow"].low > 5 and found["slow"].is_slower
    assert found["fast"].rounds >= found["slow"].rounds >= 15


class Runner:
    """A session that takes its time by a clock of its own, and tells who ran before whom."""

    now_s = 0.0
    ran: ClassVar[list[str]] = []

    def __init__(self, name: str, takes_s: float) -> None:
        self.name, self.takes_s = name, takes_s

    def run(self, feeds: Tensors) -> Tensors:
        Runner.now_s += self.takes_s
        Runner.ran.append(self.name)
        return {}


def raced(*runners: Runner) -> tuple[list[str], int]:
    """Who ran, one run after the other, without those that warm up; in how many rounds."""
    Runner.ran.clear()
    sessions = {runner.name: cast(Session, runner) for runner in runners[1:]}
    found = race(
        sessions,
        baseline=cast(Session, runners[0]),
        feeds=[{}],
        budget_s=10.0,
        clock=lambda: Runner.now_s,
    )
    return Runner.ran[3 * len(runners) :], max(each.rounds for each in found.values())


def test_each_turn_follows_each_others_about_as_often() -> None:
    ran, _ = raced(Runner("float32", 0.01), Runner("a", 0.004), Runner("b", 0.004))
    turns = [name for name, _ in itertools.groupby(ran)]
    follows = Counter(itertools.pairwise(turns))
    of_a = [follows[before, "a"] for before in ("float32", "b")]
    assert min(of_a) > 0.5 * max(of_a)


def test_what_does_not_count_of_a_turn_lasts_until_caches_have_settled() -> None:
    ran, rounds = raced(Runner("float32", 0.010), Runner("a", 0.0018))
    # of each a run or 8 ms that do not count, then a run or 4 ms that do
    assert Counter(ran) == {"float32": rounds * (1 + 1), "a": rounds * (5 + 2)}
    ran, rounds = raced(Runner("float32", 0.030), Runner("a", 0.026))
    assert Counter(ran) == {"float32": rounds, "a": rounds}


def test_race_of_slow_models_is_of_few_rounds(tmp_path: Path) -> None:
    slow, spec = tmp_path / "slow", TensorSpec(name="x", dtype="float32", shape=("batch", 2))
    slow.write_bytes(msgspec.json.encode({"inputs": [spec], "scale": 1.0}))
    at = itertools.count(step=2.0)  # each look at the clock is 2 s after the one before
    found = measure_latencies(
        {"slow": of(slow)},
        baseline=of(slow),
        options={},
        feeds=[ramp(1)[0].feeds],
        budget_s=0.2,
        clock=lambda: next(at),
    )
    assert found["slow"].rounds == 5


@pytest.mark.parametrize(("patience_s", "rounds"), [(0.0, 5), (0.1, 10), (10.0, 15)])
def test_race_has_all_its_rounds_while_patience_lasts(
    tmp_path: Path, patience_s: float, rounds: int
) -> None:
    """A round looks at the clock five times: at its beginning, and around each of two turns."""
    model = of(null_model(tmp_path / "same", 1.0))
    at = itertools.count(step=0.002)
    with closing(model.open()) as baseline, closing(model.open()) as other:
        found = race(
            {"other": other},
            baseline=baseline,
            feeds=[ramp(1)[0].feeds],
            budget_s=0.0,
            patience_s=patience_s,
            clock=lambda: next(at),
        )
    assert found["other"].rounds == rounds
