"""Models of opset 7 to 12, each around one operator in the form that it had then."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper
from onnx.numpy_helper import from_array

_IMAGE = (2, 3, 4, 4)


@dataclass(frozen=True)
class OldModel:
    """`nodes` read `x` and write `y`, at any opset from `first` to `last`."""

    nodes: Sequence[NodeProto]
    constants: Mapping[str, Any] = field(default_factory=dict)
    first: int = 7
    last: int = 12
    shape: tuple[int | str, ...] = _IMAGE
    """Of `x`; an open axis is given as its name."""
    result: int = TensorProto.FLOAT
    refused: str = ""
    """What a refusal to raise it must say."""


def node(kind: str, inputs: str, outputs: str = "y", **attributes: Any) -> NodeProto:
    """Names are separated by blanks; `-` is one that is left out."""
    named = ([name.replace("-", "") for name in text.split()] for text in (inputs, outputs))
    return helper.make_node(kind, *named, **attributes)


def made(old: OldModel, opset: int) -> ModelProto:
    graph = helper.make_graph(
        old.nodes,
        "old",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, old.shape)],
        [helper.make_tensor_value_info("y", old.result, None)],
        initializer=[from_array(_array(value), name) for name, value in old.constants.items()],
    )
    return helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)],
        ir_version=4 if opset < 11 else 6,
    )


def feeds(old: OldModel, seed: int) -> dict[str, np.ndarray]:
    shape = [axis if isinstance(axis, int) else _IMAGE[i] for i, axis in enumerate(old.shape)]
    return {"x": np.random.default_rng(seed).standard_normal(shape).astype(np.float32)}


def _array(value: Any) -> np.ndarray:
    """Floats become float32, integers int64; what is an array is taken as it is."""
    if isinstance(value, np.ndarray):
        return value
    array = np.asarray(value)
    return array.astype(np.float32) if array.dtype.kind == "f" else array


def _noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


def _branch(name: str, *nodes: NodeProto) -> GraphProto:
    return helper.make_graph(
        nodes, name, [], [helper.make_tensor_value_info(nodes[-1].output[0], 1, None)]
    )


def _value(name: str, kind: int, *shape: int) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def _conditional() -> OldModel:
    """Old forms inside both branches of an If, which an input decides."""
    then = _branch(
        "then",
        node("Unsqueeze", "x", "u", axes=[0]),
        node("Softmax", "u", "a"),
    )
    otherwise = _branch(
        "else",
        node("Unsqueeze", "x", "u", axes=[0]),
        node("ReduceSum", "u", "s", axes=[0]),
        node("Softmax", "s", "b", axis=2),
    )
    return OldModel(
        [
            node("ReduceSum", "x", "total", keepdims=0),
            node("Greater", "total zero", "positive"),
            node("If", "positive", then_branch=then, else_branch=otherwise),
        ],
        {"zero": 0.0},
    )


def _loop() -> OldModel:
    body = helper.make_graph(
        [
            node("Identity", "go", "on"),
            node("Squeeze", "v", "s", axes=[0]),
            node("Softmax", "s", "r", axis=0),
            node("Unsqueeze", "r", "w", axes=[0]),
        ],
        "body",
        [
            _value("i", TensorProto.INT64),
            _value("go", TensorProto.BOOL),
            _value("v", TensorProto.FLOAT, 1, 3),
        ],
        [_value("on", TensorProto.BOOL), _value("w", TensorProto.FLOAT, 1, 3)],
    )
    return OldModel(
        [node("Loop", "three yes x", body=body)],
        {"three": 3, "yes": np.array(True)},
        shape=(1, 3),
    )


def _scan() -> OldModel:
    body = helper.make_graph(
        [node("Add", "a b", "s"), node("Identity", "s", "o")],
        "body",
        [_value("a", 1, 2), _value("b", 1, 2)],
        [_value("s", 1, 2), _value("o", 1, 2)],
    )
    return OldModel(
        [node("Scan", "- start x", "end y", body=body, num_scan_inputs=1)],
        {"start": np.zeros((1, 2), np.float32)},
        first=8,
        last=8,
        shape=(1, 3, 2),
        refused="Scan 'end' of opset 8",
    )


def _along_axes() -> dict[str, OldModel]:
    found = {}
    for kind in ("Softmax", "LogSoftmax", "Hardmax"):
        found[f"{kind} by default"] = OldModel([node(kind, "x")])
        found[f"{kind} of open axes"] = OldModel([node(kind, "x")], shape=("n", "c", "h", "w"))
        found[f"{kind} from the last axis but one"] = OldModel([node(kind, "x", axis=-2)], first=11)
        for axis in (0, 2, 3):
            found[f"{kind} from axis {axis}"] = OldModel([node(kind, "x", axis=axis)])
        found[f"{kind} of unknown rank"] = OldModel(
            [node("Shape", "x", "s"), node("NonZero", "s", "z"), node("Cast", "z", "f", to=1),
             node(kind, "f")],
            first=9,
        )  # fmt: skip
    return found


def _resizes() -> dict[str, OldModel]:
    found = {}
    for mode in ("nearest", "linear"):
        doubles = {"by": [1.0, 1.0, 2.0, 2.0]}
        found[f"Upsample {mode} by attribute"] = OldModel(
            [node("Upsample", "x", scales=doubles["by"], mode=mode)], last=8
        )
        found[f"Upsample {mode}"] = OldModel(
            [node("Upsample", "x by", mode=mode)], doubles, first=9, last=9
        )
        for factor in (0.6, 1.7, 2.0):
            found[f"Resize {mode} by {factor}"] = OldModel(
                [node("Resize", "x by", mode=mode)],
                {"by": [1.0, 1.0, factor, factor]},
                first=10,
                last=10,
            )
    found["Resize up and down"] = OldModel(
        [node("Resize", "x by")], {"by": [1.0, 1.0, 2.0, 0.5]}, first=10, last=10,
        refused="shrinks one axis",
    )  # fmt: skip
    found["Resize of 11"] = OldModel(
        [node("Resize", "x roi by", mode="linear")],
        {"roi": np.zeros(0, np.float32), "by": [1.0, 1.0, 2.0, 2.0]},
        first=11,
    )
    return found


_STATISTICS = {
    "scale": _noise(3), "bias": _noise(3), "mean": _noise(3), "variance": [1.0, 2.0, 3.0]
}  # fmt: skip
_BATCH_NORMALIZATION = "x scale bias mean variance"

OLD_MODELS: Mapping[str, OldModel] = {
    **_along_axes(),
    **_resizes(),
    "BatchNormalization": OldModel([node("BatchNormalization", _BATCH_NORMALIZATION)], _STATISTICS),
    "BatchNormalization of channels": OldModel(
        [node("BatchNormalization", _BATCH_NORMALIZATION, spatial=1)], _STATISTICS, last=8
    ),
    "BatchNormalization of elements": OldModel(
        [node("BatchNormalization", _BATCH_NORMALIZATION, spatial=0, epsilon=0.1)],
        {n: _noise(3, 4, 4) for n in ("scale", "bias", "mean")}
        | {"variance": np.full((3, 4, 4), 2, np.float32)},
        last=8,
    ),
    "Clip": OldModel([node("Clip", "x", min=-0.5, max=0.5)], last=10),
    "Clip below": OldModel([node("Clip", "x", min=0.0)], last=10),
    "Clip not at all": OldModel([node("Clip", "x")], last=10),
    "Pad of doubles": OldModel(
        [
            node("Cast", "x", "d", to=TensorProto.DOUBLE),
            node("Pad", "d", "p", pads=[0, 0, 1, 1, 0, 0, 2, 2], value=0.5),
            node("Cast", "p", to=TensorProto.FLOAT),
        ],
        last=10,
    ),
    "Dropout": OldModel([node("Dropout", "x", ratio=0.4)], last=11),
    "Dropout with an unread mask": OldModel([node("Dropout", "x", "y mask", ratio=0.4)], last=9),
    "Dropout with a read mask": OldModel(
        [node("Dropout", "x", "d y")], last=9, refused="mask of numbers"
    ),
    "Pad": OldModel([node("Pad", "x", pads=[0, 0, 1, 1, 0, 0, 2, 2], value=0.5)], last=10),
    "Pad by reflection": OldModel(
        [node("Pad", "x", pads=[0, 0, 1, 1, 0, 0, 2, 2], mode="reflect")], last=10
    ),
    "ReduceSum": OldModel([node("ReduceSum", "x", axes=[1, 3], keepdims=0)]),
    "ReduceSum of all": OldModel([node("ReduceSum", "x", keepdims=0)]),
    "ReduceMean": OldModel([node("ReduceMean", "x", axes=[1, 3])]),
    "Scatter": OldModel(
        [node("Scatter", "x where what", axis=0)],
        {"where": np.array([[0, 1, 2]]), "what": [[9.0, 8.0, 7.0]]},
        first=9,
        last=10,
        shape=(3, 3),
    ),
    "Slice": OldModel([node("Slice", "x", axes=[1, 3], starts=[0, 1], ends=[2, 3])], last=9),
    "Slice of the first axes": OldModel([node("Slice", "x", starts=[0, 1], ends=[2, 3])], last=9),
    "Slice from the end": OldModel(
        [node("Slice", "x", axes=[3], starts=[-3], ends=[2**31 - 1])], last=9
    ),
    "Split": OldModel([node("Split", "x", "a y", axis=1, split=[1, 2])]),
    "Split in halves": OldModel([node("Split", "x", "a y", axis=3)]),
    "Squeeze": OldModel([node("Squeeze", "x", axes=[0, 2])], shape=(1, 3, 1, 4)),
    "Squeeze of all": OldModel([node("Squeeze", "x")], shape=(1, 3, 1, 4)),
    "TopK": OldModel([node("TopK", "x", "y where", k=2, axis=3)], last=9),
    "Unsqueeze": OldModel([node("Unsqueeze", "x", axes=[0, 2])]),
    "LSTM": OldModel(
        [node("LSTM", "x w r", hidden_size=8)],
        {"w": _noise(1, 32, 6), "r": _noise(1, 32, 8)},
        shape=(5, 1, 6),
    ),
    "Gemm": OldModel(
        [node("Flatten", "x", "f"), node("Gemm", "f w b", transB=1)],
        {"w": _noise(5, 48), "b": _noise(5)},
    ),
    "MaxPool": OldModel([node("MaxPool", "x", kernel_shape=[2, 2], strides=[2, 2])]),
    "QuantizeLinear": OldModel(
        [node("QuantizeLinear", "x s z", "q"), node("DequantizeLinear", "q s z")],
        {"s": 0.02, "z": np.array(128, np.uint8)},
        first=10,
    ),
    "operator of the runtime's own domain": OldModel(
        [helper.make_node("Gelu", ["x"], ["g"], domain="com.microsoft"), node("Softmax", "g")]
    ),
    "If": _conditional(),
    "Loop": _loop(),
    "Scan of opset 8": _scan(),
}

CASES = [
    (name, opset) for name, old in OLD_MODELS.items() for opset in range(old.first, old.last + 1)
]
