"""A model being rewritten: new nodes and constants under names that nothing else has.

Invariant: a node is replaced where it stands; what only depends on constants is computed by nodes
at the front of the graph that holds them, which runtimes fold while they load. Constants that no
node reads any longer are dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from edgekit_converters import graph

__all__ = ["CONTRIB", "Draft", "Place", "attributes", "gemm_bias"]

CONTRIB: Final = "com.microsoft"
"""onnxruntime's own operators."""
_SHARED_ELEMENTS: Final = 16
"""Constants of up to so many elements are kept once for all that need them."""


def attributes(node: NodeProto) -> dict[str, Any]:
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


class Draft:
    """One rewriting of `model`, which is changed in place."""

    def __init__(self, model: ModelProto) -> None:
        self._model = model
        self._taken: set[str] = set()
        self._counts: dict[str, int] = {}
        for current in graph.graphs(model.graph):
            self._taken.update(tensor.name for tensor in current.initializer)
            self._taken.update(value.name for value in (*current.input, *current.output))
            for node in current.node:
                self._taken.update((node.name, *node.input, *node.output))
        self._outermost = Place(self, model.graph, None)

    def replace(self, change: Callable[[Place, NodeProto], bool]) -> int:
        """Ask `change` about every node, subgraphs included, those of the outermost graph first.

        It says whether it added what stands for the node, to the place that it is given. Returns
        how many were replaced.
        """
        replaced = 0
        for current in graph.graphs(self._model.graph):
            outermost = current is self._model.graph
            place = self._outermost if outermost else Place(self, current, self._outermost)
            for node in list(current.node):
                if change(place, node):
                    replaced += 1
                else:
                    place.nodes.append(node)
            _write(current, place.nodes)
            if not outermost:
                _write(current, [*place.front, *current.node])
        _write(self._model.graph, [*self._outermost.front, *self._model.graph.node])
        return replaced

    def save(self, out: Path) -> None:
        """Write the model, with the operator sets that it needs and without constants unread."""
        used = {name for g in graph.graphs(self._model.graph) for n in g.node for name in n.input}
        for current in graph.graphs(self._model.graph):
            read = used | {value.name for value in current.output}
            kept = [t for t in current.initializer if t.name in read]
            del current.initializer[:]
            current.initializer.extend(kept)
            del current.value_info[:]
        if all(o.domain != CONTRIB for o in self._model.opset_import):
            self._model.opset_import.append(helper.make_opsetid(CONTRIB, 1))
        graph.strip_remarks(self._model)
        self._model.producer_name = self._model.producer_version = ""
        graph.prune_opsets(self._model)
        graph.clamp_ir(self._model)
        onnx.save_model(self._model, out)

    def fresh(self, hint: str) -> str:
        """A name that nothing else has, which begins with `hint`."""
        name = hint
        while name in self._taken:
            self._counts[hint] = self._counts.get(hint, 1) + 1
            name = f"{hint}_{self._counts[hint]}"
        self._taken.add(name)
        return name


class Place:
    """One graph of a draft."""

    def __init__(self, draft: Draft, current: GraphProto, outer: Place | None) -> None:
        self._draft, self._graph, self._outer = draft, current, outer
        self._constants = graph.initializers(current)
        self._small: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self.nodes: list[NodeProto] = []
        """The graph's nodes so far."""
        self.front: list[NodeProto] = []
        """What goes before them: nodes that depend on constants only."""
        self.memory: dict[object, Any] = {}
        """What a rewriting has made here, for other nodes to share."""

    def holder(self, name: str) -> Place | None:
        """Where the constant `name` is: here, or in the outermost graph."""
        if name in self._constants:
            return self
        return None if self._outer is None else self._outer.holder(name)

    def floats(self, name: str) -> np.ndarray | None:
        """The float32 constant of this name that nodes here see, if there is one."""
        holder = self.holder(name)
        if holder is None:
            return None
        tensor = holder._constants[name]
        return numpy_helper.to_array(tensor) if tensor.data_type == TensorProto.FLOAT else None

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Of the constant of this name that nodes here see, if there is one."""
        holder = self.holder(name)
        return None if holder is None else tuple(holder._constants[name].dims)

    def constant(self, values: np.ndarray, hint: str) -> str:
        """Name of a new constant; of an old one where it is small and there already."""
        key = (values.dtype.str, values.shape, values.tobytes())
        is_shared = values.size <= _SHARED_ELEMENTS
        if is_shared and key in self._small:
            return self._small[key]
        name = self._draft.fresh(hint)
        # not ascontiguousarray, which makes a scalar a row
        tensor = numpy_helper.from_array(np.asarray(values, order="C"), name)
        self._graph.initializer.append(tensor)
        if is_shared:
            self._small[key] = name
        return name

    def add(
        self,
        operator: str,
        inputs: Sequence[str],
        hint: str,
        *,
        outputs: Sequence[str] = (),
        domain: str = "",
        front: bool = False,
        **values: Any,
    ) -> str:
        """Append a node; the name of its first output, a new one unless `outputs` are given."""
        outputs = outputs or (self._draft.fresh(hint),)
        node = helper.make_node(
            operator,
            inputs,
            outputs,
            name=self._draft.fresh(f"{hint}_{operator}"),
            domain=domain,
            **values,
        )
        (self.front if front else self.nodes).append(node)
        return outputs[0]

    def again(
        self, node: NodeProto, inputs: Mapping[str, str], *, outputs: Sequence[str] = ()
    ) -> None:
        """Append `node` with some inputs, and maybe all outputs, renamed."""
        copy = NodeProto()
        copy.CopyFrom(node)
        copy.input[:] = [inputs.get(name, name) for name in node.input]
        if outputs:
            copy.output[:] = outputs
        self.nodes.append(copy)

    def fresh(self, hint: str) -> str:
        return self._draft.fresh(hint)


def gemm_bias(place: Place, node: NodeProto) -> str | None:
    """Name of what a Gemm adds to its product, if anything; a MatMul adds nothing."""
    if node.op_type != "Gemm" or len(node.input) < 3 or not node.input[2]:
        return None
    beta = attributes(node).get("beta", 1.0)
    if beta == 1:
        return node.input[2]
    factor = place.constant(np.array(beta, np.float32), "beta")
    return place.add("Mul", [node.input[2], factor], "bias")


def _write(current: GraphProto, nodes: Sequence[NodeProto]) -> None:
    copies = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del current.node[:]
    current.node.extend(copies)
