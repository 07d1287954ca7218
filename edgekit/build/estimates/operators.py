"""What operators cost, from the shapes and number formats of their tensors. Pure.

Invariant: every operator has a cost; of one that nothing is known of, the kind says so, and the
estimate's error bar is wide.

Operators are those that onnxruntime runs, after its rewrites (its docs, "Graph optimizations" and
"Contrib operators"): an int8 convolution between QuantizeLinear and DequantizeLinear is one
QLinearConv here.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

__all__ = ["ROWS_OF_A_MATRIX", "Arithmetic", "Executed", "Kind", "Tensor", "Work", "work_of"]

ROWS_OF_A_MATRIX: Final = 4
"""With fewer rows than a kernel's tile, a product reads each weight for one or two uses."""


class Kind(enum.Enum):
    """What bounds an operator's time."""

    DENSE = "dense"
    """Products of matrices, convolutions as such included."""
    DEPTHWISE = "depthwise"
    """A filter for each channel: little to do with each byte."""
    VECTOR = "vector"
    """A matrix by a few rows: each weight is used once or twice."""
    RECURRENT = "recurrent"
    """Many small products, one after the other."""
    UNPACKING = "unpacking"
    """Weights of a few bits, widened while they are used."""
    ELEMENTWISE = "elementwise"
    TRANSCENDENTAL = "transcendental"
    """Elementwise, with an exponential or the like for each element."""
    REDUCTION = "reduction"
    POOLING = "pooling"
    ROUNDING = "rounding"
    """To and from quantized numbers."""
    MOVEMENT = "movement"
    """Other places for the same numbers."""
    FREE = "free"
    """Looks at a tensor from another side; nothing but the call itself."""
    UNKNOWN = "unknown"


class Arithmetic(enum.Enum):
    FLOAT32 = "float32"
    FLOAT16 = "float16"
    INT8 = "int8"


@dataclass(frozen=True, kw_only=True)
class Tensor:
    dtype: str
    """As numpy names it."""
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, kw_only=True)
class Executed:
    """One run of one operator."""

    operator: str
    inputs: tuple[Tensor, ...]
    """In the operator's order, without those that were left out at the end."""
    outputs: tuple[Tensor, ...]
    weight_bytes: int
    """Of the inputs that are constants."""
    activation_bytes: int
    """Of the other inputs and of the outputs."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What there is to do for one operator."""

    kind: Kind
    arithmetic: Arithmetic
    macs: int
    """Multiplications with an addition each."""
    elements: int
    """That each take a step: of a convolution those that are laid out for its product."""
    weight_bytes: int
    activation_bytes: int


def work_of(run: Executed) -> Work:
    """The cost of an operator that ran."""
    found = _product(run)
    kind, macs = found if found is not None else (_KINDS.get(run.operator, Kind.UNKNOWN), 0)
    return Work(
        kind=kind,
        arithmetic=_arithmetic(run),
        macs=macs,
        elements=_laid_out(run, kind) if macs else _elements(run, kind),
        # of a table only the rows that are looked up are read
        weight_bytes=min(run.weight_bytes, run.activation_bytes)
        if kind is Kind.MOVEMENT
        else run.weight_bytes,
        activation_bytes=0 if kind is Kind.FREE else run.activation_bytes,
    )


def _arithmetic(run: Executed) -> Arithmetic:
    """By the operator where it says, else by what it reads."""
    if run.operator in _INT8:
        return Arithmetic.INT8
    if any(tensor.dtype == "float16" for tensor in run.inputs[:2]):
        return Arithmetic.FLOAT16
    return Arithmetic.FLOAT32


def _laid_out(run: Executed, kind: Kind) -> int:
    """The matrix that a convolution's windows become (im2col); one of 1x1 needs none."""
    at = _KERNEL_AT.get(run.operator)
    if at is None or kind is not Kind.DENSE:
        return 0
    kernel, out = run.inputs[at].shape, run.outputs[0]
    return out.elements // max(1, kernel[0]) * math.prod(kernel[1:]) if max(kernel[2:]) > 1 else 0


def _elements(run: Executed, kind: Kind) -> int:
    """The greater side: a reduction reads more than it writes, a copy writes what it repeats."""
    if kind is Kind.FREE:
        return 0
    sides = [*run.inputs[: 1 if kind is Kind.MOVEMENT else None], *run.outputs]
    return max((tensor.elements for tensor in sides), default=0)


def _product(run: Executed) -> tuple[Kind, int] | None:
    count = _PRODUCTS.get(run.operator)
    if count is None or len(run.inputs) < 2 or not run.outputs or not run.outputs[0].shape:
        return None
    return count(run)


def _convolution(at: int) -> Callable[[Executed], tuple[Kind, int] | None]:
    def count(run: Executed) -> tuple[Kind, int] | None:
        if len(run.inputs) <= at or len(run.inputs[at].shape) < 3:
            return None
        kernel, channels = run.inputs[at].shape, run.inputs[0].shape[1:2]
        macs = run.outputs[0].elements * math.prod(kernel[1:])
        depthwise = kernel[1] == 1 and channels[:1] > (1,)
        return (Kind.DEPTHWISE if depthwise else Kind.DENSE), macs

    return count


def _transposed(run: Executed) -> tuple[Kind, int] | None:
    if len(run.inputs[1].shape) < 3:
        return None
    kernel = run.inputs[1].shape
    return Kind.DENSE, run.inputs[0].elements * math.prod(kernel[1:])


