"""A SavedModel or Keras model in TensorFlow: writes it as ONNX, runs it.

Runs in the `tensorflow` environment.

Reads a JSON request per line on stdin and answers with one per line; what libraries print goes to
stderr. The first request opens the model. A graph is a program: TensorFlow gets a copy with nothing
but what serving needs, and only if that has no operators but those known to compute tensors. A file
of Keras's is refused before Keras reads it if a layer of it is code or not Keras's own, or if it
takes anything from another file.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

_OPSET = 17
_HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"

_KEEPING = frozenset(
    """
    VarHandleOp VarIsInitializedOp VariableShape ReadVariableOp AssignVariableOp AssignAddVariableOp
    AssignSubVariableOp Variable VariableV2 Assign ResourceGather ResourceGatherNd DisableCopyOnRead
    HashTable HashTableV2 MutableHashTable MutableHashTableV2 InitializeTableV2 LookupTableFindV2
    LookupTableImportV2 LookupTableSizeV2
    TensorArrayV3 TensorArrayGatherV3 TensorArrayReadV3 TensorArrayScatterV3 TensorArraySizeV3
    TensorArrayWriteV3 Multinomial RandomShuffle RandomStandardNormal RandomUniform RandomUniformInt
    TruncatedNormal
    """.split()
)
"""Operators that keep a state, of tensors alone."""
_PLUMBING = frozenset(
    """
    Assert BroadcastArgs Case CheckNumerics ConcatOffset EmptyTensorList Enter Exit If LinSpace
    LoopCond Merge NextIteration PartitionedCall PreventGradient Rank ShapeN Snapshot
    StatefulPartitionedCall Switch TensorListConcatV2 TensorListElementShape TensorListPushBack
    While
    Angle Bitcast Complex Conj Digamma Erfc Erfinv Expm1 IFFT IRFFT Imag Lgamma Log1p LogicalXor
    MulNoNan Real Xdivy Xlogy
    RngReadAndSkip StatelessRandomGetAlg StatelessRandomGetKeyCounter StatelessRandomNormalV2
    StatelessRandomUniformIntV2 StatelessRandomUniformV2 StatelessTruncatedNormalV2
    """.split()
)
"""What calls, loops, folds away, or is written as several operators."""
_RESTORING = frozenset("Restore RestoreSlice RestoreV2 ShardedFilename StringJoin".split())
_STARTING = ("saved_model_main_op", "legacy_init_op")
"""Collections whose nodes the loader runs (tensorflow/python/saved_model/loader_impl.py)."""
_INIT, _SERVING = "__saved_model_init_op", "serving_default"
_VARIABLES = frozenset({"VarHandleOp", "Variable", "VariableV2"})

_NAMESPACES = (
    "layers", "models", "initializers", "regularizers", "constraints", "losses", "metrics",
    "optimizers", "optimizers.schedules", "dtype_policies", "quantizers", "random",
)  # fmt: skip
_NOT_LAYERS = frozenset({"TensorShape", "__tuple__", "__tensor__", "__numpy__", "__slice__",
                         "__ellipsis__", "__keras_tensor__", "__typespec__"})  # fmt: skip
"""What else has a `class_name` in a Keras file (keras/src/saving/serialization_lib.py)."""
_OPENING = frozenset({"TFSMLayer", "TorchModuleWrapper", "JaxLayer", "FlaxLayer"})


class Unable(Exception):
    """A sentence for the user, without its subject."""


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

        home = _pruned(home, Path(tempfile.mkdtemp()))
        graph = tf.Graph()
        with graph.as_default():
            session = tf.compat.v1.Session(graph=graph)
            try:
                loaded = tf.compat.v1.saved_model.loader.load(session, ["serve"], str(home))
            except Exception as error:
                raise Unable(f"does not load ({_said(error)}): save the model again") from error
        chosen = loaded.signature_def[_SERVING]
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

        _check_layers(_configuration(path), _own_classes(keras))
        try:
            model = keras.saving.load_model(path, compile=False, safe_mode=True)
        except Exception as error:
            raise Unable(
                f"does not load in Keras {keras.__version__} ({_said(error)}): "
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
                f"cannot be written as ONNX ({_said(error)}): build it of operators that ONNX has, "
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


def _said(error: BaseException) -> str:
    return " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__


def _pruned(home: Path, out: Path) -> Path:
    """A copy of a SavedModel in the empty directory `out`, with nothing but what restoring its
    variables and serving needs: what TensorFlow never sees, it does not run. Its operators are all
    known to compute tensors alone.
    """
    from tensorflow.core.protobuf import saved_model_pb2

    try:
        saved = saved_model_pb2.SavedModel.FromString((home / "saved_model.pb").read_bytes())
    except Exception as error:
        raise Unable(f"does not load ({_said(error)}): save the model again") from error
    meta = next((m for m in saved.meta_graphs if "serve" in m.meta_info_def.tags), None)
    if meta is None or _SERVING not in meta.signature_def:
        raise Unable(
            "has no signature serving_default: save it with signatures={'serving_default': ...}, "
            "or by model.export()"
        )
    for name in meta.signature_def.keys() - {_SERVING, _INIT}:
        del meta.signature_def[name]
    for name in meta.collection_def.keys() - set(_STARTING):
        del meta.collection_def[name]
    signatures = meta.signature_def.values()
    served = [t.name for s in signatures for t in (*s.inputs.values(), *s.outputs.values())]
    served += [name for c in meta.collection_def.values() for name in c.node_list.value]
    restored = [meta.saver_def.restore_op_name, meta.saver_def.filename_tensor_name]
    graph = meta.graph_def
    variables = [node.name for node in graph.node if node.op == "VarHandleOp"]
    served += [f"{name}/Read/ReadVariableOp" for name in variables]  # where freezing reads them
    computing = _computing()
    needed: tuple[set[str], set[str]] = (set(), set())
    for roots, allowed in ((served, computing), (restored, computing | _RESTORING)):
        names, functions, operators = _reached(roots, graph)
        for operator in sorted(operators - allowed):
            raise Unable(
                f"runs the operator {operator}, which is none of those that ONNX has and that are "
                "known to compute tensors alone: export the model without it"
            )
        needed[0].update(names)
        needed[1].update(functions)
    index = home / "variables" / "variables.index"
    has_variables = any(n.op in _VARIABLES for n in graph.node if n.name in needed[0])
    if has_variables and not (index.is_file() and list(index.parent.glob("variables.data-*"))):
        raise Unable(
            "has no variables (variables/variables.index and its data): copy the whole directory, "
            "or save the model again"
        )
    _keep(graph, *needed)
    meta.ClearField("object_graph_def")
    del saved.meta_graphs[:]
    saved.meta_graphs.append(meta)
    (out / "saved_model.pb").write_bytes(saved.SerializeToString())
    if has_variables:
        (out / "variables").symlink_to(index.parent.resolve())
    return out


def _computing() -> frozenset[str]:
    """Operators that TensorFlow computes, tf2onnx writes, and nothing but tensors feel."""
    import tf2onnx.onnx_opset  # which registers them
    from tensorflow.core.framework import op_def_pb2
    from tensorflow.python.client import pywrap_tf_session

    listed = op_def_pb2.OpList.FromString(
        pywrap_tf_session.TF_GetBuffer(pywrap_tf_session.TF_GetAllOpList())
    )
    stateless = {op.name for op in listed.op if not op.is_stateful}
    versions = tf2onnx.handler.tf_op.get_opsets().values()
    written = {name for opsets in versions for handlers in opsets for name in handlers}
    return _KEEPING | _PLUMBING | (written & stateless)


def _reached(roots: Iterable[str], graph: Any) -> tuple[set[str], set[str], set[str]]:
    """What `roots` of a graph need: nodes of it, functions that these call, operators of both."""
    nodes = {node.name: node for node in graph.node}
    functions = {f.signature.name: f.node_def for f in graph.library.function}
    waiting = list(roots)
    names: set[str] = set()
    called: set[str] = set()
    operators: set[str] = set()
    while waiting:
        name = waiting.pop().removeprefix("^").partition(":")[0]
        if name in nodes and name not in names:
            names.add(name)
            waiting.extend(nodes[name].input)
            bodies = [[nodes[name]]]
            while bodies:
                for inner in bodies.pop():
                    operators.add(inner.op)
                    values = inner.attr.values()
                    calls = {inner.op, *(v.func.name for v in values)}
                    calls.update(f.name for v in values for f in v.list.func)
                    fresh = (calls & functions.keys()) - called
                    called |= fresh
                    bodies.extend(functions[one] for one in fresh)
    return names, called, operators - functions.keys()


def _keep(graph: Any, names: set[str], functions: set[str]) -> None:
    """These nodes and functions; no gradients, and none that may stand for another (`api_*`)."""
    nodes = [node for node in graph.node if node.name in names]
    kept = [f for f in graph.library.function if f.signature.name in functions]
    for node in nodes:
        node.attr.pop("_class", None)  # beside which node, which may be gone
    for function in kept:
        for name in [name for name in function.attr if name.startswith("api_")]:
            del function.attr[name]
    graph.ClearField("node")
    graph.node.extend(nodes)
    graph.ClearField("library")
    graph.library.function.extend(kept)


def _configuration(path: Path) -> Any:
    """What a Keras file says of its layers; nothing of it is run.

    Keras goes by the name of a file, so name and content have to say the same.
    """
    with path.open("rb") as stream:
        is_hdf5 = stream.read(len(_HDF5_MAGIC)) == _HDF5_MAGIC
    if is_hdf5 != (path.suffix in (".h5", ".hdf5")):
        kind, suffix = ("HDF5", ".h5") if is_hdf5 else ("Keras's own format", ".keras")
        raise Unable(f"is a file of {kind} by another name: rename it to end with {suffix}")
    import h5py

    try:
        if not is_hdf5:
            with zipfile.ZipFile(path) as archive:
                for name in archive.namelist():
                    if name.endswith(".h5"):
                        with archive.open(name) as member, h5py.File(member, "r") as file:
                            _check_inside(file)
                return json.loads(archive.read("config.json"))
        with h5py.File(path, "r") as file:
            _check_inside(file)
            text = file.attrs.get("model_config")
            if text is None:
                raise Unable("holds weights and no model: save the whole model (model.save)")
            return json.loads(text)
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise Unable(
            f"is no Keras model that can be read ({_said(error)}): save it again"
        ) from error


def _check_inside(file: Any) -> None:
    """Refuse HDF5 that takes its numbers from other files."""
    import h5py

    waiting, seen = [file], set()
    while waiting:
        group = waiting.pop()
        address = h5py.h5o.get_info(group.id).addr
        if address in seen:
            continue
        seen.add(address)
        for name in group:
            if isinstance(group.get(name, getlink=True), h5py.SoftLink | h5py.ExternalLink):
                raise Unable("holds weights that are links to others: save the model again")
            item = group[name]
            if isinstance(item, h5py.Group):
                waiting.append(item)
            elif isinstance(item, h5py.Dataset) and (item.external or item.is_virtual):
                raise Unable("takes weights from other files: save the model again")


def _own_classes(keras: Any) -> frozenset[str]:
    """Names of Keras's classes that a model may be made of."""
    found = set(_NOT_LAYERS)
    for namespace in _NAMESPACES:
        room = keras
        for part in namespace.split("."):
            room = getattr(room, part)
        found |= {name for name, value in vars(room).items() if isinstance(value, type)}
    waiting = [keras.Operation]  # x + y of two layers is one, too
    while waiting:
        kind = waiting.pop()
        waiting.extend(kind.__subclasses__())
        if kind.__module__.startswith("keras.src."):
            found.add(kind.__name__)
    return frozenset(found - _OPENING)


def _check_layers(configuration: Any, own: frozenset[str]) -> None:
    for entry in _entries(configuration):
        name, module = str(entry.get("class_name")), str(entry.get("module") or "keras")
        if name in ("Lambda", "function", "__lambda__"):
            raise Unable(
                "has a Lambda layer, which is code, and code of a file is not run: "
                "write that layer as a class of keras.layers, or export() the model "
                "as a SavedModel"
            )
        if name in _OPENING:
            raise Unable(
                f"has a {name}, which opens a model outside the file: give that model to "
                "edgekit, or build this one without it"
            )
        root = module.split(".", maxsplit=1)[0]
        if root not in ("keras", "builtins", "tensorflow", "tf_keras") or name not in own:
            raise Unable(
                f"has a layer of its own ({name}), whose code is not in the file: "
                "export() the model as a SavedModel"
            )


def _entries(value: Any) -> Iterator[dict[str, Any]]:
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            if "class_name" in item:
                yield item
            waiting.extend(item.values())
        elif isinstance(item, list):
            waiting.extend(item)


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
            answer = {"raised": f"{type(error).__name__}: {_said(error)}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    serve()
