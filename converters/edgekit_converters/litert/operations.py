"""Which operators a LiteRT model runs, and on tensors of which shapes. Runs in a child process.

Invariant: what is listed runs on each inference: what the interpreter computes once, such as
weights of float16 that it widens, is left out, and what comes of it counts as constant.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from edgekit_contract.errors import Refused
from edgekit_converters.litert.file import BITS, integers, is_constant, opened
from edgekit_converters.tensorfile import read_tensors

__all__ = ["Listed", "Operand", "Operation", "read"]

_ONCE: Final = frozenset({"DEQUANTIZE", "DENSIFY"})
"""Of constants, these are done while the model loads (tensorflow/lite/kernels/dequantize.cc)."""
_DELEGATED: Final = "DELEGATE"
"""What the interpreter calls the node that stands for all that a delegate has taken."""
_NESTED: Final = frozenset({"IF", "WHILE", "CALL", "STABLEHLO_COMPOSITE", "STABLEHLO_WHILE"})


class Operand(msgspec.Struct, frozen=True, kw_only=True):
    dtype: str
    """As the schema names it, in small letters: `float32`, `int4`."""
    shape: tuple[int, ...]
    is_constant: bool = False

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int:
        return self.elements * BITS.get(self.dtype.upper(), 32) // 8


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    operator: str
    """As LiteRT names it."""
    inputs: tuple[Operand | None, ...]
    """None: left out."""
    outputs: tuple[Operand, ...]


class Listed(msgspec.Struct, frozen=True, kw_only=True):
    operations: tuple[Operation, ...]
    """Of the main graph, in order."""
    is_whole: bool
    """Whether the delegate that LiteRT has by default (XNNPACK) takes them in one piece, so that
    little or nothing is left to LiteRT's own kernels."""


def read(path: str, feeds: str) -> Any:
    """What a model runs on the tensors of the file `feeds`: `Listed` as JSON.

    Errors: `Refused` for a model with branches or loops, whose rounds nobody counts here, and for
    one that does not run on these tensors.
    """
    model, codes, kinds = opened(path)
    graph = model.subgraphs[0]
    tensors = read_tensors(Path(feeds))
    shapes = {int(d["index"]): _shape(d) for d in _ran(path, tensors).get_tensor_details()}
    constants = {
        index
        for index, tensor in enumerate(graph.tensors)
        if is_constant(model.buffers[tensor.buffer])
    }

    def operand(index: int) -> Operand:
        tensor = graph.tensors[index]
        return Operand(
            dtype=kinds[tensor.type].lower(),
            shape=shapes.get(index, tuple(integers(tensor.shape))),
            is_constant=index in constants,
        )

    found = []
    for node in graph.operators or ():
        name, inputs = codes[node.opcodeIndex], integers(node.inputs)
        if name in _NESTED:
            raise Refused(f"it has branches or loops ({name}), whose rounds are not counted")
        if name in _ONCE and constants.issuperset(inputs):
            constants.update(integers(node.outputs))
            continue
        found.append(
            Operation(
                operator=name,
                inputs=tuple(operand(index) if index >= 0 else None for index in inputs),
                outputs=tuple(map(operand, integers(node.outputs))),
            )
        )
    listed = Listed(operations=tuple(found), is_whole=_pieces(path, tensors) == 1)
    return msgspec.to_builtins(listed)


def _pieces(path: str, feeds: Mapping[str, np.ndarray]) -> int:
    """Into which the default delegate takes the model. Errors: `Refused`."""
    operators = _ran(path, feeds, delegates=True)._get_ops_details()
    return sum(operator["op_name"] == _DELEGATED for operator in operators)


def _ran(path: str, feeds: Mapping[str, np.ndarray], *, delegates: bool = False) -> Any:
    """An interpreter after a run; without delegates, which keep shapes of what is between their
    inputs and outputs to themselves, if not asked for. Errors: `Refused`."""
    from ai_edge_litert import interpreter as litert

    kinds = litert.OpResolverType
    runner = litert.Interpreter(
        model_path=path,
        experimental_op_resolver_type=kinds.AUTO
        if delegates
        else kinds.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    details: Sequence[Mapping[str, Any]] = runner.get_input_details()
    try:
        for detail in details:
            if _shape(detail) != feeds[detail["name"]].shape:
                runner.resize_tensor_input(detail["index"], feeds[detail["name"]].shape)
        runner.allocate_tensors()
        for detail in details:
            runner.set_tensor(detail["index"], feeds[detail["name"]])
        runner.invoke()
    except (KeyError, ValueError, RuntimeError) as error:
        raise Refused(f"it does not run: {error}") from error
    return runner


def _shape(detail: Mapping[str, Any]) -> tuple[int, ...]:
    return tuple(map(int, detail["shape"]))
