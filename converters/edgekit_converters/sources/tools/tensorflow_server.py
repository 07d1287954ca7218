"""A SavedModel or Keras model in TensorFlow: writes it as ONNX, runs it.

Runs in the `tensorflow` environment.

Reads a JSON request per line on stdin and answers with one per line; what libraries print goes to
stderr. The first request opens the model, of which TensorFlow and Keras see no more than `pruning`
and `keras_files` let through.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # which -I leaves out

import keras_files
from pruning import SERVING, pruned
from unable import Unable, said

_OPSET = 17


class Model:
    """A function of named tensors."""

    def __init__(self, path: str) -> None:
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        home = Path(path)
        self._kept: Any = None
        if home.is_dir():
            self._open_saved_model(home)
        else:
            self._open_keras(home)

    def _open_saved_model(self, home: Path) -> None:
        """By the loader of TensorFlow 1, which reads what either wrote, old optimizers and all."""
        import tensorflow as tf

        home = pruned(home, Path(tempfile.mkdtemp()))
        graph = tf.Graph()
        with graph.as_default():
            session = tf.compat.v1.Session(graph=graph)
            try:
                loaded = tf.compat.v1.saved_model.loader.load(session, ["serve"], str(home))
            except Exception as error:
                raise Unable(f"does not load ({said(error)}): save the model again") from error
        chosen = loaded.signature_def[SERVING]
        self._outputs = sorted(chosen.outputs)
        self._inputs = [
            (name, tf.TensorSpec(tf.TensorShape(info.tensor_shape), tf.as_dtype(info.dtype)))
            for name, info in sorted(chosen.inputs.items())
        ]
        wanted = {name: chosen.outputs[name].name for name in self._outputs}
        given = {name: chosen.inputs[name].name for name, _ in self._inputs}

        def run(**feeds: Any) -> Any:
            return session.run(wanted, {given[name]: feeds[name] for name in given})

        def write() -> Any:
            import tf2onnx

            inputs, outputs = list(given.values()), list(wanted.values())
            with graph.as_default():
                frozen = _frozen(session, outputs)
            whole = _inlined(frozen, inputs, outputs)
            with tf.Graph().as_default():
                whole = tf2onnx.tf_loader.tf_optimize(inputs, outputs, whole)
            tf.compat.v1.reset_default_graph()
            made, _ = tf2onnx.convert._convert_common(
                whole, name="model", opset=_OPSET, input_names=inputs, output_names=outputs
            )
            return made, inputs, outputs

        self._call, self._write = run, write

    def _open_keras(self, path: Path) -> None:
        import keras
        import tensorflow as tf

        keras_files.check(path)
        try:
            model = keras.saving.load_model(path, compile=False, safe_mode=True)
        except Exception as error:
            raise Unable(
                f"does not load in Keras {keras.__version__} ({said(error)}): "
                "save it again with that version"
            ) from error
        self._kept = model
        self._inputs = [
            (tensor.name, tf.TensorSpec(tensor.shape, tensor.dtype, name=tensor.name))
            for tensor in model.inputs
        ]
        names = [tensor.name.split("/")[0] for tensor in model.outputs]
        unique = len(set(names)) == len(names) and not set(names) & {n for n, _ in self._inputs}
        self._outputs = names if unique else [f"output_{i}" for i in range(len(names))]
        outputs = self._outputs

        def call(**feeds: Any) -> dict[str, Any]:
            given = [feeds[name] for name, _ in self._inputs]
            made = model(given if len(given) > 1 else given[0], training=False)
            flat = tf.nest.flatten(made)
            return dict(zip(outputs, flat, strict=True))

        def write() -> Any:
            import tf2onnx

            specs = [
                tf.TensorSpec(s.shape, s.dtype, name=f"edgekit_in_{i}")
                for i, (_, s) in enumerate(self._inputs)
            ]

            def whole(*given: Any) -> Any:
                made = call(**dict(zip((n for n, _ in self._inputs), given, strict=True)))
                return [tf.identity(made[name]) for name in outputs]

            made, _ = tf2onnx.convert.from_function(
                tf.function(whole, input_signature=specs), input_signature=specs, opset=_OPSET
            )
            return made, [v.name for v in made.graph.input], [v.name for v in made.graph.output]

        self._call, self._write = call, write

    def export(self, out: str) -> Any:
        import onnx
        import tensorflow as tf
        import tf2onnx

        try:
            made, inputs, outputs = self._write()
        except Unable:
            raise
        except Exception as error:
            raise Unable(
                f"cannot be written as ONNX ({said(error)}): build it of operators that ONNX has, "
                "without variables that change, or save it in Keras's own format (.keras)"
            ) from error
        foreign = sorted(
            {
                f"{n.domain}.{n.op_type}"
                for n in made.graph.node
                if n.domain not in ("", "ai.onnx.ml")
            }
        )
        if foreign:
            raise Unable(
                f"uses {foreign[0]}, for which ONNX has no operator: build the model without it"
            )
        new = dict(zip(inputs, (name for name, _ in self._inputs), strict=True))
        new |= dict(zip(outputs, self._outputs, strict=True))
        _rename(made.graph, new)
        if {v.name for v in made.graph.output} != set(self._outputs):
            raise Unable("loses outputs as ONNX: give each a name and a use of its own")
        _name_axes(made.graph)
        onnx.save(made, out)
        return {"tensorflow": tf.__version__, "tf2onnx": tf2onnx.__version__}

    def run(self, feeds: str, out: str) -> Any:
        import numpy as np

        tensors = _read(feeds)
        given = {name: tensors[name].astype(s.dtype.as_numpy_dtype) for name, s in self._inputs}
        made = self._call(**given)
        _write(out, {name: np.asarray(made[name]) for name in self._outputs})
        return {}


def _frozen(session: Any, outputs: list[str]) -> Any:
    """The graph that leads to these outputs, with values in place of its variables."""
    import tensorflow as tf
    from tensorflow.python.framework import convert_to_constants

    names = [tensor.partition(":")[0] for tensor in outputs]
    used = tf.compat.v1.graph_util.extract_sub_graph(session.graph.as_graph_def(), names)
    try:
        return convert_to_constants.convert_variables_to_constants_from_session_graph(
            session, used, names
        )
    except tf.errors.FailedPreconditionError as error:
        raise Unable(
            "uses variables that its graph does not restore, as tf.saved_model.save leaves those "
            "of Keras 3: save it by model.export(), or as .keras"
        ) from error


def _inlined(frozen: Any, inputs: list[str], outputs: list[str]) -> Any:
    """With what functions do in place of their calls; loops stay, which tf2onnx knows."""
    import tensorflow as tf
    from tensorflow.python.framework import convert_to_constants

    wrapped = tf.compat.v1.wrap_function(lambda: tf.import_graph_def(frozen, name=""), [])
    ends = [[wrapped.graph.get_tensor_by_name(name) for name in names]
            for names in (inputs, outputs)]  # fmt: skip
    return convert_to_constants._run_inline_graph_optimization(
        wrapped.prune(*ends), lower_control_flow=False, aggressive_inlining=True
    )


def _rename(graph: Any, names: dict[str, str]) -> None:
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                _rename(inner, names)
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        value.name = names.get(value.name, value.name)


def _name_axes(graph: Any) -> None:
    """An open first axis is the batch everywhere; tf2onnx gives each a name of its own."""
    for value in (*graph.input, *graph.output):
        axes = value.type.tensor_type.shape.dim
        if axes and not axes[0].HasField("dim_value"):
            axes[0].dim_param = "batch"


def _read(path: str) -> dict[str, Any]:
    import numpy as np

    with np.load(path, allow_pickle=False) as archive:
        names = json.loads(archive["names"].tobytes())
        return {name: archive[f"t{index}"] for index, name in enumerate(names)}


def _write(path: str, tensors: dict[str, Any]) -> None:
    import numpy as np

    names = np.frombuffer(json.dumps(list(tensors)).encode(), np.uint8)
    with Path(path).open("wb") as stream:
        np.savez(stream, names=names, **{f"t{i}": a for i, a in enumerate(tensors.values())})


def serve() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    model: Model | None = None
    for line in sys.stdin:
        request = json.loads(line)
        work = request.pop("work")
        answer: dict[str, Any]
        try:
            if work == "open":
                model, result = Model(**request), {}
            else:
                result = getattr(model, {"export": "export", "run": "run"}[work])(**request)
            answer = {"result": result}
        except Unable as error:
            answer = {"refused": str(error)}
        except Exception as error:
            answer = {"raised": f"{type(error).__name__}: {said(error)}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    serve()
