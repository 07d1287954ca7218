"""What operators of LiteRT cost, from the shapes and number formats of their tensors. Pure.

Invariant: as in `operators`: every operator has a cost, and of one that nothing is known of the
kind says so. A model with products that nothing is published of (16-bit activations) has no cost.
Shapes are LiteRT's: channels last, kernels with their outputs first.
Source: tensorflow/lite/schema/schema.fbs, and tensorflow/lite/delegates/xnnpack/README.md for what
XNNPACK takes: floats are multiplied by 8-bit weights in 8 bits, after what comes in is rounded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from edgekit.build.estimates.operators import ROWS_OF_A_MATRIX, Arithmetic, Kind, Work
from edgekit_converters.litert.operations import Operand, Operation

__all__ = ["works_of"]

_INT8: Final = frozenset({"int8", "uint8"})
_PACKED: Final = frozenset({"int4", "uint4", "int2"})
_TILE: Final = 8
"""Channels that XNNPACK's kernels give at a time (4x8 and 6x8 on ARM, wider on x86-64: its src)."""
_ROUNDING_STEPS: Final = 2
"""For each element that comes in: to find the range, and to round."""


def works_of(operations: Iterable[Operation]) -> tuple[Work, ...] | None:
    """What a model asks of a processor; None where nothing is published of its arithmetic."""
    works = []
    for run in operations:
        count = _PRODUCTS.get(run.operator)
        counted = count(run) if count is not None else None
        work = _simple(run) if counted is None else _product(run, *counted)
        if work is None:
            return None
        works.append(work)
    return tuple(works)


def _simple(run: Operation) -> Work:
    """Of an operator that steps through elements."""
    kind = _KINDS.get(run.operator, Kind.UNKNOWN)
    weights, moved = _traffic(run)
    given = [operand for operand in _given(run) if not operand.is_constant]
    sides = [*given[: 1 if kind is Kind.MOVEMENT else None], *run.outputs]
    return Work(
        kind=kind,
        arithmetic=Arithmetic.FLOAT32,
        macs=0,
        elements=0 if kind is Kind.FREE else max((side.elements for side in sides), default=0),
        # of a table only the rows that are looked up are read
        weight_bytes=min(weights, moved) if kind in (Kind.MOVEMENT, Kind.FREE) else weights,
        activation_bytes=0 if kind is Kind.FREE else moved,
    )


def _product(run: Operation, kind: Kind, macs: int, given: Operand, weight: Operand) -> Work | None:
    """Of one that multiplies `given` by `weight`."""
    weights, moved = _traffic(run)
    is_rounded = weight.dtype in _INT8 | _PACKED and given.dtype == "float32"
    if not is_rounded and given.dtype not in _INT8 | {"float32"}:
        return None
    narrow = is_rounded or given.dtype in _INT8
    return Work(
        kind=Kind.UNPACKING if weight.dtype in _PACKED else kind,
        arithmetic=Arithmetic.INT8 if narrow else Arithmetic.FLOAT32,
        macs=macs,
        elements=_ROUNDING_STEPS * given.elements if is_rounded else 0,
        weight_bytes=weights,
        activation_bytes=moved,
    )


def _given(run: Operation) -> list[Operand]:
    return [operand for operand in run.inputs if operand is not None]


def _traffic(run: Operation) -> tuple[int, int]:
    """Bytes of constants, and of what else comes in and goes out."""
    inputs = _given(run)
    constant = sum(operand.size_bytes for operand in inputs if operand.is_constant)
    other = sum(operand.size_bytes for operand in inputs if not operand.is_constant)
    return constant, other + sum(operand.size_bytes for operand in run.outputs)


_Counted = tuple[Kind, int, Operand, Operand]


