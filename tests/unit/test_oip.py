"""The Open Inference Protocol's encoding, without a server."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgekit_agent.classification import Classes
from edgekit_agent.oip import (
    DATATYPES,
    RequestRejected,
    RequestTooLarge,
    ServedModel,
    Unsendable,
    encode_answer,
    model_metadata,
    parse_request,
)
from edgekit_contract import limits
from edgekit_contract.errors import Refused
from edgekit_contract.manifest import DTYPES, TensorSpec


def model(*dtypes: str, classes: dict[str, Classes] | None = None) -> ServedModel:
    """Inputs x0, x1, ... and outputs y0, y1, ... of these types, of any shape."""
    return ServedModel(
        name="tiny",
        version="1.0",
        platform="null_json",
        inputs=tuple(TensorSpec(name=f"x{i}", dtype=d, shape=()) for i, d in enumerate(dtypes)),
        outputs=tuple(TensorSpec(name=f"y{i}", dtype=d, shape=()) for i, d in enumerate(dtypes)),
        classes=classes or {},
    )


def request(*inputs: dict[str, Any], **fields: Any) -> bytes:
    return json.dumps({"inputs": list(inputs), **fields}).encode()


def x0(data: Any, shape: list[int], datatype: str = "FP32") -> dict[str, Any]:
    return {"name": "x0", "datatype": datatype, "shape": shape, "data": data}


def arrays(dtype: str) -> st.SearchStrategy[np.ndarray]:
    shapes = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
    return hnp.arrays(dtype, shapes)


def test_every_dtype_of_the_manifest_has_a_datatype() -> None:
    assert set(DATATYPES) == DTYPES


@given(data=st.data())
@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_binary_tensors_come_back_bit_by_bit(dtype: str, data: st.DataObject) -> None:
    array = data.draw(arrays(dtype))
    head = request(
        {
            "name": "x0",
            "datatype": DATATYPES[dtype],
            "shape": list(array.shape),
            "parameters": {"binary_data_size": array.nbytes},
        },
        parameters={"binary_data_output": True},
    )
    served = model(dtype)
    inference = parse_request(bytearray(head + array.tobytes()), len(head), served)
    assert inference.feeds["x0"].dtype == array.dtype
    assert inference.feeds["x0"].flags.aligned
    answer = encode_answer(inference, {"y0": inference.feeds["x0"]}, served)
    assert answer.json_bytes == len(answer.body[0])
    (output,) = json.loads(bytes(answer.body[0]))["outputs"]
    assert output["shape"] == list(array.shape)
    assert output["parameters"]["binary_data_size"] == array.nbytes
    assert b"".join(answer.body[1:]) == array.tobytes()


@given(data=st.data(), nested=st.booleans())
@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_json_tensors_come_back_equal(dtype: str, nested: bool, data: st.DataObject) -> None:
    array = data.draw(arrays(dtype))
    if array.dtype.kind == "f":
        array = np.nan_to_num(array, nan=0, posinf=1, neginf=-1)
    values = array.tolist() if nested and array.ndim else array.ravel().tolist()
    served = model(dtype)
    body = request(x0(values, list(array.shape), DATATYPES[dtype]))
    inference = parse_request(body, None, served)
    assert np.array_equal(inference.feeds["x0"], array)
    assert inference.feeds["x0"].dtype == array.dtype
    answer = encode_answer(inference, {"y0": array}, served)
    assert answer.json_bytes is None
    (output,) = json.loads(bytes(answer.body[0]))["outputs"]
    back = np.array(output["data"], dtype=dtype).reshape(output["shape"])
    assert np.array_equal(back, array)


def test_binary_and_json_inputs_mix_in_one_request() -> None:
    first, third = np.arange(4, dtype=np.float32), np.array([7], np.int64)
    head = request(
        {"name": "x0", "datatype": "FP32", "shape": [2, 2], "parameters": {"binary_data_size": 16}},
        {"name": "x1", "datatype": "UINT8", "shape": [2], "data": [1, 255]},
        {"name": "x2", "datatype": "INT64", "shape": [1], "parameters": {"binary_data_size": 8}},
    )
    body = head + first.tobytes() + third.tobytes()
    feeds = parse_request(body, len(head), model("float32", "uint8", "int64")).feeds
    assert feeds["x0"].tolist() == [[0, 1], [2, 3]]
    assert feeds["x1"].tolist() == [1, 255]
    assert feeds["x2"].tolist() == [7]


def test_binary_tensor_that_is_aligned_is_not_copied() -> None:
    array = np.arange(6, dtype=np.float32)
    entry = {"name": "x0", "datatype": "FP32", "shape": [6]}
    head = request(entry | {"parameters": {"binary_data_size": 24}})
    head += b" " * (-len(head) % 16)
    body = bytearray(head + array.tobytes())
    tensor = parse_request(body, len(head), model("float32")).feeds["x0"]
    body[len(head) : len(head) + 4] = np.float32(9).tobytes()
    assert tensor[0] == 9


def test_outputs_are_those_asked_for_in_that_order_and_form() -> None:
    served = model("float32", "int64")
    body = request(
        x0([1], [1]),
        {"name": "x1", "datatype": "INT64", "shape": [1], "data": [2]},
        id="a-7",
        outputs=[{"name": "y1", "parameters": {"binary_data": True}}, {"name": "y0"}],
    )
    inference = parse_request(body, None, served)
    tensors = {"y0": np.array([1.5], np.float32), "y1": np.array([2], np.int64)}
    answer = encode_answer(inference, tensors, served)
    head = json.loads(bytes(answer.body[0]))
    assert (head["id"], head["model_name"], head["model_version"]) == ("a-7", "tiny", "1.0")
    assert [output["name"] for output in head["outputs"]] == ["y1", "y0"]
    assert "data" not in head["outputs"][0]
    assert head["outputs"][1]["data"] == [1.5]
    assert [bytes(piece) for piece in answer.body[1:]] == [tensors["y1"].tobytes()]


def test_no_id_in_the_request_is_no_id_in_the_answer() -> None:
    served = model("float32")
    inference = parse_request(request(x0([1], [1])), None, served)
    answer = encode_answer(inference, {"y0": np.ones(1, np.float32)}, served)
    assert "id" not in json.loads(bytes(answer.body[0]))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_is_unsendable_as_json_and_exact_as_binary(value: float) -> None:
    served = model("float32")
    tensors = {"y0": np.array([1, value], np.float32)}
    as_json = parse_request(request(x0([1], [1])), None, served)
    with pytest.raises(Unsendable, match="binary_data"):
        encode_answer(as_json, tensors, served)
    asked = request(x0([1], [1]), parameters={"binary_data_output": True})
    answer = encode_answer(parse_request(asked, None, served), tensors, served)
    assert bytes(answer.body[1]) == tensors["y0"].tobytes()


def test_classification_names_the_greatest_scores() -> None:
    classes = {"y0": Classes(labels=["cat", "dog"], softmax=True)}
    served = model("float32", classes=classes)
    body = request(x0([1], [1]), outputs=[{"name": "y0", "parameters": {"classification": 2}}])
    inference = parse_request(body, None, served)
    scores = np.log(np.array([[1, 2, 7], [8, 1, 1]], np.float32))
    answer = encode_answer(inference, {"y0": scores}, served)
    (output,) = json.loads(bytes(answer.body[0]))["outputs"]
    assert (output["datatype"], output["shape"]) == ("BYTES", [2, 2])
    assert output["data"] == ["0.7:2", "0.2:1:dog", "0.8:0:cat", "0.1:1:dog"]


def test_metadata_gives_an_axis_of_any_length_as_minus_one() -> None:
    served = ServedModel(
        name="tiny",
        version="1.0",
        platform="onnxruntime_onnx",
        inputs=(TensorSpec(name="x", dtype="float32", shape=("batch", 3)),),
        outputs=(TensorSpec(name="y", dtype="int64", shape=(1,)),),
    )
    assert json.loads(model_metadata(served)) == {
        "name": "tiny",
        "versions": ["1.0"],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}],
        "outputs": [{"name": "y", "datatype": "INT64", "shape": [1]}],
    }


REJECTED = {
    "not JSON": b"nonsense",
    "not an object": b"[1]",
    "no inputs": b"{}",
    "unknown input": request({"name": "z", "datatype": "FP32", "shape": [1], "data": [1]}),
    "input twice": request(x0([1], [1]), x0([1], [1])),
    "wrong datatype": request(x0([1], [1], "FP64")),
    "datatype BYTES": request(x0(["a"], [1], "BYTES")),
    "no data": request({"name": "x0", "datatype": "FP32", "shape": [1]}),
    "text in the data": request(x0(["1"], [1])),
    "null in the data": request(x0([None], [1])),
    "NaN in the data": b'{"inputs":[{"name":"x0","datatype":"FP32","shape":[1],"data":[NaN]}]}',
    "too few numbers": request(x0([1, 2], [3])),
    "too many numbers": request(x0([1, 2], [1])),
    "ragged": request(x0([[1, 2], [3]], [2, 2])),
    "nested otherwise": request(x0([[1, 2, 3], [4, 5, 6]], [3, 2])),
    "nested too deep": request(x0([[[1]]], [1, 1])),
    "beyond FP32": request(x0([1e300], [1])),
    "negative axis": request(x0([1], [-1])),
    "huge shape": request(x0([1], [2**50, 2**50])),
    "huge shape of nothing": request(x0([], [2**50, 2**50, 0])),
    "rank over the bound": request(x0([1], [1] * 17)),
    "depth bomb": b'{"inputs":[{"name":"x0","datatype":"FP32","shape":[1],"data":'
    + b"[" * 100_000
    + b"]" * 100_000
    + b"}]}",
    "unknown output": request(x0([1], [1]), outputs=[{"name": "z"}]),
    "output twice": request(x0([1], [1]), outputs=[{"name": "y0"}, {"name": "y0"}]),
    "id is a number": request(x0([1], [1]), id=7),
    "classification as binary": request(
        x0([1], [1]),
        outputs=[{"name": "y0", "parameters": {"classification": 1, "binary_data": True}}],
    ),
    "data and binary data": request(
        x0([1], [1]) | {"parameters": {"binary_data_size": 4}},
    ),
    "binary data that are not there": request(
        {"name": "x0", "datatype": "FP32", "shape": [1], "parameters": {"binary_data_size": 4}}
    ),
}


@pytest.mark.parametrize("case", REJECTED)
def test_wrong_request_is_rejected_in_one_sentence(case: str) -> None:
    with pytest.raises(RequestRejected) as caught:
        parse_request(REJECTED[case], None, model("float32"))
    assert str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("dtype", "value"),
    [("uint8", 256), ("uint8", -1), ("int64", 2**63), ("uint64", 2**64), ("uint64", -1),
     ("int8", 1.5), ("int32", True), ("bool", 1), ("float16", 70_000), ("float32", False)],
)  # fmt: skip
def test_number_that_its_datatype_cannot_hold_is_rejected(dtype: str, value: Any) -> None:
    with pytest.raises(RequestRejected):
        parse_request(request(x0([value], [1], DATATYPES[dtype])), None, model(dtype))


def binary_request(size: int, shape: list[int], datatype: str = "FP32") -> bytes:
    return request(
        {
            "name": "x0",
            "datatype": datatype,
            "shape": shape,
            "parameters": {"binary_data_size": size},
        }
    )


@pytest.mark.parametrize(
    ("head", "data", "json_bytes"),
    [
        (binary_request(8, [2]), b"1234567", None),
        (binary_request(8, [2]), b"123456789", None),
        (binary_request(4, [2]), b"12345678", None),
        (binary_request(12, [2]), b"12345678", None),
        (binary_request(8, [2]), b"12345678", 10_000),
        (binary_request(8, [2]), b"12345678", 0),
        (binary_request(2, [2], "BOOL"), b"\x01\x02", None),
    ],
    ids=["truncated", "surplus", "size below shape", "size over shape", "header beyond the body",
         "no header", "bool of 2"],
)  # fmt: skip
def test_binary_data_that_do_not_add_up_are_rejected(
    head: bytes, data: bytes, json_bytes: int | None
) -> None:
    served = model("bool" if b"BOOL" in head else "float32")
    with pytest.raises(RequestRejected):
        parse_request(head + data, len(head) if json_bytes is None else json_bytes, served)


def test_long_json_is_too_large_and_says_to_send_binary() -> None:
    text = request(x0([1], [1]))
    with pytest.raises(RequestTooLarge, match="binary"):
        parse_request(
            text + b" " * (limits.MAX_JSON_REQUEST_BYTES - len(text) + 1), None, model("float32")
        )
    head = text + b" " * (limits.MAX_HEADER_JSON_BYTES - len(text) + 1)
    with pytest.raises(RequestTooLarge):
        parse_request(head + b"1", len(head), model("float32"))


@given(data=st.data())
def test_mutated_request_is_understood_or_rejected(data: st.DataObject) -> None:
    head = request(
        {"name": "x0", "datatype": "FP32", "shape": [2], "parameters": {"binary_data_size": 8}},
        {"name": "x1", "datatype": "INT8", "shape": [2, 1], "data": [[1], [-2]]},
        id="1",
        outputs=[{"name": "y0", "parameters": {"classification": 1}}, {"name": "y1"}],
        parameters={"binary_data_output": True},
    )
    body = bytearray(head + b"\0\0\0\0\0\0\x80\x3f")
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(body) - 1))
        body[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    json_bytes = data.draw(st.one_of(st.none(), st.integers(0, 400), st.just(len(head))))
    served = model("float32", "int8")
    try:
        inference = parse_request(body, json_bytes, served)
        tensors = {"y0": np.ones((1, 2), np.float32), "y1": np.ones(2, np.int8)}
        answer = encode_answer(inference, tensors, served)
    except Refused as error:
        assert str(error)
    else:
        msgspec.json.decode(answer.body[0])
