"""Golden vectors: what is written is read, what differs is found, what is hostile is refused."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import pytest
from bundles import SmallBundle, archive_of, null_bundle, onnx_bundle
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgekit_contract import limits
from edgekit_contract.errors import BundleRejected
from edgekit_contract.manifest import DTYPES, Golden, TensorSpec, Tolerance
from edgekit_runtime.golden import (
    GoldenVector,
    Mismatch,
    check_golden,
    compare,
    golden_bytes,
    read_golden,
)
from edgekit_runtime.session import InputRejected, open_session

NAN, INF = math.nan, math.inf


def golden(
    *, count: int = 1, absolute: float = 0.1, relative: float = 0.0, top1: bool = False
) -> Golden:
    return Golden(
        count=count,
        tolerances={"y": Tolerance(absolute=absolute, relative=relative)},
        top1=("y",) if top1 else (),
        source="generated",
    )


def spec(name: str, array: np.ndarray) -> TensorSpec:
    return TensorSpec(name=name, dtype=array.dtype.name, shape=array.shape)


def read_back(x: np.ndarray, y: np.ndarray, *, name: str = "x") -> GoldenVector:
    data = golden_bytes([GoldenVector(inputs={name: x}, outputs={"y": y})])
    (vector,) = read_golden(data, golden(), [spec(name, x)], [spec("y", y)])
    return vector


@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_input_of_any_type_comes_back_in_its_type(dtype: str) -> None:
    x = np.array([[0, 1, 1], [1, 0, 1]], dtype)
    vector = read_back(x, x)
    assert vector.inputs["x"].dtype == x.dtype
    assert np.array_equal(vector.inputs["x"], x)
    assert np.array_equal(vector.outputs["y"].astype(dtype), x)


@given(
    hnp.arrays(
        dtype=st.sampled_from([np.float32, np.int8, np.uint8, np.int32, np.int64]),
        shape=hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
    )
)
def test_stored_types_come_back_bit_by_bit(x: np.ndarray) -> None:
    vector = read_back(x, x)
    assert vector.inputs["x"].shape == x.shape
    assert vector.inputs["x"].tobytes() == x.tobytes()
    assert vector.outputs["y"].tobytes() == x.tobytes()


@pytest.mark.parametrize(
    "name", ["a/b", "../x", "onnx::MatMul_1", "späß", "a b", "%2F", ".", "x:0"]
)
def test_tensor_may_have_any_name(name: str) -> None:
    x = np.ones((1, 2), np.float32)
    assert np.array_equal(read_back(x, x, name=name).inputs[name], x)


def test_array_in_another_memory_order_is_stored_in_c_order() -> None:
    x = np.asfortranarray(np.arange(6, dtype=">f4").reshape(2, 3))
    assert np.array_equal(read_back(x, x).inputs["x"], x)


def test_file_is_an_npz_that_numpy_reads() -> None:
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    y = np.array(7, dtype=np.int64)
    data = golden_bytes([GoldenVector(inputs={"x": x}, outputs={"y": y})] * 2)
    with np.load(io.BytesIO(data), allow_pickle=False) as npz:
        assert sorted(npz.files) == ["000/in/x", "000/out/y", "001/in/x", "001/out/y"]
        assert np.array_equal(npz["001/in/x"], x)
        assert npz["001/out/y"] == 7


def test_file_follows_from_the_vectors() -> None:
    vectors = [
        GoldenVector(inputs={"b": np.zeros(2), "a": np.ones(1)}, outputs={"y": np.zeros((0, 3))})
    ]
    other_order = [
        GoldenVector(inputs={"a": np.ones(1), "b": np.zeros(2)}, outputs={"y": np.zeros((0, 3))})
    ]
    assert golden_bytes(vectors) == golden_bytes(other_order)


def npy(header: str, body: bytes = b"", *, magic: bytes = b"\x93NUMPY\x01\x00") -> bytes:
    return magic + len(header).to_bytes(2, "little") + header.encode() + body


GOOD = "{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }\n"


def read_member(data: bytes, name: str = "000/in/x.npy") -> np.ndarray:
    y = npy(GOOD, bytes(8))
    archive = archive_of([(name, data), ("000/out/y.npy", y)])
    x_spec = TensorSpec(name="x", dtype="float32", shape=(2,))
    y_spec = TensorSpec(name="y", dtype="float32", shape=(2,))
    return read_golden(archive, golden(), [x_spec], [y_spec])[0].inputs["x"]


def test_member_made_by_hand_is_read() -> None:
    assert np.array_equal(read_member(npy(GOOD, bytes(8))), np.zeros(2))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x93NUMPY",
        npy(GOOD, bytes(7)),
        npy(GOOD, bytes(9)),
        npy(GOOD),
        npy(GOOD, bytes(8))[:-20],
        npy(GOOD, bytes(8), magic=b"\x93NUMPY\x02\x00"),
        npy(GOOD, bytes(8), magic=b"\x93NUMPX\x01\x00"),
        npy(GOOD.replace("False", "True"), bytes(8)),
        npy(GOOD.replace("<f4", ">f4"), bytes(8)),
        npy(GOOD.replace("<f4", "<f8"), bytes(16)),
        npy(GOOD.replace("<f4", "|O"), bytes(8)),
        npy(GOOD.replace("(2,)", "(2, 1)"), bytes(8)),
        npy(GOOD.replace("(2,)", "()"), bytes(4)),
        npy(GOOD.replace("(2,)", "(1000000000000,)"), bytes(8)),
        npy(GOOD.replace("(2,)", "(-2,)"), bytes(8)),
        npy(GOOD.replace("(2,)", "(2 2)"), bytes(8)),
        npy(GOOD.replace("(2,)", "(" + "9" * 30_000 + ",)"), bytes(8)),
        npy(GOOD.replace("(2,)", "(" + "(" * 20_000), bytes(8)),
        npy("__import__('os').abort()\n", bytes(8)),
    ],
    ids=lambda data: repr(data[10:70]),
)
def test_hostile_array_is_refused(data: bytes) -> None:
    with pytest.raises(BundleRejected):
        read_member(data)


def test_missing_vector_is_refused() -> None:
    with pytest.raises(BundleRejected, match="missing"):
        read_member(npy(GOOD, bytes(8)), name="000/in/z.npy")


@pytest.mark.parametrize("data", [b"", b"PK", b"\0" * 100, b"PK\5\6" + b"\xff" * 18])
def test_file_that_is_no_archive_is_refused(data: bytes) -> None:
    with pytest.raises(BundleRejected):
        read_golden(data, golden(), [], [])


def test_vectors_too_large_for_a_bundle_are_refused_when_packing() -> None:
    zeros = np.broadcast_to(np.int64(0), (limits.MAX_GOLDEN_BYTES // 8 + 1,))  # takes no memory
    with pytest.raises(BundleRejected):
        golden_bytes([GoldenVector(inputs={"x": zeros}, outputs={})])


@pytest.mark.parametrize(
    ("got", "want", "absolute", "relative", "equal"),
    [
        ([1.0], [1.0], 0, 0, True),
        ([1.1], [1.0], 0.2, 0, True),
        ([1.3], [1.0], 0.2, 0, False),
        ([110.0], [100.0], 0, 0.1, True),
        ([111.0], [100.0], 0, 0.1, False),
        ([-110.0], [-100.0], 0, 0.1, True),
        ([111.0], [100.0], 1, 0.1, True),
        ([NAN], [NAN], 0, 0, True),
        ([NAN], [1.0], 1e9, 1, False),
        ([1.0], [NAN], 1e9, 1, False),
        ([INF], [INF], 0, 0, True),
        ([-INF], [INF], 1e9, 1, False),
        ([0.0], [INF], 1e9, 1, False),
        ([INF], [0.0], 1e9, 1, False),
        ([], [], 0, 0, True),
        ([[1.0]], [1.0], 9, 9, False),
        ([1.0, 1.0], [1.0], 9, 9, False),
    ],
)
def test_element_is_equal_within_its_tolerance(
    got: Any, want: Any, absolute: float, relative: float, equal: bool
) -> None:
    found = compare(
        golden(absolute=absolute, relative=relative), "y", np.array(got), np.array(want)
    )
    assert (found is None) == equal


def test_integers_are_compared_without_wrapping() -> None:
    low, high = np.array([-128], np.int8), np.array([127], np.int8)
    assert compare(golden(absolute=1), "y", low, high) is not None
    assert compare(golden(absolute=255), "y", low, high) is None


@pytest.mark.parametrize(
    ("got", "want", "same"),
    [
        ([[1.0, 1.1]], [[1.1, 1.0]], False),
        ([[1.0, 1.1]], [[1.0, 1.2]], True),
        ([[2.0, 1.0], [1.0, 2.0]], [[2.0, 1.0], [2.0, 1.9]], False),
        ([[5.0]], [[5.1]], True),
        (5.0, 5.1, True),
    ],
)
def test_greatest_element_stays_at_its_place(got: Any, want: Any, same: bool) -> None:
    wide = golden(absolute=2, top1=True)
    assert (compare(wide, "y", np.array(got), np.array(want)) is None) == same
    assert compare(golden(absolute=2), "y", np.array(got), np.array(want)) is None


def test_mismatch_says_how_many_and_how_far() -> None:
    found = compare(golden(), "y", np.array([1.0, 2.0, 3.0]), np.array([1.0, 2.5, 1.0]))
    assert found == "2 of 3 elements differ, by up to 2"


def session_of(bundle: SmallBundle, tmp_path: Any) -> Any:
    path = tmp_path / "model"
    path.write_bytes(bundle.files[bundle.manifest.model])
    return open_session(bundle.manifest.runtime, path)


@pytest.mark.parametrize("make", [null_bundle, onnx_bundle], ids=["null", "onnx"])
def test_model_reproduces_its_own_vectors_and_no_others(make: Any, tmp_path: Any) -> None:
    bundle = make()
    manifest = bundle.manifest
    vectors = read_golden(
        bundle.files[manifest.golden.path], manifest.golden, manifest.inputs, manifest.outputs
    )
    session = session_of(bundle, tmp_path)
    assert check_golden(session, manifest.golden, vectors) is None
    wrong = GoldenVector(inputs=vectors[1].inputs, outputs={"y": vectors[1].outputs["y"] + 1})
    mismatch = check_golden(session, manifest.golden, [vectors[0], wrong])
    assert mismatch is not None
    assert (mismatch.vector, mismatch.output) == (1, "y")


def test_vector_that_the_model_does_not_take_is_a_mismatch(tmp_path: Any) -> None:
    bundle = onnx_bundle()
    session = session_of(bundle, tmp_path)
    x = np.zeros((1, 3), np.float32)
    with pytest.raises(InputRejected):
        session.run({"x": x})
    vector = GoldenVector(inputs={"x": x}, outputs={"y": np.zeros((1, 3), np.float32)})
    assert check_golden(session, golden(), [vector]) == Mismatch(
        vector=0, output="*", detail="input 'x' has shape [1, 3], not ['batch', 2]."
    )


def test_output_that_the_model_does_not_have_is_a_mismatch(tmp_path: Any) -> None:
    session = session_of(onnx_bundle(), tmp_path)
    vector = GoldenVector(inputs={"x": np.zeros((1, 2), np.float32)}, outputs={"z": np.zeros(1)})
    mismatch = check_golden(session, golden(), [vector])
    assert mismatch is not None
    assert mismatch.output == "z"
