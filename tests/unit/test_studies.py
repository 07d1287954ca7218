"""Studies of a model: in a child process, whatever its size, and none that fails ends a build."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from build_requests import request
from small_models import write_data, write_small

from edgekit.build import build, kitchen, pantry
from edgekit.build.data import open_data
from edgekit.build.kitchen import Kitchen
from edgekit.build.material import gather
from edgekit.build.pantry import Base, Pantry
from edgekit.build.progress import Silent
from edgekit.build.report import Outcome
from edgekit_contract.profile import RuntimeKind
from edgekit_converters import external, isolation, studies
from edgekit_converters.calibration import apart
from edgekit_converters.calibration.estimators import OF_STATISTICS, Estimator, Range
from edgekit_converters.conditioning.equalization import equalize_file
from edgekit_converters.conditioning.moments import collect_moments, read_moments
from edgekit_converters.conditioning.smoothing import smooth_file
from edgekit_converters.quantization import measuring
from edgekit_converters.quantization.measuring import measure_ranges
from edgekit_converters.quantization.selection import select_static
from edgekit_converters.quantization.sensitivity import measure_noise
from edgekit_converters.recipes import find_recipe
from edgekit_converters.recipes.tuning import Tuning
from edgekit_converters.sources import open_source
from edgekit_converters.tensorfile import read_tensors
from edgekit_runtime.session import open_session

CRASHING = """
import os, signal

def crash(**arguments):
    os.kill(os.getpid(), signal.SIGSEGV)

noise = moments = ranges = equalized = levelled = smoothed = crash
"""
CRASHING_CALIBRATION = """
import os, signal

def serve(connection, **arguments):
    connection.recv()
    os.kill(os.getpid(), signal.SIGSEGV)