def _tiled(outputs: int) -> int:
    """What is computed for so many outputs: the others of a tile are thrown away."""
    return -(-outputs // _TILE) * _TILE


def _operands(run: Operation, *places: int) -> list[Operand] | None:
    """Inputs at these places, where all of them are there and are no scalars."""
    found = [run.inputs[at] for at in places if at < len(run.inputs)]
    there = [operand for operand in found if operand is not None and operand.shape]
    return there if len(there) == len(places) and run.outputs else None


def _convolution(run: Operation) -> _Counted | None:
    found = _operands(run, 0, 1)
    if found is None:
        return None
    given, kernel = found
    out = run.outputs[0].elements // max(1, kernel.shape[0])
    return Kind.DENSE, out * _tiled(kernel.shape[0]) * math.prod(kernel.shape[1:]), given, kernel


def _convolution_3d(run: Operation) -> _Counted | None:
    """Its kernel is [depth, height, width, inputs, outputs]."""
    found = _operands(run, 0, 1)
    if found is None:
        return None
    given, kernel = found
    return Kind.DENSE, run.outputs[0].elements * math.prod(kernel.shape[:-1]), given, kernel


def _depthwise(run: Operation) -> _Counted | None:
    """Its kernel is [1, height, width, channels]."""
    found = _operands(run, 0, 1)
    if found is None:
        return None
    given, kernel = found
    return Kind.DEPTHWISE, run.outputs[0].elements * math.prod(kernel.shape[1:-1]), given, kernel


def _transposed(run: Operation) -> _Counted | None:
    """Its inputs are the shape that is wanted, the kernel, and what is convolved."""
    found = _operands(run, 2, 1)
    if found is None:
        return None
    given, kernel = found
    return Kind.DENSE, given.elements * math.prod(kernel.shape[:-1]), given, kernel


def _connected(run: Operation) -> _Counted | None:
    """Its weights are [outputs, inputs]."""
    found = _operands(run, 0, 1)
    if found is None or len(found[1].shape) != 2:
        return None
    given, weight = found
    out = run.outputs[0].elements
    is_vector = weight.is_constant and out // max(1, weight.shape[0]) < ROWS_OF_A_MATRIX
    return Kind.VECTOR if is_vector else Kind.DENSE, out * weight.shape[1], given, weight


def _matrices(run: Operation) -> _Counted | None:
    """Either side may lie transposed, and repeat over the batch."""
    found = _operands(run, 0, 1)
    if found is None or min(len(found[0].shape), len(run.outputs[0].shape)) < 2:
        return None
    given, other = found
    rows = max(1, run.outputs[0].shape[-2])
    inner = math.prod(given.shape[-2:]) // rows
    return Kind.DENSE, run.outputs[0].elements * inner, given, other


def _recurrent(run: Operation) -> _Counted | None:
    """Inputs 1 to 8 are the matrices of the gates, each used at every step."""
    found = _operands(run, 0, 2)
    if found is None or len(found[0].shape) != 3:
        return None
    given, weight = found
    gates = sum(gate.elements for gate in run.inputs[1:9] if gate is not None)
    return Kind.RECURRENT, given.shape[0] * given.shape[1] * gates, given, weight


_PRODUCTS: Final[Mapping[str, Callable[[Operation], _Counted | None]]] = {
    "CONV_2D": _convolution,
    "CONV_3D": _convolution_3d,
    "DEPTHWISE_CONV_2D": _depthwise,
    "TRANSPOSE_CONV": _transposed,
    "FULLY_CONNECTED": _connected,
    "BATCH_MATMUL": _matrices,
    "UNIDIRECTIONAL_SEQUENCE_LSTM": _recurrent,
}

_KINDS: Final[Mapping[str, Kind]] = {
    **dict.fromkeys(
        "ADD SUB MUL DIV RELU RELU6 RELU_N1_TO_1 RELU_0_TO_1 LEAKY_RELU PRELU MINIMUM MAXIMUM ABS "
        "NEG SIGN SQUARE SQUARED_DIFFERENCE SQRT RSQRT ADD_N CAST EQUAL NOT_EQUAL LESS LESS_EQUAL "
        "GREATER GREATER_EQUAL LOGICAL_AND LOGICAL_OR LOGICAL_NOT SELECT SELECT_V2 WHERE CEIL "
        "FLOOR ROUND FLOOR_DIV FLOOR_MOD HARD_SWISH RANGE ONE_HOT".split(),
        Kind.ELEMENTWISE,
    ),
    **dict.fromkeys(
        "EXP LOG LOGISTIC TANH POW SIN COS SOFTMAX LOG_SOFTMAX ELU GELU".split(),
        Kind.TRANSCENDENTAL,
    ),
    **dict.fromkeys(
        "MEAN SUM REDUCE_MAX REDUCE_MIN REDUCE_PROD REDUCE_ANY REDUCE_ALL ARG_MAX ARG_MIN CUMSUM "
        "TOPK_V2 L2_NORMALIZATION LOCAL_RESPONSE_NORMALIZATION".split(),
        Kind.REDUCTION,
    ),
    **dict.fromkeys("AVERAGE_POOL_2D MAX_POOL_2D L2_POOL_2D".split(), Kind.POOLING),
    **dict.fromkeys("QUANTIZE DEQUANTIZE FAKE_QUANT".split(), Kind.ROUNDING),
    **dict.fromkeys(
        "CONCATENATION SPLIT SPLIT_V SLICE STRIDED_SLICE GATHER GATHER_ND SCATTER_ND TRANSPOSE PAD "
        "PADV2 MIRROR_PAD TILE BROADCAST_TO RESIZE_BILINEAR RESIZE_NEAREST_NEIGHBOR PACK UNPACK "
        "DEPTH_TO_SPACE SPACE_TO_DEPTH SPACE_TO_BATCH_ND BATCH_TO_SPACE_ND REVERSE_V2 FILL "
        "ZEROS_LIKE EMBEDDING_LOOKUP READ_VARIABLE ASSIGN_VARIABLE DYNAMIC_UPDATE_SLICE".split(),
        Kind.MOVEMENT,
    ),
    **dict.fromkeys(
        "RESHAPE SQUEEZE EXPAND_DIMS SHAPE RANK CALL_ONCE VAR_HANDLE".split(), Kind.FREE
    ),
}
