"""SavedModels less all that serving does not need, of operators that do no more than compute.

A graph is a program: what TensorFlow never sees, it does not run. Runs in the `tensorflow`
environment, and starts nothing of TensorFlow but to ask which operators it has.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from unable import Unable, said

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
_INIT, SERVING = "__saved_model_init_op", "serving_default"
_VARIABLES = frozenset({"VarHandleOp", "Variable", "VariableV2"})


def pruned(home: Path, out: Path) -> Path:
    """A copy of a SavedModel in the empty directory `out`, with nothing but what restoring its
    variables and serving needs: what TensorFlow never sees, it does not run. Its operators are all
    known to compute tensors alone.
    """
    from tensorflow.core.protobuf import saved_model_pb2

    try:
        saved = saved_model_pb2.SavedModel.FromString((home / "saved_model.pb").read_bytes())
    except Exception as error:
        raise Unable(f"does not load ({said(error)}): save the model again") from error
    meta = next((m for m in saved.meta_graphs if "serve" in m.meta_info_def.tags), None)
    if meta is None or SERVING not in meta.signature_def:
        raise Unable(
            "has no signature serving_default: save it with signatures={'serving_default': ...}, "
            "or by model.export()"
        )
    for name in meta.signature_def.keys() - {SERVING, _INIT}:
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
    from tensorflow.python.framework import op_def_registry

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
    # a function by the name of an operator would hide it
    return names, called, {op for op in operators if op not in functions or op_def_registry.get(op)}


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