def _matrices(kind: Kind = Kind.DENSE) -> Callable[[Executed], tuple[Kind, int] | None]:
    def count(run: Executed) -> tuple[Kind, int] | None:
        left, out = run.inputs[0], run.outputs[0]
        if not left.shape:
            return None
        rows = math.prod(out.shape[:-1])
        # of a two-dimensional product either side may lie transposed, but not the number of them
        inner = left.elements // max(1, rows) if len(left.shape) == 2 else left.shape[-1]
        macs = out.elements * max(1, inner)
        if kind is Kind.DENSE and run.weight_bytes and rows < ROWS_OF_A_MATRIX:
            return Kind.VECTOR, macs
        return kind, macs

    return count


def _recurrent(run: Executed) -> tuple[Kind, int] | None:
    if len(run.inputs) < 3 or len(run.inputs[0].shape) != 3:
        return None
    steps, batch = run.inputs[0].shape[:2]
    return Kind.RECURRENT, steps * batch * (run.inputs[1].elements + run.inputs[2].elements)


def _attention(run: Executed) -> tuple[Kind, int] | None:
    """One product to query, key and value, and the two between them (contrib op Attention)."""
    if len(run.inputs[0].shape) != 3 or len(run.inputs[1].shape) != 2:
        return None
    batch, length, width = run.inputs[0].shape
    hidden = run.inputs[1].shape[-1]
    return Kind.DENSE, batch * length * (width * hidden + 2 * length * hidden // 3)


_KERNEL_AT: Final[Mapping[str, int]] = {
    "Conv": 1, "FusedConv": 1, "NhwcFusedConv": 1, "ConvInteger": 1, "QLinearConv": 3
}  # fmt: skip
"""Which input is a convolution's kernel."""

_PRODUCTS: Final[Mapping[str, Callable[[Executed], tuple[Kind, int] | None]]] = {
    **{operator: _convolution(at) for operator, at in _KERNEL_AT.items()},
    "ConvTranspose": _transposed,
    "MatMul": _matrices(),
    "FusedMatMul": _matrices(),
    "Gemm": _matrices(),
    "FusedGemm": _matrices(),
    "MatMulInteger": _matrices(),
    "MatMulIntegerToFloat": _matrices(),
    "DynamicQuantizeMatMul": _matrices(),
    "QLinearMatMul": _matrices(),
    "QGemm": _matrices(),
    "MatMulNBits": _matrices(Kind.UNPACKING),
    "LSTM": _recurrent,
    "GRU": _recurrent,
    "RNN": _recurrent,
    "DynamicQuantizeLSTM": _recurrent,
    "Attention": _attention,
    "QAttention": _attention,
}

_INT8: Final = frozenset(
    "ConvInteger QLinearConv MatMulInteger MatMulIntegerToFloat DynamicQuantizeMatMul "
    "QLinearMatMul QGemm DynamicQuantizeLSTM QAttention".split()
)

_KINDS: Final[Mapping[str, Kind]] = {
    **dict.fromkeys(
        "Add Sub Mul Div Relu LeakyRelu PRelu Clip Max Min Abs Neg Sign Sum Mean And Or Xor Not "
        "Equal Less LessOrEqual Greater GreaterOrEqual Where Ceil Floor Round Mod Cast CastLike "
        "Sqrt Reciprocal BatchNormalization HardSigmoid HardSwish ThresholdedRelu IsNaN IsInf "
        "BitShift QLinearAdd QLinearMul QLinearLeakyRelu Dropout QLinearConcat QLinearWhere "
        "ScaledTanh Range OneHot BiasAdd".split(),
        Kind.ELEMENTWISE,
    ),
    **dict.fromkeys(
        "Exp Log Sigmoid Tanh Erf Pow Sin Cos Tan Softmax LogSoftmax Softplus Softsign Elu Selu "
        "Celu Mish Gelu FastGelu BiasGelu QuickGelu Swish BiasSoftmax QLinearSigmoid "
        "QLinearSoftmax".split(),
        Kind.TRANSCENDENTAL,
    ),
    **dict.fromkeys(
        "ReduceMean ReduceSum ReduceMax ReduceMin ReduceProd ReduceL1 ReduceL2 ReduceLogSum "
        "ReduceLogSumExp ReduceSumSquare ArgMax ArgMin TopK CumSum LayerNormalization "
        "SimplifiedLayerNormalization SkipLayerNormalization SkipSimplifiedLayerNormalization "
        "InstanceNormalization GroupNormalization LpNormalization LRN QLinearReduceMean "
        "EmbedLayerNormalization MeanVarianceNormalization".split(),
        Kind.REDUCTION,
    ),
    **dict.fromkeys(
        "MaxPool AveragePool GlobalAveragePool GlobalMaxPool LpPool QLinearAveragePool "
        "QLinearGlobalAveragePool".split(),
        Kind.POOLING,
    ),
    **dict.fromkeys("QuantizeLinear DequantizeLinear DynamicQuantizeLinear".split(), Kind.ROUNDING),
    **dict.fromkeys(
        "Concat Split Slice Gather GatherND GatherElements Scatter ScatterND ScatterElements "
        "Transpose Pad Tile Expand Resize Upsample DepthToSpace SpaceToDepth ReverseSequence "
        "Compress NonZero Unique ConstantOfShape Trilu EyeLike GridSample Im2Col Col2Im".split(),
        Kind.MOVEMENT,
    ),
    # a branch's or a loop's own operators are in the trace, too
    **dict.fromkeys(
        "Reshape Squeeze Unsqueeze Flatten Identity Shape Size Constant If Loop Scan "
        "SequenceAt SequenceConstruct Optional".split(),
        Kind.FREE,
    ),
}
