"""Broken ONNX models: a corpus that is the same each time, to build with `broken_builds`."""

from __future__ import annotations

import contextlib
import itertools
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from small_models import SMALL_MODELS

__all__ = ["BYTE_EDITS", "KINDS", "Chance", "Mutant", "mutants"]

INT64_MAX = 2**63 - 1
_HUGE = (2**31 - 1, 2**31, 2**40, INT64_MAX)

Chance = random.Random
Edit = Callable[[ModelProto, Chance], None]


@dataclass(frozen=True)
class Mutant:
    name: str
    """Number, kind and the model that it was made from."""
    kind: str
    model: bytes
    data: bytes = b""
    """Of the file `weights.bin` beside it; empty: there is none."""
    base: str = ""
    """The small model that it was made from."""
    suffix: str = ".onnx"


# Bytes


def _flip(data: bytes, chance: Chance) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 8, 64))):
        changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def _truncate(data: bytes, chance: Chance) -> bytes:
    return data[: chance.randrange(len(data))]


def _splice(data: bytes, chance: Chance) -> bytes:
    at, length = chance.randrange(len(data)), chance.randrange(64)
    return data[:at] + chance.randbytes(chance.randrange(64)) + data[at + length :]


def _blank(data: bytes, chance: Chance) -> bytes:
    at = chance.randrange(len(data))
    length = min(chance.randrange(1, 4096), len(data) - at)
    return data[:at] + bytes([chance.choice((0, 0xFF))]) * length + data[at + length :]


def _repeat(data: bytes, chance: Chance) -> bytes:
    at = chance.randrange(len(data))
    return data[:at] + data[at : at + chance.randrange(1, 512)] * 2 + data[at:]


def _garble_names(data: bytes, chance: Chance) -> bytes:
    """Names that are not UTF-8, all lengths as they were."""
    model = onnx.load_model_from_string(data)
    name = chance.choice([n for node in model.graph.node for n in node.output if n]).encode()
    return data.replace(name, b"\xff" * len(name))


def _nest(data: bytes, chance: Chance) -> bytes:
    """If in If in If, a thousand deep, as no library would write it."""
    model = onnx.load_model_from_string(data)
    graph = b""
    for _ in range(chance.choice((20, 60, 1000))):
        attribute = _field(1, b"then_branch") + _field(6, graph) + b"\xa0\x01\x05"
        graph = _field(1, _field(4, b"If") + _field(5, attribute))
    return model.SerializeToString() + _field(7, graph)


def _field(number: int, payload: bytes) -> bytes:
    """A length-delimited field of a protobuf message (Protocol Buffers, "Encoding")."""
    return _varint(number << 3 | 2) + _varint(len(payload)) + payload


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*out, value))


# Fields


def _weight_of(model: ModelProto, chance: Chance) -> TensorProto:
    held = [*model.graph.initializer]
    held += [a.t for n in model.graph.node for a in n.attribute if a.type == a.TENSOR]
    return chance.choice(held) if held else model.graph.initializer.add(name="stray")


def _node_of(model: ModelProto, chance: Chance) -> NodeProto:
    return chance.choice(model.graph.node)


def _dims(model: ModelProto, chance: Chance) -> None:
    weight = _weight_of(model, chance)
    dims = [*weight.dims] or [1]
    at = chance.randrange(len(dims))
    dims[at] = chance.choice((0, -1, dims[at] + 1, -dims[at], *_HUGE))
    weight.dims[:] = dims[:: chance.choice((1, -1))] + [1] * chance.choice((0, 0, 1, 70))


