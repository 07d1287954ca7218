"""What is held out is held out from everything that makes or chooses a variant."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from build_requests import INT8, host_profile, request
from small_models import write_data, write_small

from edgekit.build import build
from edgekit.build.data import Data, open_data
from edgekit.build.material import Material, gather
from edgekit.build.pantry import Pantry
from edgekit.build.progress import Silent
from edgekit.build.ranges import Feed
from edgekit.build.samples import DataRejected, Row
from edgekit.build.split import MIN_HELD_OUT
from edgekit_converters import isolation
from edgekit_converters.calibration.estimators import Estimator
from edgekit_converters.sources import open_source
from edgekit_converters.tensorfile import read_tensors

ROWS = 2 * MIN_HELD_OUT


def linear(path: Path, batch: int | str) -> Path:
    info, float_ = onnx.helper.make_tensor_value_info, onnx.TensorProto.FLOAT
    weights = onnx.numpy_helper.from_array(np.eye(2, dtype=np.float32), "w")
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [info("x", float_, [batch, 2])],
        [info("y", float_, [batch, 2])],
        [weights],
    )
    opsets = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


def numbered(path: Path, count: int = ROWS) -> Data:
    np.savez(path, x=np.repeat(np.arange(count, dtype=np.float32)[:, None], 2, axis=1))
    return open_data(str(path))


def material_of(
    scratch: Path, calibration: Data | None, validation: Data | None, batch: int | str = "n"
) -> Material:
    source = open_source(linear(scratch / "m.onnx", batch), scratch=scratch)
    return gather(source, calibration, validation, normalizes=False, scratch=scratch)


@pytest.mark.parametrize("judged", ["calibration", "validation"])
def test_what_is_held_out_neither_calibrates_nor_conditions(tmp_path: Path, judged: str) -> None:
    data = numbered(tmp_path / "d.npz")
    material = material_of(
        tmp_path,
        data if judged == "calibration" else None,
        data if judged == "validation" else None,
    )
    with isolation.Workshop() as workshop:
        pantry = Pantry(
            material,
            (Estimator.MINMAX,),
            workshop,
            scratch=tmp_path,
            threads=1,
            progress=Silent(),
        )
        files = pantry.samples(ROWS)
        fed = [int(read_tensors(Path(path))["x"][0, 0]) for path in files]
    selected = [i for i in range(ROWS) if material.split.selects(i)]
    assert fed == selected
    assert pantry.calibration.samples == len(selected) == ROWS // 2
    assert pantry.calibration.widest["x"].high == selected[-1]


def test_calibration_data_are_used_whole_where_others_are_judged(tmp_path: Path) -> None:
    material = material_of(tmp_path, numbered(tmp_path / "c.npz"), numbered(tmp_path / "v.npz"))
    assert len(list(material.calibration_samples())) == material.calibration_count == ROWS


def test_samples_of_a_model_with_a_fixed_batch_are_batches(tmp_path: Path) -> None:
    material = material_of(tmp_path, None, numbered(tmp_path / "d.npz", 30), batch=4)
    assert material.count == len(list(material.samples())) == 7


def test_generator_that_is_used_up_is_refused(tmp_path: Path) -> None:
    rows: Iterator[Row] = ({"x": np.full(2, i, np.float32)} for i in range(50))

    def rest() -> Iterator[Row]:
        yield from (row for row, _ in zip(rows, range(12), strict=False))

    material = material_of(tmp_path, None, Data(title="feeder:rows", rows=rest, count=None))
    with pytest.raises(DataRejected, match=r"feeder:rows gives other rows in another pass"):
        for _ in range(5):
            list(material.samples())


@pytest.mark.parametrize("copied", [False, True])
def test_what_is_held_out_calibrates_nothing_or_it_is_said(tmp_path: Path, copied: bool) -> None:
    validation = write_data(tmp_path / "v.npz", 120, x=(16,))
    calibration = tmp_path / ("c.npz" if copied else "v.npz")
    if copied:
        calibration.write_bytes(validation.read_bytes())
    made = build(
        request(
            write_small("several_outputs", tmp_path),
            tmp_path / "out",
            profiles=(host_profile(),),
            recipes=(f"int8-static/per-channel/{INT8}/minmax",),
            calibration=str(calibration),
            validation=str(validation),
        )
    )
    (built,) = made.built
    said = " ".join(built.report.remarks)
    assert built.report.calibration_samples == (120 if copied else 60)
    assert (
        "60 of the samples held out from the choice are calibration data, too" in said
    ) is copied
    assert ("Calibration and validation data are the same" in said) is not copied


@pytest.mark.parametrize(
    ("rate_s", "most_s", "expected"),
    [(0.0, 1.0, 60), (1.0, 31.0, 31), (1.0, 1e9, 60), (9.0, 1.0, 16)],
)
def test_calibration_takes_samples_from_all_parts_as_far_as_there_is_time(
    tmp_path: Path, rate_s: float, most_s: float, expected: int
) -> None:
    material = material_of(tmp_path, numbered(tmp_path / "d.npz", 60), None)
    now = [0.0]
    feed = Feed(material, most_s, clock=lambda: now[0])
    taken = []
    for feeds in feed:
        taken.append(int(feeds["x"][0, 0]))
        now[0] += rate_s
    assert taken[:16] == list(range(16))
    assert expected - 4 <= len(taken) <= expected
    assert feed.is_cut is (expected < 60) and feed.samples == len(taken)
    if expected > 16:  # the last of them are among the last
        assert taken[-1] >= 54


def test_build_that_had_no_time_to_calibrate_on_all_says_so(tmp_path: Path) -> None:
    data = write_data(tmp_path / "d.npz", 4000, x=(16,))
    made = build(
        request(
            write_small("several_outputs", tmp_path),
            tmp_path / "out",
            profiles=(host_profile(),),
            recipes=(f"int8-static/per-channel/{INT8}/minmax",),
            calibration=str(data),
            search_time_s=0.2,
        )
    )
    (built,) = made.built
    (said,) = [r for r in built.report.remarks if "There was time to calibrate on" in r]
    assert f"on {built.report.calibration_samples} samples" in said
    assert 16 <= built.report.calibration_samples < 2000
