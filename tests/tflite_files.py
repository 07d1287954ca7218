"""A .tflite file made by hand: `y = relu(x)` or `y = a + b`. Source:
tensorflow/lite/schema/schema.fbs (v3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import flatbuffers

_FLOAT32 = 0
_INT32 = 2
_INT8 = 9
_ADD = 0
_RELU = 19

Slot = tuple[int, Callable[[flatbuffers.Builder, int], None]]


def relu_file(columns: int, *, scale: float | None = None) -> bytes:
    """A model whose input `x` and output `y` are of shape [-1, columns]: float32, or, with a
    `scale`, int8 with that step and zero at 0."""
    return _file("x", _RELU, columns, scale, _FLOAT32 if scale is None else _INT8)


def add_file(columns: int, *, integers: bool = False) -> bytes:
    """A model whose inputs `a` and `b` and output `y` are float32, or int32, of shape
    [-1, columns]: it prepares only for batches that broadcast."""
    return _file("ab", _ADD, columns, None, _INT32 if integers else _FLOAT32)


def _file(names: str, code_number: int, columns: int, scale: float | None, kind: int) -> bytes:
    b = flatbuffers.Builder(1024)
    tensors = _vector(b, [_tensor(b, name, columns, scale, kind) for name in f"{names}y"])
    inputs, outputs = _int32s(b, list(range(len(names)))), _int32s(b, [len(names)])
    operator = _table(b, 3, [_offset(1, inputs), _offset(2, outputs)])
    operators = _vector(b, [operator])
    subgraph = _table(
        b, 5, [_offset(0, tensors), _offset(1, inputs), _offset(2, outputs), _offset(3, operators)]
    )
    subgraphs = _vector(b, [subgraph])
    code = _table(
        b,
        4,
        [
            (0, lambda b, slot: b.PrependInt8Slot(slot, code_number, 0)),
            (3, lambda b, slot: b.PrependInt32Slot(slot, code_number, 0)),
        ],
    )
    codes = _vector(b, [code])
    buffers = _vector(b, [_table(b, 1, [])])
    model = _table(
        b,
        5,
        [
            (0, lambda b, slot: b.PrependUint32Slot(slot, 3, 0)),
            _offset(1, codes),
            _offset(2, subgraphs),
            _offset(4, buffers),
        ],
    )
    b.Finish(model, b"TFL3")
    return bytes(b.Output())


def _tensor(b: flatbuffers.Builder, name: str, columns: int, scale: float | None, kind: int) -> int:
    shape, signature = _int32s(b, [1, columns]), _int32s(b, [-1, columns])
    text = b.CreateString(name)
    quantization = () if scale is None else (_offset(4, _quantization(b, scale)),)
    return _table(
        b,
        8,
        [
            _offset(0, shape),
            (1, lambda b, slot: b.PrependInt8Slot(slot, kind, 0)),
            _offset(3, text),
            *quantization,
            _offset(7, signature),
        ],
    )


def _quantization(b: flatbuffers.Builder, scale: float) -> int:
    b.StartVector(4, 1, 4)
    b.PrependFloat32(scale)
    scales = int(b.EndVector())
    b.StartVector(8, 1, 8)
    b.PrependInt64(0)
    zero_points = int(b.EndVector())
    return _table(b, 4, [_offset(2, scales), _offset(3, zero_points)])


def _offset(slot: int, target: int) -> Slot:
    return slot, lambda b, at: b.PrependUOffsetTRelativeSlot(at, target, 0)


def _table(b: flatbuffers.Builder, slots: int, fields: Sequence[Slot]) -> int:
    b.StartObject(slots)
    for slot, write in fields:
        write(b, slot)
    return int(b.EndObject())


def _vector(b: flatbuffers.Builder, targets: Sequence[int]) -> int:
    b.StartVector(4, len(targets), 4)
    for target in reversed(targets):
        b.PrependUOffsetTRelative(target)
    return int(b.EndVector())


def _int32s(b: flatbuffers.Builder, values: Sequence[int]) -> int:
    b.StartVector(4, len(values), 4)
    for value in reversed(values):
        b.PrependInt32(value)
    return int(b.EndVector())
