"""ONNX graphs as values: look into them, and rewrite them without changing what they compute.

Invariant: every rewrite keeps inputs, outputs and meaning; the numeric check proves it afterwards.
Functions here change the proto that they are given and do no I/O.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from typing import Final

import numpy as np
import onnx
from onnx import (
    AttributeProto,
    GraphProto,
    ModelProto,
    NodeProto,
    SparseTensorProto,
    TensorProto,
    ValueInfoProto,
    helper,
    numpy_helper,
)

__all__ = [
    "ONNX_DOMAINS",
    "Names",
    "bake_constants",
    "clamp_ir",
    "close_inputs",
    "copied",
    "densify",
    "graphs",
    "initializers",
    "inputs_for_missing",
    "name_nodes",
    "nested",
    "operators",
    "opset",
    "prune_opsets",
    "random_operators",
    "read_names",
    "strip_remarks",
]

ONNX_DOMAINS: Final = frozenset({"", "ai.onnx"})
_RANDOM: Final = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial",
     "Bernoulli", "Dropout"}
)  # fmt: skip
_FOR_MISSING: Final = frozenset(
    {"Imputer", "IsNaN", "TreeEnsemble", "TreeEnsembleClassifier", "TreeEnsembleRegressor"}
)
_CARRYING: Final = frozenset(
    """
    ArrayFeatureExtractor Cast Concat FeatureVectorizer Flatten Gather Identity Reshape Scaler Slice
    Split Squeeze Transpose Unsqueeze
    """.split()
)
"""Operators that leave a NaN what it is, where it was."""
_MIN_IR: Final = 4
"""From IR 4 on, initializers need not be graph inputs, and so are constants."""


_SCALARS: Final = {
    "value_float": TensorProto.FLOAT,
    "value_floats": TensorProto.FLOAT,
    "value_int": TensorProto.INT64,
    "value_ints": TensorProto.INT64,
    "value_string": TensorProto.STRING,
    "value_strings": TensorProto.STRING,
}


def graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """`graph` and all graphs nested in it, outermost first."""
    pending = [graph]
    while pending:
        current = pending.pop()
        yield current
        for node in current.node:
            pending.extend(nested(node))


def nested(node: NodeProto) -> Iterator[GraphProto]:
    """The graphs right inside a node: branches of an If, the body of a Loop or Scan."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        elif attribute.type == AttributeProto.GRAPHS:
            yield from attribute.graphs


def copied(node: NodeProto) -> NodeProto:
    """A node that may outlive the graph that it is of."""
    copy = NodeProto()
    copy.CopyFrom(node)
    return copy


def operators(model: ModelProto) -> Counter[str]:
    """How often each operator occurs, subgraphs included; ones outside ONNX as `domain:Name`."""
    return Counter(
        node.op_type if node.domain in ONNX_DOMAINS else f"{node.domain}:{node.op_type}"
        for graph in graphs(model.graph)
        for node in graph.node
    )


def inputs_for_missing(model: ModelProto) -> frozenset[str]:
    """Inputs whose NaN are missing values to the model: they reach, as they are, a tree, an imputer
    or a test for NaN."""
    found = set()
    for value in model.graph.input:
        reached = {value.name}
        for node in model.graph.node:  # in their order, which is that of use
            if reached.isdisjoint(node.input):
                continue
            if node.op_type in _FOR_MISSING:
                found.add(value.name)
                break
            if node.op_type in _CARRYING:
                reached.update(node.output)
    return frozenset(found)


def random_operators(model: ModelProto) -> tuple[str, ...]:
    """Names of the operators that may draw other numbers in each run: they have no seed."""
    return tuple(
        dict.fromkeys(
            node.op_type
            for within in graphs(model.graph)
            for node in within.node
            if node.op_type in _RANDOM and not any(a.name == "seed" for a in node.attribute)
        )
    )


def opset(model: ModelProto) -> int:
    """Version of the ONNX operator set that the model imports; 0 where it imports none."""
    return max((o.version for o in model.opset_import if o.domain in ONNX_DOMAINS), default=0)


def initializers(graph: GraphProto) -> dict[str, TensorProto]:
    return {tensor.name: tensor for tensor in graph.initializer}


def read_names(model: ModelProto) -> set[str]:
    """Names of all values that a node reads or a graph returns."""
    names: set[str] = set()
    for graph in graphs(model.graph):
        names |= {name for node in graph.node for name in node.input}
        names |= {value.name for value in graph.output}
    return names


def close_inputs(model: ModelProto) -> None:
    """Initializers listed as inputs (IR 3) become constants: a bundle's inputs are its data."""
    constant = set(initializers(model.graph))
    kept = [value for value in model.graph.input if value.name not in constant]
    del model.graph.input[:]
    model.graph.input.extend(kept)


def clamp_ir(model: ModelProto) -> None:
    """The lowest IR version that the model's opsets allow: old runtimes refuse newer ones."""
    if opset(model) > onnx.defs.onnx_opset_version():
        return  # newer than we know; the plan refuses it where the runtime is older
    known = [o for o in model.opset_import if o.domain in (*ONNX_DOMAINS, "ai.onnx.ml")]
    model.ir_version = max(_MIN_IR, helper.find_min_ir_version_for(known, ignore_unknown=True))