def _data_lengths(model: ModelProto, chance: Chance) -> None:
    weight = _weight_of(model, chance)
    raw = weight.raw_data
    weight.raw_data = chance.choice((b"", raw[:-1], raw + b"\0", raw * 2, raw[: len(raw) // 2]))
    if chance.random() < 0.3:
        weight.float_data.extend([1.0] * chance.randrange(1, 9))


def _types(model: ModelProto, chance: Chance) -> None:
    kind = chance.choice((*range(27), 99, -1))
    if chance.random() < 0.5:
        _weight_of(model, chance).data_type = kind
    else:
        chance.choice(model.graph.input).type.tensor_type.elem_type = kind


def _input_shapes(model: ModelProto, chance: Chance) -> None:
    shape = chance.choice(model.graph.input).type.tensor_type.shape
    if shape.dim and chance.random() < 0.8:
        chance.choice(shape.dim).dim_value = chance.choice((0, -1, 10**6, *_HUGE))
    else:
        for _ in range(chance.choice((1, 40))):
            shape.dim.add().dim_param = "n"


def _input_kinds(model: ModelProto, chance: Chance) -> None:
    kind = chance.choice(model.graph.input).type
    kind.Clear()
    if chance.random() < 0.3:
        return
    inner = chance.choice((kind.sequence_type, kind.optional_type)).elem_type.tensor_type
    inner.elem_type = TensorProto.FLOAT


def _cycle(model: ModelProto, chance: Chance) -> None:
    first, last = model.graph.node[0], model.graph.node[-1]
    target = chance.choice((first, _node_of(model, chance)))
    target.input[:] = [last.output[0], *target.input[1:]]


def _duplicate(model: ModelProto, chance: Chance) -> None:
    graph = model.graph
    choices: list[Callable[[], object]] = [
        lambda: graph.node.append(_node_of(model, chance)),
        lambda: graph.initializer.append(_weight_of(model, chance)),
        lambda: graph.input.append(graph.input[0]),
        lambda: graph.output.append(graph.output[0]),
        lambda: graph.initializer.add(name=graph.output[0].name, dims=[1], data_type=1,
                                      raw_data=bytes(4)),
        lambda: model.opset_import.append(helper.make_opsetid("", chance.randrange(30))),
    ]  # fmt: skip
    chance.choice(choices)()


def _dangle(model: ModelProto, chance: Chance) -> None:
    node, what = _node_of(model, chance), chance.randrange(5)
    if what == 0:
        node.input.append("nothing of that name")
    elif what == 1:
        del node.output[:]
    elif what == 2:
        del node.input[:]
    elif what == 3:
        model.graph.output[0].name = "nothing of that name"
    else:
        model.graph.node.remove(node)


def _opsets(model: ModelProto, chance: Chance) -> None:
    del model.opset_import[1:]
    model.opset_import[0].version = chance.choice((-1, 0, 1, 5, 6, 7, 8, 24, 27, 999, INT64_MAX))
    if chance.random() < 0.2:
        del model.opset_import[:]


def _versions(model: ModelProto, chance: Chance) -> None:
    model.ir_version = chance.choice((-1, 0, 1, 2, 3, 999, INT64_MAX))


def _operators(model: ModelProto, chance: Chance) -> None:
    node = _node_of(model, chance)
    if chance.random() < 0.5:
        kinds = "If Loop Scan Constant Softmax Split Resize Clip LSTM Cast Frobnicate".split()
        node.op_type = chance.choice(("", "é", "x" * 10_000, *kinds))
    else:
        node.domain = chance.choice(("acme", "ai.onnx.ml", "com.microsoft", "\n"))


_ATTRIBUTES: Mapping[str, tuple[object, ...]] = {
    "axis": (99, -99, INT64_MAX, "x", 1.5),
    "axes": ([99], [0, 0], [-1] * 1000, 3),
    "kernel_shape": ([10**9, 10**9], [0, 0], [-1, -1], [3]),
    "pads": ([-9] * 4, [2**40] * 4, [1]),
    "strides": ([0, 0], [-1, -1], [2**40, 1]),
    "group": (0, -1, 7, 2**40),
    "perm": ([0, 0], [9, 8, 7]),
    "hidden_size": (0, -1, 2**40),
    "to": (0, 99, -1),
    "transB": (5, "x"),
    "epsilon": (float("nan"), 0),
    "value": ([1.0] * 200_000, "x"),
    "activations": (["Frobnicate"] * 99, []),
}


def _attributes(model: ModelProto, chance: Chance) -> None:
    node = _node_of(model, chance)
    if node.attribute and chance.random() < 0.3:
        attribute = chance.choice(node.attribute)
        if chance.random() < 0.5:
            attribute.type = chance.randrange(16)  # type: ignore[assignment]
        else:
            node.attribute.remove(attribute)
        return
    name = chance.choice([a.name for a in node.attribute] + list(_ATTRIBUTES))
    value = chance.choice(_ATTRIBUTES.get(name, (7, "x", [1] * 300_000)))
    kept = [a for a in node.attribute if a.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute(name, value or [0])])


def _bomb(model: ModelProto, chance: Chance) -> None:
    """Little that wants much: memory without end, or time."""
    kind = chance.randrange(4)
    y = model.graph.output[0].name
    node = next(n for n in model.graph.node if y in n.output)
    node.output[list(node.output).index(y)] = "before the bomb"
    graph = model.graph
    if kind == 3:
        body = helper.make_graph(
            [helper.make_node("Identity", ["go"], ["on"]),
             helper.make_node("Identity", ["v"], ["w"])],
            "body",
            [helper.make_tensor_value_info("i", TensorProto.INT64, []),
             helper.make_tensor_value_info("go", TensorProto.BOOL, []),
             helper.make_tensor_value_info("v", TensorProto.FLOAT, None)],
            [helper.make_tensor_value_info("on", TensorProto.BOOL, []),
             helper.make_tensor_value_info("w", TensorProto.FLOAT, None)],
        )  # fmt: skip
        graph.initializer.append(numpy_helper.from_array(np.array(INT64_MAX), "trips"))
        graph.initializer.append(numpy_helper.from_array(np.array(True), "always"))
        graph.node.append(
            helper.make_node("Loop", ["trips", "always", "before the bomb"], [y], body=body)
        )
        return
    sides = chance.choice(([10**6, 10**6], [2**40], [2**31, 2**31, 2**31], [40_000, 40_000]))
    graph.initializer.append(numpy_helper.from_array(np.array(sides), "sides"))
    if kind == 0:
        graph.node.append(helper.make_node("ConstantOfShape", ["sides"], ["bomb"]))
    else:
        graph.initializer.append(numpy_helper.from_array(np.ones(1, np.float32), "one"))
        graph.node.append(helper.make_node("Expand", ["one", "sides"], ["bomb"]))
    graph.node.append(helper.make_node("ReduceMax", ["bomb"], ["most"], keepdims=0))
    graph.node.append(helper.make_node("Add", ["before the bomb", "most"], [y]))


def _functions(model: ModelProto, chance: Chance) -> None:
    """A function that calls itself, is missing, or has other inputs than its caller gives."""
    name = chance.choice(("F", "G"))
    inner = helper.make_node(chance.choice(("F", "Relu")), ["a"], ["b"],
                             domain=chance.choice(("local", "")))  # fmt: skip
    function = helper.make_function(
        "local", "F", ["a", "c"][: chance.randrange(3)], ["b"], [inner],
        [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)],
    )  # fmt: skip
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid("local", 1))
    node = _node_of(model, chance)
    node.op_type, node.domain = name, "local"
    del node.attribute[:]


