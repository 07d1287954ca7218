"""Regions that compute one value from one other, and recognizing what they compute by trying.

Exporters spell an activation or a normalization in dozens of ways; what they compute is the same.
So a region is not compared with spellings: it is run on probes, by the runtime, and what comes out
is compared with the definition.
Invariant: a region has one source, its other inputs are constants, and no other node sees inside.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from onnx import NodeProto

from edgekit_converters import graph
from edgekit_converters.normalization.fusion.evaluation import evaluate
from edgekit_converters.normalization.fusion.scope import Scope

__all__ = ["Region", "regions"]

_LARGEST: Final = 32
"""Nodes in a region."""


@dataclass(frozen=True, kw_only=True)
class Region:
    source: str
    output: str
    nodes: tuple[NodeProto, ...]
    """In topological order; the last makes `output`."""

    def count(self, *ops: str) -> int:
        return sum(node.op_type in ops for node in self.nodes)

    def constants(self, scope: Scope) -> dict[str, np.ndarray]:
        """All constants that the region's nodes read."""
        names = {name for node in self.nodes for name in node.input if name}
        return {n: array for n in sorted(names) if (array := scope.array(n)) is not None}

    def run(self, scope: Scope, probe: np.ndarray) -> np.ndarray | None:
        """What comes out where `probe` goes in, or None where it does not run."""
        values = {**self.constants(scope), self.source: probe}
        found = evaluate(self.nodes, values, [self.output], opset=scope.opset)
        return None if found is None else found[0]


def regions(scope: Scope, root: NodeProto, ops: frozenset[str]) -> Iterator[Region]:
    """Regions of `ops` that end in `root`, from the smallest to the largest."""
    if not _belongs(root, ops):
        return
    frontier = _open(scope, root)
    nodes = [root]
    while frontier and len(nodes) <= _LARGEST:
        if len(frontier) == 1 and _is_private(scope, nodes, root):
            inside = sorted(nodes, key=lambda n: scope.position[n.output[0]])
            yield Region(source=min(frontier), output=root.output[0], nodes=tuple(inside))
        last = max(frontier, key=lambda name: scope.position.get(name, -1))
        node = scope.producer(last)
        if node is None or not _belongs(node, ops):
            return
        nodes.append(node)
        frontier = (frontier - {last}) | _open(scope, node)


def _belongs(node: NodeProto, ops: frozenset[str]) -> bool:
    return node.domain in graph.ONNX_DOMAINS and node.op_type in ops and len(node.output) == 1


def _open(scope: Scope, node: NodeProto) -> set[str]:
    return {name for name in node.input if name and not scope.is_constant(name)}


def _is_private(scope: Scope, nodes: list[NodeProto], root: NodeProto) -> bool:
    inside = {id(node) for node in nodes}
    return all(
        node is root
        or (
            node.output[0] not in scope.returned
            and all(id(user) in inside for user in scope.users.get(node.output[0], ()))
        )
        for node in nodes
    )
