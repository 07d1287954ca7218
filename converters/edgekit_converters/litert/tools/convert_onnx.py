"""ONNX to LiteRT by onnx2tf's direct writer. Runs in the `litert` environment.

Names, order, layout and number formats of inputs and outputs stay the model's own. onnx2tf writes
over its input: it is given a copy. Whether the file computes the same is for the caller to prove.
"""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Any


def main(model: str, out: str, home: str, inputs: list[str], shapes: dict[str, list[int]]) -> Any:
    """Write `out`. `shapes` fixes inputs that have open axes; without it they stay open.

    An input that was fixed is marked open again, and so are outputs whose model leaves axes open:
    interpreters resize them, where no constant of the graph depends on the length.
    """
    import onnx
    import onnx2tf

    given = onnx.load_model(model, load_external_data=False)
    signatures = {
        value.name: [
            axis.dim_value if axis.HasField("dim_value") else -1
            for axis in value.type.tensor_type.shape.dim
        ]
        for value in (*given.graph.input, *given.graph.output)
    }
    outputs = [value.name for value in given.graph.output]
    # onnx2tf changes names that have characters which TensorFlow's may not have
    plain = {name: f"edgekit_input_{index}" for index, name in enumerate(inputs)}
    plain |= {name: f"edgekit_output_{index}" for index, name in enumerate(outputs)}
    if shapes:
        _fix(given.graph, shapes)
    _rename(given.graph, plain)
    onnx.save_model(given, model)
    produced = Path(home) / "produced"
    try:
        onnx2tf.convert(
            input_onnx_file_path=model,
            output_folder_path=str(produced),
            tflite_backend="flatbuffer_direct",
            keep_shape_absolutely_input_names=[plain[name] for name in inputs],
            copy_onnx_input_output_names_to_tflite=True,
            not_use_onnxsim=True,
            verbosity="error",
        )
    except (Exception, SystemExit) as error:  # it ends the process where it does not know further
        text = " ".join(str(error).split())
        raise Unable(text[:400] or type(error).__name__) from error
    found = sorted(produced.glob("*_float32.tflite"))
    if len(found) != 1:
        raise Unable("onnx2tf wrote no model")
    sides = {
        "inputs": {plain[name]: name for name in inputs},
        "outputs": {plain[name]: name for name in outputs},
    }
    return _finish(found[0], Path(out), sides, signatures=signatures, is_fixed=bool(shapes))


def _fix(graph: Any, shapes: dict[str, list[int]]) -> None:
    """Give inputs these lengths, and forget what followed from open ones."""
    for value in graph.input:
        for axis, length in zip(
            value.type.tensor_type.shape.dim, shapes.get(value.name, ()), strict=False
        ):
            axis.Clear()
            axis.dim_value = length
    del graph.value_info[:]


def _rename(graph: Any, names: dict[str, str]) -> None:
    """In a graph and those in its nodes."""
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                _rename(inner, names)
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        value.name = names.get(value.name, value.name)


class Unable(Exception):
    """The model cannot be converted."""


def _finish(
    path: Path,
    out: Path,
    sides: dict[str, dict[str, str]],
    *,
    signatures: dict[str, list[int]],
    is_fixed: bool,
) -> Any:
    """Give inputs and outputs the model's names and order, and open axes again that were fixed.

    `sides` are their plain names, and those that they get.
    """
    from ai_edge_litert.tools import flatbuffer_utils

    model = flatbuffer_utils.read_model(str(path))
    main = model.subgraphs[0]
    by_name = {_text(tensor.name): index for index, tensor in enumerate(main.tensors)}
    places = {side: [by_name.get(plain, -1) for plain in names] for side, names in sides.items()}
    for side, names in sides.items():
        held = [int(index) for index in getattr(main, side)]
        if sorted(held) != sorted(places[side]):
            has = [names.get(_text(t.name), _text(t.name)) for t in (main.tensors[i] for i in held)]
            raise Unable(f"onnx2tf made the {side} {has}, not {list(names.values())}")
    for side, names in sides.items():
        setattr(main, side, places[side])
        for name, place in zip(names.values(), places[side], strict=True):
            tensor = main.tensors[place]
            if name in by_name:
                main.tensors[by_name[name]].name = tensor.name
            tensor.name = name.encode()
            axes = signatures.get(name, [])
            if not axes and list(tensor.shape) == [1]:  # onnx2tf knows no scalars
                tensor.shape, tensor.shapeSignature = [], None
            if is_fixed and len(axes) == len(tensor.shape) and -1 in axes:
                tensor.shapeSignature = [
                    -1 if axis < 0 else int(length)
                    for axis, length in zip(axes, tensor.shape, strict=True)
                ]
        for signature in model.signatureDefs or ():
            for entry in getattr(signature, side):
                entry.name = names.get(_text(entry.name), _text(entry.name)).encode()
    if is_fixed and all(axes[:1] == [-1] for axes in signatures.values()):
        _follow_batch(model)
    flatbuffer_utils.write_model(model, str(out))
    codes = [_text(code.customCode) for code in model.operatorCodes if code.customCode is not None]
    return {"custom": codes}


def _follow_batch(model: Any) -> None:
    """Let reshapes to a batch of one give as many as come in: the other lengths stay."""
    import numpy as np
    from ai_edge_litert import schema_py_generated as schema

    reshape = [
        max(code.builtinCode, code.deprecatedBuiltinCode) == schema.BuiltinOperator.RESHAPE
        for code in model.operatorCodes
    ]
    for graph in model.subgraphs:
        readers: dict[int, list[Any]] = {}
        for operator in graph.operators:
            for place, index in enumerate(operator.inputs):
                is_shape = reshape[operator.opcodeIndex] and place == 1
                readers.setdefault(int(index), []).append(operator if is_shape else None)
        for index, operators in readers.items():
            buffer = model.buffers[graph.tensors[index].buffer] if index >= 0 else None
            if buffer is None or buffer.data is None or None in operators:
                continue
            wanted = np.frombuffer(bytes(buffer.data), np.int32).copy()
            if len(wanted) < 2 or wanted[0] != 1 or (wanted < 0).any():
                continue
            wanted[0] = -1
            buffer.data = np.frombuffer(wanted.tobytes(), np.uint8)
            for operator in operators:
                if operator.builtinOptions is not None:
                    operator.builtinOptions.newShape = wanted


def _text(name: Any) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)


if __name__ == "__main__":
    arguments = json.loads(Path(sys.argv[1]).read_text())
    with contextlib.redirect_stdout(sys.stderr):
        try:
            answer = {"result": main(**arguments)}
        except Unable as error:
            answer = {"refused": str(error)}
    Path(sys.argv[2]).write_text(json.dumps(answer))
