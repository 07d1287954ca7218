"""Quantize a LiteRT model with ai-edge-quantizer. Runs in the `litert` environment.

Inputs and outputs of the whole model keep their number formats. Samples are read one at a time.
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

_RANKED = 8
"""Samples that layers are ranked by."""
_NARROWS_TABLES = ("dynamic", "weights")
"""Schemes whose lookups read rows of integers; none does so for Gather."""
_LEAST_TABLE_BYTES = 1 << 14
"""What a table has to have, or the operators around a lookup are not worth it."""


def quantize(
    *,
    model: str,
    out: str,
    home: str,
    scheme: dict[str, Any],
    spared: list[str],
    samples: str | None,
) -> Any:
    """Write `out`. `spared` are names of tensors whose operators stay as they are.

    `samples` is a directory of .npz files as `tensorfile` writes them, for a static scheme.
    """
    from ai_edge_quantizer import algorithm_manager, quantizer

    float_model = _prepared(model, home, looks_up=scheme["kind"] in _NARROWS_TABLES)
    work = quantizer.Quantizer(float_model)
    _SCHEMES[scheme["kind"]](work, scheme, ".*")
    never = algorithm_manager.AlgorithmName.NO_QUANTIZE
    for name in spared:
        work.update_quantization_recipe(_only(name), _operators().ALL_SUPPORTED, None, never)
    whole = Path(home) / "quantized.tflite"
    whole.write_bytes(_quantized(work, _ranges(work, float_model, samples)))
    _keep_names(model, whole, out)
    return {}


def rank(
    *,
    model: str,
    home: str,
    scheme: dict[str, Any],
    layers: list[str],
    samples: str,
    most_s: float,
) -> Any:
    """Noise over signal of the worst output, by layer, where that one alone is quantized.

    Nothing where `most_s` seconds are not enough for all of them.
    """
    from ai_edge_quantizer import quantizer

    ends = time.monotonic() + most_s
    float_model = _prepared(model, home, looks_up=False)
    feeds = list(islice(iter(_feeds(float_model, Path(samples))), _RANKED))
    truth = _outputs(Path(float_model).read_bytes(), feeds)
    work = quantizer.Quantizer(float_model)
    _SCHEMES[scheme["kind"]](work, scheme, ".*")
    ranges = _ranges(work, float_model, samples)
    found = {}
    for name in layers:
        one = quantizer.Quantizer(float_model)
        _SCHEMES[scheme["kind"]](one, scheme, _only(name))
        try:
            found[name] = _noise(_outputs(_quantized(one, ranges), feeds), truth)
        except (Unable, RuntimeError, ValueError):
            continue  # alone it cannot be: then nothing is known of it
        if time.monotonic() > ends:
            return {}
    return found


def _only(name: str) -> str:
    """Scopes are the names of what an operator writes, each with a semicolon behind."""
    return f"^{re.escape(name)};"


def _ranges(work: Any, model: str, samples: str | None) -> Any:
    if not work.need_calibration:
        return None
    if samples is None:
        raise Unable("it needs samples to calibrate with")
    feeds = _feeds(model, Path(samples))
    return work.calibrate({feeds.signature: feeds}, num_threads=1)


def _quantized(work: Any, ranges: Any) -> bytes:
    """Inputs and outputs of the whole model stay as they are."""
    from ai_edge_quantizer import algorithm_manager

    for edge in ("INPUT", "OUTPUT"):
        work.update_quantization_recipe(
            ".*",
            getattr(_operators(), edge),
            None,
            algorithm_manager.AlgorithmName.NO_QUANTIZE,
        )
    try:
        return bytes(
            (work.quantize(ranges) if ranges is not None else work.quantize()).quantized_model
        )
    except ValueError as error:
        raise Unable(" ".join(str(error).split())[:400]) from error


def _outputs(model: bytes, feeds: list[dict[str, Any]]) -> list[list[Any]]:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=model, num_threads=1)
    signatures = list(interpreter.get_signature_list())
    runner = interpreter.get_signature_runner(signatures[0] if signatures else None)
    return [list(runner(**feed).values()) for feed in feeds]


def _noise(got: list[list[Any]], truth: list[list[Any]]) -> float:
    import numpy as np

    worst = 0.0
    for mine, right in zip(zip(*got, strict=True), zip(*truth, strict=True), strict=True):
        noise = signal = 0.0
        for value, wanted in zip(mine, right, strict=True):
            wide = wanted.astype(np.float64)
            noise += float(np.nansum((value.astype(np.float64) - wide) ** 2))
            signal += float(np.nansum(wide**2))
        worst = max(worst, noise / signal if signal else noise)
    return worst


def _prepared(model: str, home: str, *, looks_up: bool) -> str:
    """The model as the quantizer takes it: constants of float16 in float32, and the numbers of
    operators where the schema has them since 2020, not only where it had them before. With
    `looks_up`, rows of tables are taken by the operator that the quantizer knows for it."""
    import numpy as np
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.tools import flatbuffer_utils

    found = flatbuffer_utils.read_model(model)
    widens = [
        max(code.builtinCode, code.deprecatedBuiltinCode) == schema.BuiltinOperator.DEQUANTIZE
        for code in found.operatorCodes
    ]
    changed = False
    for code in found.operatorCodes:
        changed |= code.builtinCode < code.deprecatedBuiltinCode
        code.builtinCode = max(code.builtinCode, code.deprecatedBuiltinCode)
    replaced = set()
    for graph in found.subgraphs:
        kept = []
        for operator in graph.operators:
            source = graph.tensors[operator.inputs[0]] if widens[operator.opcodeIndex] else None
            data = found.buffers[source.buffer].data if source is not None else None
            if source is None or source.type != schema.TensorType.FLOAT16 or data is None:
                kept.append(operator)
                continue
            if source.sparsity is not None:
                kept.append(operator)
                continue
            buffer = schema.BufferT()
            wide = np.frombuffer(bytes(data), np.float16).astype(np.float32)
            buffer.data = np.frombuffer(wide.tobytes(), np.uint8)
            found.buffers.append(buffer)
            replaced.add(source.buffer)
            graph.tensors[operator.outputs[0]].buffer = len(found.buffers) - 1
            changed = True
        graph.operators = kept
    if looks_up:
        for graph in found.subgraphs:
            changed |= _Lookups(found, graph).replace()
    if not changed:
        return model
    read = {
        graph.tensors[index].buffer
        for graph in found.subgraphs
        for operator in graph.operators
        for index in operator.inputs
        if index >= 0
    }
    for index in replaced - read:
        found.buffers[index].data = None
    path = Path(home) / "wide.tflite"
    flatbuffer_utils.write_model(found, str(path))
    return str(path)


class _Lookups:
    """Gather of whole rows of a constant table becomes EmbeddingLookup, in one graph."""

    def __init__(self, model: Any, graph: Any) -> None:
        from ai_edge_litert import schema_py_generated as schema

        self.schema, self.model, self.graph = schema, model, graph
        self.made: list[Any] = []
        self.floats = self._read_as_float()
        """Buffers that something needs in float32: to narrow those for others adds bytes."""

    def _read_as_float(self) -> set[int]:
        found: set[int] = set()
        for graph in self.model.subgraphs:
            found.update(graph.tensors[index].buffer for index in graph.outputs)
            for operator in graph.operators:
                code = self.model.operatorCodes[operator.opcodeIndex].builtinCode
                weight = code == self.schema.BuiltinOperator.FULLY_CONNECTED
                for place, index in enumerate(operator.inputs):
                    is_narrow = self._takes_rows(graph, operator) and place == 0
                    if index >= 0 and not (is_narrow or (weight and place == 1)):
                        found.add(graph.tensors[index].buffer)
        return found

    def _takes_rows(self, graph: Any, operator: Any) -> bool:
        """Whether it is a Gather of whole rows by a list of integers, or by several."""
        code = self.model.operatorCodes[operator.opcodeIndex].builtinCode
        if code != self.schema.BuiltinOperator.GATHER:
            return False
        ids, options = graph.tensors[operator.inputs[1]], operator.builtinOptions
        kinds = self.schema.TensorType
        is_list = ids.shape is not None and len(ids.shape) > 0
        is_whole = not (options and (options.axis or options.batchDims))
        return is_list and is_whole and ids.type in (kinds.INT32, kinds.INT64)

    def replace(self) -> bool:
        """Whether there was one."""
        found = False
        for operator in self.graph.operators:
            if self._is_lookup(operator):
                self._look_up(operator)
                found = True
            else:
                self.made.append(operator)
        self.graph.operators = self.made
        return found

    def _is_lookup(self, operator: Any) -> bool:
        if not self._takes_rows(self.graph, operator):
            return False
        table = self.graph.tensors[operator.inputs[0]]
        data = self.model.buffers[table.buffer].data
        return bool(
            data is not None
            and len(data) >= _LEAST_TABLE_BYTES
            and table.type == self.schema.TensorType.FLOAT32
            and table.shape is not None
            and len(table.shape) == 2
            and table.buffer not in self.floats
        )

    def _look_up(self, operator: Any) -> None:
        """A lookup takes a list of 32-bit numbers and gives a list of rows."""
        schema, kinds = self.schema, self.schema.TensorType
        table, ids = (int(index) for index in operator.inputs[:2])
        out, columns = int(operator.outputs[0]), int(self.graph.tensors[table].shape[1])
        count, is_open = self._length(self.graph.tensors[ids])
        if self.graph.tensors[ids].type == kinds.INT64:
            shape = self.graph.tensors[ids]
            narrow = self._tensor("ids", shape.shape, kinds.INT32, signature=shape.shapeSignature)
            options = schema.CastOptionsT()
            options.inDataType, options.outDataType = kinds.INT64, kinds.INT32
            self._add("CAST", [ids], narrow, options)
            ids = narrow
        flat = self._tensor("list", [count], kinds.INT32, signature=[-1] if is_open else None)
        self._add("RESHAPE", [ids, self._constant([-1])], flat, schema.ReshapeOptionsT())
        signature = [-1, columns] if is_open else None
        rows = self._tensor("rows", [count, columns], kinds.FLOAT32, signature=signature)
        self._add("EMBEDDING_LOOKUP", [flat, table], rows, None)
        rank = len(self.graph.tensors[ids].shape)
        lengths = self._tensor("lengths", [rank], kinds.INT32)
        self._add("SHAPE", [ids], lengths, self._shape_options())
        wanted = self._tensor("shape", [rank + 1], kinds.INT32)
        joining = schema.ConcatenationOptionsT()
        self._add("CONCATENATION", [lengths, self._constant([columns])], wanted, joining)
        self._add("RESHAPE", [rows, wanted], out, schema.ReshapeOptionsT())

    def _shape_options(self) -> Any:
        options = self.schema.ShapeOptionsT()
        options.outType = self.schema.TensorType.INT32
        return options

    @staticmethod
    def _length(ids: Any) -> tuple[int, bool]:
        """How many there are, and whether that is open."""
        count = 1
        for axis in ids.shape:
            count *= int(axis)
        return count, any(axis < 0 for axis in ids.shapeSignature or ())

    def _tensor(self, name: str, shape: Any, kind: int, *, signature: Any = None) -> int:
        tensor = self.schema.TensorT()
        tensor.name = f"edgekit/{name}_{len(self.graph.tensors)}".encode()
        tensor.shape, tensor.type, tensor.buffer = list(shape), kind, 0
        tensor.shapeSignature = None if signature is None else list(signature)
        self.graph.tensors.append(tensor)
        return len(self.graph.tensors) - 1

    def _constant(self, values: list[int]) -> int:
        import numpy as np

        index = self._tensor("constant", [len(values)], self.schema.TensorType.INT32)
        buffer = self.schema.BufferT()
        buffer.data = np.frombuffer(np.array(values, np.int32).tobytes(), np.uint8)
        self.model.buffers.append(buffer)
        self.graph.tensors[index].buffer = len(self.model.buffers) - 1
        return index

    def _add(self, kind: str, inputs: list[int], output: int, options: Any) -> None:
        code = getattr(self.schema.BuiltinOperator, kind)
        codes = self.model.operatorCodes
        place = next((i for i, known in enumerate(codes) if known.builtinCode == code), len(codes))
        if place == len(codes):
            added = self.schema.OperatorCodeT()
            added.builtinCode = added.deprecatedBuiltinCode = code
            added.version = 1
            codes.append(added)
        operator = self.schema.OperatorT()
        operator.opcodeIndex, operator.inputs, operator.outputs = place, inputs, [output]
        if options is not None:
            operator.builtinOptions = options
            kinds = self.schema.BuiltinOptions
            operator.builtinOptionsType = getattr(kinds, type(options).__name__[:-1])
        self.made.append(operator)


class Unable(Exception):
    """The model cannot be quantized so."""


def _operators() -> Any:
    from ai_edge_quantizer import qtyping

    return qtyping.TFLOperationName


def _granularity(scheme: dict[str, Any]) -> Any:
    from ai_edge_quantizer import qtyping

    return qtyping.QuantGranularity[scheme["granularity"]]


def _dynamic(work: Any, scheme: dict[str, Any], scope: str) -> None:
    work.add_dynamic_config(
        scope, _operators().ALL_SUPPORTED, scheme["weight_bits"], _granularity(scheme)
    )


def _weights(work: Any, scheme: dict[str, Any], scope: str) -> None:
    work.add_weight_only_config(
        scope, _operators().ALL_SUPPORTED, scheme["weight_bits"], _granularity(scheme)
    )


def _static(work: Any, scheme: dict[str, Any], scope: str) -> None:
    work.add_static_config(
        scope,
        _operators().ALL_SUPPORTED,
        scheme["activation_bits"],
        scheme["weight_bits"],
        _granularity(scheme),
    )


def _float16(work: Any, scheme: dict[str, Any], scope: str) -> None:
    from ai_edge_quantizer import algorithm_manager, qtyping

    halves = qtyping.OpQuantizationConfig(
        weight_tensor_config=qtyping.TensorQuantizationConfig(
            num_bits=16, dtype=qtyping.TensorDataType.FLOAT
        ),
        compute_precision=qtyping.ComputePrecision.FLOAT,
        explicit_dequantize=True,
    )
    casting = algorithm_manager.AlgorithmName.FLOAT_CASTING
    work.update_quantization_recipe(scope, _operators().ALL_SUPPORTED, halves, casting)


_SCHEMES = {"dynamic": _dynamic, "weights": _weights, "static": _static, "float16": _float16}


def _feeds(model: str, samples: Path) -> Feeds:
    """Samples by the signature's own names of the inputs."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model)
    signatures = list(interpreter.get_signature_list())
    key = signatures[0] if signatures else None
    runner = interpreter.get_signature_runner(key)
    names = {word: detail["name"] for word, detail in runner.get_input_details().items()}
    return Feeds(samples, names, key)