def strip_remarks(model: ModelProto) -> None:
    """Drop documentation and exporter's metadata: they hold paths of the machine that exported."""
    model.doc_string = ""
    del model.metadata_props[:]
    for graph in graphs(model.graph):
        graph.doc_string = ""
        del graph.metadata_props[:]
        values = (*graph.input, *graph.output, *graph.value_info)
        items: tuple[NodeProto | TensorProto | ValueInfoProto, ...] = (
            *graph.node,
            *graph.initializer,
            *values,
        )
        for item in items:
            item.doc_string = ""
            del item.metadata_props[:]


class Names:
    """Names for new values: none that the model has in any of its graphs."""

    def __init__(self, model: ModelProto) -> None:
        self._taken: set[str] = set()
        for graph in graphs(model.graph):
            self._taken |= {tensor.name for tensor in graph.initializer}
            self._taken |= {value.name for value in graph.input}
            self._taken |= {name for node in graph.node for name in node.output}

    def new(self, hint: str) -> str:
        """`hint`, or with a number after it."""
        name, suffix = hint, 1
        while name in self._taken:
            suffix += 1
            name = f"{hint}_{suffix}"
        self._taken.add(name)
        return name


def name_nodes(model: ModelProto) -> None:
    """Give every node a name that no other node of the model has: recipes choose nodes by name."""
    taken: set[str] = set()
    for graph in graphs(model.graph):
        for node in graph.node:
            name = base = node.name or f"{node.op_type}_{next(iter(node.output), '')}"
            suffix = 1
            while name in taken:
                suffix += 1
                name = f"{base}_{suffix}"
            node.name = name
            taken.add(name)


def bake_constants(model: ModelProto) -> int:
    """Turn tensors held in `Constant` nodes into initializers of their graph; how many."""
    baked = 0
    for graph in graphs(model.graph):
        returned = {value.name for value in graph.output}
        kept = []
        for node in graph.node:
            tensor = _constant(node)
            # a graph's output must be made by a node
            if tensor is None or node.output[0] in returned:
                kept.append(node)
                continue
            tensor.name = node.output[0]
            graph.initializer.append(tensor)
            baked += 1
        del graph.node[:]
        graph.node.extend(kept)
    return baked


def densify(model: ModelProto) -> None:
    """Write sparse constants out where that takes no more room: the runtime does so anyway."""
    for graph in graphs(model.graph):
        sparse = [s for s in graph.sparse_initializer if not _is_worth_it(s)]
        graph.initializer.extend(_dense(s, s.values.name) for s in sparse)
        kept = [s for s in graph.sparse_initializer if _is_worth_it(s)]
        del graph.sparse_initializer[:]
        graph.sparse_initializer.extend(kept)


def _is_worth_it(sparse: SparseTensorProto) -> bool:
    element = helper.tensor_dtype_to_np_dtype(sparse.values.data_type).itemsize
    entries = math.prod(sparse.values.dims)
    per_entry = element + 8 * (math.prod(sparse.indices.dims) // max(1, entries))
    return math.prod(sparse.dims) * element > entries * per_entry


def _dense(sparse: SparseTensorProto, name: str) -> TensorProto:
    values = numpy_helper.to_array(sparse.values)
    indices = numpy_helper.to_array(sparse.indices)
    array = np.zeros(tuple(sparse.dims), values.dtype)
    if indices.ndim == 1:
        array.reshape(-1)[indices] = values
    else:
        array[tuple(indices.T)] = values
    return numpy_helper.from_array(array, name)


def _constant(node: NodeProto) -> TensorProto | None:
    if node.op_type != "Constant" or node.domain not in ONNX_DOMAINS:
        return None
    for attribute in node.attribute:
        if attribute.name == "value":
            tensor = TensorProto()
            tensor.CopyFrom(attribute.t)
            return tensor
        if attribute.name == "sparse_value" and not _is_worth_it(attribute.sparse_tensor):
            return _dense(attribute.sparse_tensor, node.output[0])
        if attribute.name in _SCALARS:
            value = helper.get_attribute_value(attribute)
            listed = attribute.name.endswith("s")
            shape = [len(value)] if listed else []
            values = value if listed else [value]
            return helper.make_tensor(node.output[0], _SCALARS[attribute.name], shape, values)
    return None


def prune_opsets(model: ModelProto) -> None:
    """Forget operator sets that no node uses: a runtime may refuse one that it does not know."""
    used = {node.domain for graph in graphs(model.graph) for node in graph.node}
    used |= {f.domain for f in model.functions}
    kept = [o for o in model.opset_import if o.domain in ONNX_DOMAINS or o.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(kept)


def typed_values(model: ModelProto) -> set[str]:
    """Names of the values of the outermost graph whose element type is known."""
    return {
        value.name
        for value in (*model.graph.input, *model.graph.output, *model.graph.value_info)
        if value.type.HasField("tensor_type") and value.type.tensor_type.elem_type
    }


def infer_shapes(model: ModelProto) -> ModelProto:
    """The model with the shapes that ONNX can infer; unknown ones stay unknown."""
    return onnx.shape_inference.infer_shapes(model, data_prop=True)
