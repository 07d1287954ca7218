"""onnxruntime's graph rewriting for quantization, behind a function of ours.

Invariant: nothing of onnxruntime.quantization is used elsewhere; ranges are ours, nodes are named
one by one, and its options are these. What comes out is checked by those who asked for it.
"""

from __future__ import annotations

import enum
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper

from edgekit_contract.errors import Refused
from edgekit_converters import graph
from edgekit_converters.calibration.estimators import Range
from edgekit_converters.conditioning.conditioned import condition
from edgekit_converters.conditioning.grid import FULL_LEVELS, REDUCED_LEVELS, Grid
from edgekit_converters.quantization.selection import (
    FIRST_INPUT_ONLY,
    float_results,
    select_static,
)
from edgekit_converters.quantization.shielding import shield
from edgekit_converters.quantization.storing import scales, store
from edgekit_converters.quantization.trimming import trim
from edgekit_converters.recipes.tuning import UNTUNED, Tuning

__all__ = ["Activations", "Granularity", "quantize_static"]

_LARGEST: Final = 1e30
"""A range beyond this is a mask's minus infinity, not a value: its nodes stay float."""
_BIASED: Final = frozenset({"Conv", "ConvTranspose", "Gemm"})


class Granularity(enum.Enum):
    """What one scale of the weights is for."""

    PER_TENSOR = "per-tensor"
    PER_CHANNEL = "per-channel"


class Activations(enum.Enum):
    """Number format of activations; weights are always signed."""

    S8 = "s8s8"
    U8 = "u8s8"


def quantize_static(
    source: Path,
    out: Path,
    *,
    ranges: Mapping[str, Range],
    activations: Activations,
    granularity: Granularity,
    reduce_range: bool,
    tuning: Tuning = UNTUNED,
    moments: Path | None = None,
) -> None:
    """Write `source` with QuantizeLinear/DequantizeLinear pairs around its weighted operators.

    `reduce_range` keeps weights within 7 bits; `moments` is what the tuning's correction and
    reconstruction work with. Errors: `Refused` where nothing can be quantized, and
    whatever onnxruntime raises.
    """
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.calibrate import TensorData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    model = onnx.load_model(source)
    grid = Grid(
        per_channel=granularity is Granularity.PER_CHANNEL,
        levels=REDUCED_LEVELS if reduce_range else FULL_LEVELS,
    )
    if moments is not None and (tuning.reconstructed or tuning.corrected):
        model = condition(
            model,
            moments,
            grid=grid,
            reconstructed=tuning.reconstructed,
            corrected=tuning.corrected,
            spared=tuning.spared,
        )
    selection = select_static(model, wide=tuning.wide, spared=tuning.spared)
    found = {
        tensor: ranges[seen]
        for tensor, seen in selection.sources.items()
        if seen in ranges and _is_usable(ranges[seen])
    }
    nodes = _with_ranges(model, selection.nodes, found)
    if not nodes:
        raise Refused("no node could be quantized.")
    floats = float_results(model.graph, nodes)  # the quantizer works in place
    _unshare_biases(model, nodes)
    model = _typed(model, found)
    kind = {Activations.S8: QuantType.QInt8, Activations.U8: QuantType.QUInt8}[activations]
    quantizer = QDQQuantizer(
        model,
        per_channel=granularity is Granularity.PER_CHANNEL,
        reduce_range=reduce_range,
        weight_qType=QuantType.QInt8,
        activation_qType=kind,
        tensors_range={
            name: TensorData(lowest=np.float32(r.low), highest=np.float32(r.high))
            for name, r in found.items()
        },
        nodes_to_quantize=list(nodes),
        nodes_to_exclude=[],
        op_types_to_quantize=sorted({n.op_type for n in model.graph.node if n.name in nodes}),
        extra_options={
            "ActivationSymmetric": False,
            "WeightSymmetric": True,
            "TensorQuantOverrides": scales(model, nodes, grid) if grid.per_channel else {},
            "AddQDQPairToWeight": True,
        },
    )
    quantized = _quietly(quantizer.quantize_model)
    store(quantized)
    trim(quantized, floats)
    shield(quantized)
    _save(quantized, out)


def _is_usable(found: Range) -> bool:
    return max(abs(found.low), abs(found.high)) < _LARGEST


def _with_ranges(
    model: ModelProto, nodes: tuple[str, ...], found: Mapping[str, Range]
) -> frozenset[str]:
    """Nodes of which every tensor that is not a constant has a range."""
    constants = graph.initializers(model.graph)

    def is_known(node: NodeProto) -> bool:
        inputs = node.input[:1] if node.op_type in FIRST_INPUT_ONLY else node.input
        return all(n in found or n in constants or not n for n in (*inputs, *node.output[:1]))

    wanted = set(nodes)
    return frozenset(n.name for n in model.graph.node if n.name in wanted and is_known(n))


def _unshare_biases(model: ModelProto, nodes: frozenset[str]) -> None:
    """A bias of its own for each node, with one axis: its scale is that of the node's input times
    its weight's.

    onnxruntime copies shared ones, too, but under names that other tensors may have; and of one
    that is a row [1, columns], as Gemm may have, it takes no scale for each column.
    """
    constants = graph.initializers(model.graph)
    uses: dict[str, int] = {}
    for node in model.graph.node:
        if node.name not in nodes or node.op_type not in _BIASED:
            continue
        if len(node.input) < 3 or node.input[2] not in constants:
            continue
        name = node.input[2]
        uses[name] = uses.get(name, 0) + 1
        dims = constants[name].dims
        is_row = len(dims) == 2 and dims[0] == 1
        if uses[name] > 1 or is_row:
            copy = model.graph.initializer.add()
            copy.CopyFrom(constants[name])
            copy.name = f"{name}/bias of {node.name}"
            if is_row:
                del copy.dims[0]
            node.input[2] = copy.name


def _typed(model: ModelProto, found: Mapping[str, Range]) -> ModelProto:
    """With the shapes that can be inferred, and float32 for tensors that were observed as such;
    marked so that onnxruntime does not infer again through files of its own."""
    try:
        typed = onnx.shape_inference.infer_shapes(model)
    except onnx.shape_inference.InferenceError:
        typed = model
    known = graph.typed_values(typed)
    typed.graph.value_info.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        for name in sorted(found)
        if name not in known
    )
    helper.set_model_props(typed, {"onnx.infer": "onnxruntime.quant"})
    return typed


def _quietly(work: Any) -> ModelProto:
    """Its warnings go to the root logger, whatever it is told."""
    previous = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        model = work()
    finally:
        logging.disable(previous)
    assert isinstance(model, ModelProto)
    return model


def _drop_zeros(model: ModelProto) -> None:
    """Biases of 32 bits have no zero point: one per channel would take as much as the bias."""
    biases = {t.name for t in model.graph.initializer if t.data_type == TensorProto.INT32}
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in biases:
            del node.input[2:]


def _save(model: ModelProto, out: Path) -> None:
    graph.strip_remarks(model)
    _drop_zeros(model)
    del model.graph.value_info[:]  # they were for the quantizer
    model.producer_name = model.producer_version = ""
    graph.prune_opsets(model)
    graph.clamp_ir(model)
    read = graph.read_names(model)
    kept = [tensor for tensor in model.graph.initializer if tensor.name in read]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    onnx.save_model(model, out)