def _keep_names(given: str, quantized: Path, out: str) -> None:
    """Outputs of operators that were put behind the model's own get the names of those."""
    import numpy as np
    from ai_edge_litert.tools import flatbuffer_utils

    before = flatbuffer_utils.read_model(given).subgraphs[0]
    model = flatbuffer_utils.read_model(str(quantized))
    after = model.subgraphs[0]
    for side in ("inputs", "outputs"):
        for old, new in zip(getattr(before, side), getattr(after, side), strict=True):
            wanted, tensor = before.tensors[old].name, after.tensors[new]
            for other in after.tensors:
                if other.name == wanted and other is not tensor:
                    other.name = tensor.name
            tensor.name = wanted
    for buffer in model.buffers:
        if buffer.data is not None:  # anything but an array is written byte by byte
            buffer.data = np.frombuffer(bytes(buffer.data), np.uint8)
    flatbuffer_utils.write_model(model, out)


class Feeds:
    """Read anew each time: the quantizer goes through them more than once."""

    def __init__(self, samples: Path, names: dict[str, str], signature: str | None) -> None:
        self._paths, self._names = sorted(samples.glob("*.npz")), names
        self.signature = signature

    def __len__(self) -> int:
        return len(self._paths)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        import numpy as np

        for path in self._paths:
            with np.load(path, allow_pickle=False) as archive:
                order = json.loads(archive["names"].tobytes())
                tensors = {name: archive[f"t{index}"] for index, name in enumerate(order)}
            yield {word: tensors[name] for word, name in self._names.items()}


_WORKS: dict[str, Callable[..., Any]] = {"quantize": quantize, "rank": rank}

if __name__ == "__main__":
    arguments = json.loads(Path(sys.argv[1]).read_text())
    with contextlib.redirect_stdout(sys.stderr):
        try:
            answer = {"result": _WORKS[arguments.pop("work")](**arguments)}
        except Unable as error:
            answer = {"refused": str(error)}
    Path(sys.argv[2]).write_text(json.dumps(answer))
