"""Rewrite a float model so that fewer, larger operators compute the same.

An 8-bit product is so fast that what is left of a model's time is in float operators around it;
exporters spell those in pieces. Each rule here is exact up to the rounding of float32, knows no
model, and is proved again on samples by `normalization`, as every rewritten model is.
Invariant: inputs, outputs and their meaning stay; a rule looks at a graph through `Scope` and gives
what takes the place of one node, or nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from onnx import ModelProto, NodeProto, helper

from edgekit_converters import graph
from edgekit_converters.normalization.fusion.affine import affine
from edgekit_converters.normalization.fusion.branches import choices, decide
from edgekit_converters.normalization.fusion.constants import constants, lengths
from edgekit_converters.normalization.fusion.embedding import lookups, tables
from edgekit_converters.normalization.fusion.extremes import extremes
from edgekit_converters.normalization.fusion.gelu import gelu
from edgekit_converters.normalization.fusion.moves import copies, pairs, returns, targets
from edgekit_converters.normalization.fusion.names import distinguish
from edgekit_converters.normalization.fusion.normalizing import (
    LAYER_NORMALIZATION_OPSET,
    layer_normalization,
    softmax,
)
from edgekit_converters.normalization.fusion.scope import CONTRIB, Scope, subgraphs
from edgekit_converters.normalization.fusion.shapes import Shapes

__all__ = ["fuse"]

Rule = Callable[[Scope, NodeProto], "Sequence[NodeProto] | str | None"]
_ROUNDS: Final = 16
"""Shapes are inferred anew in each; a model that still changes then is right, too."""
_SAME_FROM: Final = 13
_CHANGED: Final = frozenset({"RoiAlign", "BatchNormalization"})
"""What means another thing between opset 13 and 17; the other changes only add."""

_RULES: Final[tuple[Rule, ...]] = (
    lengths,
    constants,
    choices,
    targets,
    copies,
    pairs,
    returns,
    affine,
    gelu,
    softmax,
    lookups,
    tables,
    extremes,
)
"""What folds comes before what matches: patterns are then free of clutter."""


def fuse(model: ModelProto, *, normalizations: bool = True) -> Counter[str]:
    """Rewrite `model` in place; how often each rule held.

    `normalizations`: layer normalizations, too. Where a model computes a variance as a difference
    of moments and they cancel, its own rounding is large, and a better one differs from it.
    """
    rules = (*_RULES, layer_normalization) if normalizations else _RULES
    settle = partial(_settle, rules)
    distinguish(model)
    given = _raise_opset(model) if normalizations else graph.opset(model)
    held = settle(model)
    if decided := decide(model, settle):
        held[decide.__name__] = decided
    if not held[layer_normalization.__name__]:
        _set_opset(model, given)
    if held:
        Shapes(model).write(model)
        graph.name_nodes(model)
    return held


def _raise_opset(model: ModelProto) -> int:
    """Take the opset to what LayerNormalization needs, where no node means another thing then; what
    it was."""
    opset = graph.opset(model)
    if _SAME_FROM <= opset < LAYER_NORMALIZATION_OPSET and not any(
        node.op_type in _CHANGED for current in graph.graphs(model.graph) for node in current.node
    ):
        _set_opset(model, LAYER_NORMALIZATION_OPSET)
    return opset


def _set_opset(model: ModelProto, version: int) -> None:
    for imported in model.opset_import:
        if imported.domain in graph.ONNX_DOMAINS:
            imported.version = version


def _settle(rules: Sequence[Rule], model: ModelProto) -> Counter[str]:
    """Apply the rules until none holds."""
    held: Counter[str] = Counter()
    for _ in range(_ROUNDS):
        scope = Scope(model.graph, Shapes(model), opset=graph.opset(model), around=None)
        found = _sweep(scope, rules)
        held += found
        _import_contrib(model)
        if not found:
            break
    return held


def _sweep(scope: Scope, rules: Sequence[Rule]) -> Counter[str]:
    """Each rule on each node once, from the last to the first: what ends later is larger."""
    held: Counter[str] = Counter()
    for node in reversed(list(scope.graph.node)):
        for rule in rules:
            if not node.output or scope.producers.get(node.output[0]) is not node:
                break  # it went with a larger one
            replacement = rule(scope, node)
            if replacement is not None:
                scope.replace(node, replacement)
                held[rule.__name__] += 1
    for node in scope.graph.node:
        for nested in subgraphs(node).values():
            held += _sweep(Scope(nested, scope.shapes, opset=scope.opset, around=scope), rules)
    return held


def _import_contrib(model: ModelProto) -> None:
    used = {node.domain for current in graph.graphs(model.graph) for node in current.node}
    if CONTRIB in used and CONTRIB not in {o.domain for o in model.opset_import}:
        model.opset_import.append(helper.make_opsetid(CONTRIB, 1))
