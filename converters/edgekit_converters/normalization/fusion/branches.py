"""If: branches that no input takes give way to the other.

An exporter writes `if x.shape[-1] == 1: x = squeeze(x)`, and from there on no rank is known: every
later test of a rank stays in the model. Often the model fails with the rank that one branch gives,
for every input: the runtime's own inference of types and shapes says so, of nodes that run whenever
the test does. Then there is no choice, and with the rank known the later tests fold.
Invariant: an input that the model took gives what it gave. One on which it failed may fail
otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from onnx import GraphProto, ModelProto, NodeProto, ValueInfoProto, helper

from edgekit_converters import graph
from edgekit_converters.normalization.fusion.evaluation import Verdict, verdict
from edgekit_converters.normalization.fusion.scope import Scope, is_op, subgraphs
from edgekit_converters.normalization.fusion.shapes import Shapes

__all__ = ["choices", "decide"]

_MOST: Final = 8
"""Tests to look into: each is an attempt to load the model twice."""
_LARGEST_BYTES: Final = 256 << 20
_MARK: Final = "decided"
"""Name of the graph in which a test was decided."""
_BRANCHES: Final = ("then_branch", "else_branch")


def choices(scope: Scope, node: NodeProto) -> list[NodeProto] | None:
    """An If whose condition is constant becomes the nodes of the branch that it takes."""
    if not is_op(node, "If"):
        return None
    condition = scope.array(node.input[0])
    if condition is None or condition.size != 1:
        return None
    branch = subgraphs(node)[_BRANCHES[0 if condition.ravel()[0] else 1]]
    scope.graph.initializer.extend(branch.initializer)
    return _opened(node, branch)


def _opened(node: NodeProto, branch: GraphProto) -> list[NodeProto]:
    """The nodes of a branch, giving what the If gives; names are distinct in the whole model."""
    copies = [
        helper.make_node("Identity", [value.name], [target], name=f"{node.name}/{target}")
        for value, target in zip(branch.output, node.output, strict=True)
        if target
    ]
    return [*branch.node, *copies]


def decide(model: ModelProto, fold: Callable[[ModelProto], object]) -> int:
    """Take the one branch with which what follows can run, where that decides a rank; how often.

    `fold` folds a model in place.
    """
    if model.ByteSize() > _LARGEST_BYTES:
        return 0
    made = 0
    for name in _undecided(model)[:_MOST]:
        for taken, other in (_BRANCHES, _BRANCHES[::-1]):
            failing = _with_branch(model, name, other, fold)
            if failing is None or verdict(_always_run(failing)) is not Verdict.IMPOSSIBLE:
                continue
            running = _with_branch(model, name, taken, fold)
            if running is not None and verdict(running) is Verdict.LOADS:
                model.CopyFrom(running)
                _marked(model).name = f"{name}/{taken}"
                made += 1
                break
    return made


def _undecided(model: ModelProto) -> list[str]:
    """Names of If nodes whose branches differ in rank."""
    graph.name_nodes(model)
    shapes = Shapes(model)
    return [
        node.name
        for current in graph.graphs(model.graph)
        for node in current.node
        if is_op(node, "If") and any(shapes.dims(n) is None for n in node.output if n)
    ]


def _with_branch(
    model: ModelProto, name: str, branch: str, fold: Callable[[ModelProto], object]
) -> ModelProto | None:
    """A folded copy of the model in which the If called `name` always takes `branch`."""
    trial = ModelProto()
    trial.CopyFrom(model)
    for current in graph.graphs(trial.graph):
        for at, node in enumerate(current.node):
            if node.name == name:
                taken = subgraphs(node)[branch]
                current.initializer.extend(taken.initializer)
                nodes = [*current.node[:at], *_opened(node, taken), *current.node[at + 1 :]]
                copies = [NodeProto.FromString(n.SerializeToString()) for n in nodes]
                del current.node[:]
                current.node.extend(copies)
                current.name = _MARK
                fold(trial)
                return trial
    return None


def _marked(model: ModelProto) -> GraphProto:
    return next(g for g in graph.graphs(model.graph) if g.name == _MARK)


def _always_run(trial: ModelProto) -> ModelProto:
    """Alone, those nodes of the marked graph that run whenever the graph does: what other branches
    and loops give it, and what it takes from around, comes in from outside."""
    shapes = Shapes(trial)
    marked = _marked(trial)
    nodes = [node for node in marked.node if not subgraphs(node)]
    made = {name for node in nodes for name in node.output if name}
    read = {name for node in nodes for name in node.input if name}
    around = {t.name: t for g in graph.graphs(trial.graph) for t in g.initializer}
    choices_made = {name for node in marked.node if subgraphs(node) for name in node.output}
    inputs = [
        helper.make_tensor_value_info(
            name, shapes.type(name), None if name in choices_made else shapes.dims(name)
        )
        for name in sorted(read - made - around.keys())
    ]
    alone = helper.make_graph(
        nodes,
        _MARK,
        inputs,
        [ValueInfoProto(name=name) for name in sorted(made - read)],
        [around[name] for name in sorted(read & around.keys())],
    )
    return helper.make_model(alone, opset_imports=trial.opset_import, ir_version=trial.ir_version)