"""
WIDTH = 72


def chain(path: Path) -> Path:
    """Products with channels of very different size: there is something to smooth and to even."""
    random = np.random.default_rng(3)
    make, value = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    sizes = np.logspace(-2, 1, WIDTH)
    weights = {
        "w": random.standard_normal((WIDTH, WIDTH)) * sizes,
        "v": random.standard_normal((WIDTH, WIDTH)),
    }
    graph = onnx.helper.make_graph(
        [
            make("MatMul", ["x", "w"], ["h"], name="first"),
            make("Relu", ["h"], ["r"], name="relu"),
            make("MatMul", ["r", "v"], ["y"], name="second"),
        ],
        "chain",
        [value("x", onnx.TensorProto.FLOAT, ["n", WIDTH])],
        [value("y", onnx.TensorProto.FLOAT, ["n", WIDTH])],
        [onnx.numpy_helper.from_array(np.float32(v), name) for name, v in weights.items()],
    )
    opsets = [onnx.helper.make_opsetid("", 17)]
    onnx.save_model(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


FEEDS = [
    {"x": np.random.default_rng(seed).standard_normal((4, WIDTH)).astype(np.float32)}
    for seed in range(6)
]


@pytest.mark.parametrize("rewrite", [smooth_file, equalize_file])
def test_rewritten_model_too_large_for_one_file_keeps_its_weights_beside_it(
    tmp_path: Path, rewrite: object
) -> None:
    assert callable(rewrite)
    model, whole, parts = chain(tmp_path / "m.onnx"), tmp_path / "a.onnx", tmp_path / "b.onnx"
    changed = rewrite(model, whole, FEEDS, threads=1, scratch=tmp_path)
    assert changed == rewrite(
        model, parts, FEEDS, threads=1, scratch=tmp_path, embedded_bytes=WIDTH * WIDTH
    )
    assert external.files(parts)[1:] == (tmp_path / "b.onnx.data",)
    kind = open_source(model, scratch=tmp_path).kind
    want, got = (open_session(kind, path).run(FEEDS[0])["y"] for path in (whole, parts))
    assert np.array_equal(want, got)


def test_nodes_of_a_model_too_large_for_one_file_are_ranked_all_the_same(tmp_path: Path) -> None:
    model = chain(tmp_path / "m.onnx")
    selection = select_static(onnx.load_model(model))
    ranges = {name: Range(-30.0, 30.0) for name in selection.observed}

    def ranked(embedded_bytes: int) -> object:
        return measure_noise(
            model, selection, ranges, FEEDS[:2], per_channel=True, threads=1, scratch=tmp_path,
            embedded_bytes=embedded_bytes,
        )  # fmt: skip

    assert ranked(WIDTH * WIDTH) == ranked(external.MAX_EMBEDDED_BYTES) != ()
    assert list(tmp_path.iterdir()) == [model]


def kitchen_of(
    model: Path,
    scratch: Path,
    workshop: isolation.Workshop,
    estimators: tuple[Estimator, ...] = (Estimator.MINMAX,),
    count: int = 12,
) -> Kitchen:
    data = open_data(str(write_data(scratch / "d.npz", count, x=(3, 8, 8))))
    source = open_source(model, scratch=scratch, run=workshop.run)
    material = gather(source, data, None, normalizes=True, scratch=scratch, run=workshop.run)
    pantry = Pantry(material, estimators, workshop, scratch=scratch, threads=1, progress=Silent())
    return Kitchen(pantry, workshop, scratch=scratch)


def studied(found: Pantry) -> list[Mapping[str, np.ndarray]]:
    return [read_tensors(Path(path)) for path in found.samples()]


def test_studies_in_a_child_give_what_they_do_here(tmp_path: Path) -> None:
    with isolation.Workshop() as workshop:
        found = kitchen_of(write_small("constant_nodes", tmp_path), tmp_path, workshop)
        ranked = found.noise(RuntimeKind.ONNXRUNTIME)
        variant = found.make(
            find_recipe("int8-static/per-channel/s8s8/minmax"), Tuning(reconstructed=True)
        )
    selection = select_static(onnx.load_model(found.pantry.normalized))
    here = measure_noise(
        found.pantry.normalized,
        selection,
        found.pantry.calibration.widest,
        studied(found.pantry),
        per_channel=True,
        threads=1,
        scratch=tmp_path,
    )
    assert [n.node for n in ranked] == [n.node for n in here] and len(ranked) == 2
    assert ranked[0].noise_db == pytest.approx(here[0].noise_db, abs=1e-6)
    assert variant.failure is None and variant.path.is_file()
    nodes = [n.node for n in ranked]
    moments = collect_moments(
        found.pantry.normalized, nodes, studied(found.pantry), threads=1, scratch=tmp_path
    )
    assert set(moments) == set(nodes)
    assert found.pantry.remarks == []


def test_moments_take_samples_that_other_studies_do_without(tmp_path: Path) -> None:
    model = write_small("constant_nodes", tmp_path)
    with isolation.Workshop() as workshop:
        found = kitchen_of(model, tmp_path, workshop, count=100).pantry
        few = found.samples()
        files = found.samples(1000)
        assert few == found.samples() == files[:24] and 24 < len(files) <= 100
    out = tmp_path / "moments.npz"

    def rows(most_s: float) -> int:
        studies.moments(
            model=str(found.normalized),
            out=str(out),
            samples=files,
            least=1,
            most_s=most_s,
            threads=1,
        )
        return min(moments.rows for moments in read_moments(out).values())

    assert rows(60.0) > rows(0.0) > 0


def test_ranges_are_measured_in_a_child_once_for_each_model_to_start_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "_TIME_S", 60.0)  # each tensor is reached
    told: list[Mapping[str, tuple[float, float]]] = []
    with isolation.Workshop() as workshop:
        found = kitchen_of(
            write_small("constant_nodes", tmp_path), tmp_path, workshop, OF_STATISTICS
        )
        real = workshop.run

        def run(step: str, *arguments: Any) -> Any:
            given = real(step, *arguments)
            if step == "measuring ranges":
                told.append(given)
            return given

        monkeypatch.setattr(workshop, "run", run)
        made = [
            found.make(find_recipe(f"int8-static/per-channel/{kind}/measured"))
            for kind in ("s8s8", "u8s8")
        ]
    assert [variant.failure for variant in made] == [None, None]
    assert len(told) == 1
    here = measure_ranges(
        found.pantry.normalized,
        found.pantry.calibration.ranges,
        studied(found.pantry),
        threads=1,
        scratch=tmp_path,
    )
    assert {name: Range(*ends) for name, ends in told[0].items()} == here


def test_crash_in_a_study_costs_what_it_was_for_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "crashing_studies.py").write_text(CRASHING)
    monkeypatch.syspath_prepend(str(tmp_path))
    for module in (kitchen, pantry):
        monkeypatch.setattr(module, "STUDIES", "crashing_studies")
    recipe = find_recipe("int8-static/per-channel/s8s8/minmax")
    with isolation.Workshop() as workshop:
        found = kitchen_of(write_small("constant_nodes", tmp_path), tmp_path, workshop)
        assert found.noise(RuntimeKind.ONNXRUNTIME) == ()
        assert found.pantry.base(Base.SMOOTHED) is None
        rounded = found.make(recipe, Tuning(reconstructed=True))
        measured = found.make(find_recipe("int8-static/per-channel/s8s8/measured"))
        plain = found.make(recipe)
    assert found.pantry.remarks == [
        "Nodes were not ranked: ranking nodes failed: it crashed (SIGSEGV).",
        "Smoothing activations was left out: smoothing activations failed: it crashed (SIGSEGV).",
    ]
    assert rounded.failure == "observing what layers read failed: it crashed (SIGSEGV)"
    assert measured.failure == "measuring ranges failed: it crashed (SIGSEGV)"
    assert plain.failure is None


def test_row_that_does_not_fit_costs_the_ranking_and_nothing_else(tmp_path: Path) -> None:
    """Nothing was calibrated, so the ranking is the first that reads the calibration data."""
    rows = tmp_path / "rows"
    rows.mkdir()
    write_data(rows / "0.npz", 12, x=(3, 8, 8))
    with isolation.Workshop() as workshop:
        model = write_small("constant_nodes", tmp_path)
        source = open_source(model, scratch=tmp_path, run=workshop.run)
        write_data(rows / "1.npz", 4, x=(3, 8, 9))
        material = gather(
            source,
            open_data(str(rows)),
            None,
            normalizes=True,
            scratch=tmp_path,
            run=workshop.run,
        )
        shelf = Pantry(material, (), workshop, scratch=tmp_path, threads=1, progress=Silent())
        found = Kitchen(shelf, workshop, scratch=tmp_path)
        found.read_samples(RuntimeKind.ONNXRUNTIME)
        assert found.noise(RuntimeKind.ONNXRUNTIME) == ()
    (remark,) = found.pantry.remarks
    assert (
        remark.startswith("Nodes were not ranked: ") and "sample 12 has shape [3, 8, 9]" in remark
    )


def test_crash_in_calibration_costs_the_recipes_that_need_ranges(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "crashing_calibration.py").write_text(CRASHING_CALIBRATION)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(apart, "_SERVE", "crashing_calibration:serve")
    made = build(
        request(
            write_small("constant_nodes", tmp_path),
            tmp_path / "out",
            recipes=("int8-dynamic/per-channel*", "int8-static/per-channel/*/minmax"),
            calibration=str(write_data(tmp_path / "d.npz", 20, x=(3, 8, 8))),
        )
    )
    (built,) = made.built
    said = [remark for remark in built.report.remarks if "ranges" in remark]
    assert said == [
        "Recipes that need ranges were left out: calibration failed: it crashed (SIGSEGV)."
    ]
    outcomes = {c.recipe: (c.outcome, c.reason) for c in built.report.candidates}
    static = {outcome for name, outcome in outcomes.items() if name.startswith("int8-static")}
    assert (Outcome.FAILED, "there are no ranges") in static
    dynamic = [c for c in built.report.candidates if c.recipe.startswith("int8-dynamic")]
    assert any(c.size_bytes for c in dynamic)


def test_model_that_stays_at_an_old_opset_is_built_unranked(tmp_path: Path) -> None:
    """A Scan of opset 8 cannot be raised, and QuantizeLinear came with opset 10."""
    make, value = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    row = [value(name, onnx.TensorProto.FLOAT, [WIDTH]) for name in "abso"]
    body = onnx.helper.make_graph(
        [make("Add", ["a", "b"], ["s"]), make("Identity", ["s"], ["o"])], "body", row[:2], row[2:]
    )
    weight = np.random.default_rng(0).standard_normal((WIDTH, WIDTH)).astype(np.float32)
    graph = onnx.helper.make_graph(
        [
            make("MatMul", ["x", "w"], ["h"], name="product"),
            make("Scan", ["", "start", "h"], ["end", "y"], body=body, num_scan_inputs=1),
        ],
        "old",
        [value("x", onnx.TensorProto.FLOAT, [1, 3, WIDTH])],
        [value("y", onnx.TensorProto.FLOAT, [1, 3, WIDTH])],
        [
            onnx.numpy_helper.from_array(weight, "w"),
            onnx.numpy_helper.from_array(np.zeros((1, WIDTH), np.float32), "start"),
        ],
    )
    path, opsets = tmp_path / "scan.onnx", [onnx.helper.make_opsetid("", 8)]
    onnx.save_model(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=4), path)
    data = write_data(tmp_path / "d.npz", 20, x=(3, WIDTH))
    made = build(
        request(
            path, tmp_path / "out", recipes=("int16x8",), calibration=str(data), search_time_s=30.0
        )
    )
    (built,) = made.built
    assert "Nodes were not ranked: ranking nodes needs opset 10." in built.report.remarks
    (other,) = [c for c in built.report.candidates if c.recipe == "int16x8"]
    assert other.size_bytes and other.size_bytes < path.stat().st_size
