"""Which onnxruntime has which operator of its own, and of ONNX where its kernel came late. Pure.

Read from the registries of its wheels on PyPI for x86-64, 1.16 to 1.32
(`onnxruntime.capi.onnxruntime_pybind11_state`: `get_all_opkernel_def`, for the CPU, and
`get_all_operator_schema` of what has no kernel there but may have a function's body); wheels 1.12
to 1.15 lack those, so each operator was tried in a model. Older ones were not looked at.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from edgekit_contract.compatibility import version_tuple

__all__ = ["LATER", "first_version", "named_in_ort_format", "newer_than"]

LATER: Final = "1.33"
"""For an operator of onnxruntime's own that none of the versions looked at has."""
_CONTRIB: Final = "com.microsoft:"

_OWN: Final = {
    "1.12": """
        Attention AttnLSTM BeamSearch BiasDropout BiasGelu BiasSoftmax BifurcationDetector
        BitmaskBiasDropout BitmaskDropout CDist ComplexMul ComplexMulConj
        ConvTransposeWithDynamicPads CropAndResize DecoderAttention DequantizeLinear
        DynamicQuantizeLSTM DynamicQuantizeMatMul EmbedLayerNormalization ExpandDims FastGelu
        FusedConv FusedGemm FusedMatMul GatherND Gelu GridSample Inverse Irfft IsAllFinite
        LongformerAttention MatMulInteger16 MatMulIntegerToFloat MaxpoolWithMask MulInteger
        MurmurHash3 NGramRepeatBlock NhwcConv NhwcMaxPool Pad QAttention
        QEmbedLayerNormalization QGemm QLinearAdd QLinearAveragePool QLinearConcat QLinearConv
        QLinearGlobalAveragePool QLinearLeakyRelu QLinearMul QLinearReduceMean QLinearSigmoid
        QuantizeLinear Range ReduceSumInteger Rfft SampleOp SkipLayerNormalization Snpe
        SparseToDenseMatMul Tokenizer TorchEmbedding TransposeMatMul Trilu Unique
        WordConvEmbedding
    """,
    "1.13": """
        DequantizeBFP DequantizeWithOrder GemmFastGelu GreedySearch QLinearSoftmax
        QOrderedAttention QOrderedGelu QOrderedLayerNormalization QOrderedLongformerAttention
        QOrderedMatMul QuantizeBFP QuantizeWithOrder
    """,
    "1.14": """
        BiasSplitGelu GatedRelativePositionBias GroupNorm MultiHeadAttention QLinearWhere
        QuickGelu RelativePositionBias RemovePadding RestorePadding Sampling
        SkipSimplifiedLayerNormalization
    """,
    "1.15": """
        BiasAdd DecoderMaskedSelfAttention FusedMatMulActivation NhwcFusedConv PackedAttention
    """,
    "1.16": """
        MatMulBnb4 MatMulFpQ4 MatMulNBits PackedMultiHeadAttention RotaryEmbedding SkipGroupNorm
    """,
    "1.17": """
        EPContext GemmFloat8 WhisperBeamSearch
    """,
    "1.18": """
        GemmaRotaryEmbedding GroupQueryAttention
    """,
    "1.19": """
        SparseAttention
    """,
    "1.20": """
        DecoderMaskedMultiHeadAttention DynamicTimeWarping GatherBlockQuantized UnfoldTensor
    """,
    "1.23": """
        MoE PagedAttention QMoE
    """,
    "1.26": """
        CausalConvWithState LinearAttention
    """,
    "1.27": """
        MatMulNBitsMlp MatMulNBitsQkv
    """,
    "1.29": """
        MRotaryEmbedding MatMulBlockQuantizedFp4Weight MatMulBlockQuantizedFp8Weight
    """,
    "1.30": """
        EngramGate GatedAdd GatedRMSNorm LinearAttentionGate NGramHashMapping
    """,
    "1.31": """
        BranchwiseRMSNorm DynamicSparseAttention HyperConnectionPostMix HyperConnectionPreMix
        PackedSparseAttentionIndexer ScaledSiLU SparseAttentionIndexer SparsePagedAttention
        VarlenNGramHashMapping
    """,
    "1.32": """
        ConvStateReplay GatedDeltaNet GatedDeltaNetStateReplay GatherPacked
        HyperConnectionLowRankMix Mamba2Verify MatMulNBitsQLoRA MatMulPacked MoEGroupRouter
        MoEPacked PackedSparseAttentionIndexerMerge RMSNormRotary RouterGateUpProj
        SpeculativePrefixCommit SwiGLU VarlenCausalConvWithState
    """,
}
"""First version to those of the domain com.microsoft that came with it."""

_LATE: Final = {
    "DeformConv": "1.25",  # in the operator set since 19 (1.15)
    "TensorScatter": "1.25",  # 24 (1.24)
    "ai.onnx.ml:TreeEnsemble": "1.21",  # ai.onnx.ml 5 (1.18)
}
"""Operators that have no function's body, and had no kernel when their operator set came."""

_FIRST: Final = _LATE | {
    _CONTRIB + operator: version for version, held in _OWN.items() for operator in held.split()
}


def first_version(operator: str) -> str | None:
    """The first onnxruntime that has an operator, `Name` or `domain:Name`.

    None where the version of its operator set is all there is to say.
    """
    return _FIRST.get(operator, LATER if operator.startswith(_CONTRIB) else None)


def named_in_ort_format(content: bytes) -> frozenset[str]:
    """Operators of the table whose names are strings of a file in onnxruntime's own format.

    All that its nodes use are among them; a tensor of the same name may bring one more.
    """
    return frozenset(
        operator
        for operator in _FIRST
        if _flatbuffers_string(operator.rpartition(":")[2]) in content
    )


def _flatbuffers_string(text: str) -> bytes:
    """FlatBuffers, "Internals": a 32-bit length, the characters and a zero."""
    return len(text).to_bytes(4, "little") + text.encode() + b"\0"


def newer_than(version: str, operators: Iterable[str]) -> dict[str, str]:
    """The operators that an onnxruntime of this version lacks, and the first that has each."""
    firsts = ((operator, first_version(operator)) for operator in operators)
    return {
        operator: first
        for operator, first in firsts
        if first is not None and version_tuple(version) < version_tuple(first)
    }