def _subgraphs(model: ModelProto, chance: Chance) -> None:
    inner = [a.g for n in model.graph.node for a in n.attribute if a.type == a.GRAPH]
    if not inner:
        branch = helper.make_graph([], "empty", [], [])
        _node_of(model, chance).attribute.append(helper.make_attribute("then_branch", branch))
        return
    graph, what = chance.choice(inner), chance.randrange(4)
    if what == 0:
        del graph.output[:]
    elif what == 1:
        del graph.node[:]
    elif what == 2:
        graph.input.append(model.graph.input[0])
    else:
        graph.node[0].input[0] = graph.node[-1].output[0]


def _hollow(model: ModelProto, chance: Chance) -> None:
    graph = model.graph
    fields = (graph.node, graph.output, graph.input, graph.initializer)
    del chance.choice(fields)[:]
    if chance.random() < 0.2:
        model.ClearField("graph")


def _annotate(model: ModelProto, chance: Chance) -> None:
    """What nobody needs: contradictory types, metadata, quantization notes, training."""
    value = model.graph.value_info.add(name=_node_of(model, chance).output[0])
    value.type.tensor_type.elem_type = chance.choice((1, 7, 8, 99))
    value.type.tensor_type.shape.dim.add().dim_value = chance.choice((-1, 3, INT64_MAX))
    model.metadata_props.add(key="x" * 100_000, value="\0")
    model.graph.quantization_annotation.add(tensor_name="nothing").quant_parameter_tensor_names.add(
        key="SCALE_TENSOR", value="nothing"
    )
    model.training_info.add()


def _external(model: ModelProto, chance: Chance) -> None:
    weight = _weight_of(model, chance)
    fields = {entry.key: entry for entry in weight.external_data}
    if not fields:
        weight.ClearField("raw_data")
        weight.data_location = TensorProto.EXTERNAL
    locations = (
        "../outside.bin", "/etc/hostname", "/dev/zero", "link.bin", "pipe", "", ".", "..", "absent",
        "weights.bin\0", "a/../../outside.bin", "C:\\x", "..\\outside.bin", "m.onnx", "x" * 5000,
    )  # fmt: skip
    numbers = ("-1", "-4096", "0", "99999999", str(2**63), str(2**64), "1e3", "٣", "0x10", "")
    for key, values in (("location", locations), ("offset", numbers), ("length", numbers)):
        if key == "location" and fields and chance.random() < 0.4:
            continue
        if key not in fields:
            fields[key] = weight.external_data.add(key=key, value="0")
        fields[key].value = chance.choice(values)


BYTE_EDITS: Mapping[str, Callable[[bytes, Chance], bytes]] = {
    "bits flipped": _flip,
    "cut short": _truncate,
    "bytes spliced": _splice,
    "bytes blanked": _blank,
    "bytes repeated": _repeat,
    "names that are no text": _garble_names,
    "deep nesting": _nest,
}
_FIELD_EDITS: Mapping[str, Edit] = {
    "dimensions of weights": _dims,
    "lengths of data": _data_lengths,
    "element types": _types,
    "shapes of inputs": _input_shapes,
    "kinds of inputs": _input_kinds,
    "cycles": _cycle,
    "duplicates": _duplicate,
    "dangling names": _dangle,
    "operator sets": _opsets,
    "versions": _versions,
    "operators": _operators,
    "attributes": _attributes,
    "bombs": _bomb,
    "functions": _functions,
    "subgraphs": _subgraphs,
    "hollow graphs": _hollow,
    "annotations": _annotate,
    "external data": _external,
}

KINDS = (*BYTE_EDITS, *_FIELD_EDITS)


def mutants(count: int) -> Iterator[Mutant]:
    """The first so many of the corpus: all kinds in turn, each of another model every time."""
    bases = _bases()
    for index, kind in zip(range(count), itertools.cycle(KINDS), strict=False):
        chance = random.Random(index)
        name = chance.choice([*bases, *(["external"] * 9 if kind == "external data" else [])])
        model, data = bases[name]
        if edit := BYTE_EDITS.get(kind):
            model = edit(model, chance)
            if data and chance.random() < 0.5:
                data = _truncate(data, chance)
        else:
            proto = onnx.load_model_from_string(model)
            for _ in range(chance.choice((1, 1, 1, 3))):
                # what was broken before may be too broken to break again
                with contextlib.suppress(IndexError, ValueError, TypeError, StopIteration):
                    _FIELD_EDITS[kind](proto, chance)
            model = proto.SerializeToString()
        yield Mutant(f"{index} {kind} of {name}", kind, model, data, name)


def _bases() -> dict[str, tuple[bytes, bytes]]:
    bases = {name: (make().SerializeToString(), b"") for name, make in SMALL_MODELS.items()}
    model, data = SMALL_MODELS["several_outputs"](), bytearray()
    for weight in model.graph.initializer:
        entries = {"location": "weights.bin", "offset": len(data), "length": len(weight.raw_data)}
        data += weight.raw_data
        weight.ClearField("raw_data")
        weight.data_location = TensorProto.EXTERNAL
        for key, value in entries.items():
            weight.external_data.add(key=key, value=str(value))
    bases["external"] = (model.SerializeToString(), bytes(data))
    return bases
