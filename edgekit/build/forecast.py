"""What is known of a variant's latency on a profile's device: an estimate, or a device's figure.

Invariant: an estimate is of the operators that the device will run; where this machine runs others
in their place, and where nothing is known of the core or the runtime, there is none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from edgekit.build.estimates import core_of, estimate
from edgekit.build.estimates.litert import works_of
from edgekit.build.estimates.operators import Executed, Work, work_of
from edgekit.build.estimates.roofline import LITERT, LITERT_IN_PIECES, ONNXRUNTIME, Kernels
from edgekit.build.host import Host
from edgekit.build.kitchen import Variant
from edgekit.build.model_file import ModelFile
from edgekit.build.notebook import Key, key_of
from edgekit.build.plan import ProfilePlan
from edgekit.build.report import Estimate, Figure
from edgekit_contract.errors import Refused
from edgekit_contract.profile import Cpu, Profile, RuntimeKind
from edgekit_converters import external, isolation
from edgekit_converters.litert.operations import Listed
from edgekit_converters.structure import structure_digest

__all__ = ["Forecast", "Tracer", "estimate_of"]

_ESTIMATED: Final = frozenset({RuntimeKind.ONNXRUNTIME, RuntimeKind.LITERT})
"""Runtimes that there are estimates of."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Of a processor, by a model."""

    works: tuple[Work, ...]
    kernels: Kernels
    """That do it."""


class Tracer:
    """What models ask of a processor, kept: profiles share it."""

    def __init__(self, feeds: Path, *, run: isolation.Run) -> None:
        """`feeds` is the file of the tensors to run on; `run` runs models in children."""
        self._feeds, self._run = feeds, run
        self._asked: dict[Path, Asked | None] = {}

    def asked(self, model: ModelFile) -> Asked | None:
        """None where it does not run, or nothing is known of what it does."""
        if model.path not in self._asked:
            try:
                self._asked[model.path] = self._traced(model)
            except Refused:
                self._asked[model.path] = None
        return self._asked[model.path]

    def _traced(self, model: ModelFile) -> Asked | None:
        bounds = isolation.limits_for(external.size_bytes(model.path))
        words = {"path": str(model.path), "feeds": str(self._feeds)}
        if model.kind is RuntimeKind.ONNXRUNTIME:
            told = self._run("tracing it", "edgekit.build.estimates.trace:in_child", words, bounds)
            runs = msgspec.convert(told, tuple[Executed, ...])
            return Asked(works=tuple(map(work_of, runs)), kernels=ONNXRUNTIME)
        if model.kind is not RuntimeKind.LITERT:
            return None
        found = self._run(
            "listing its operators",
            "edgekit_converters.litert.operations:read",
            words,
            bounds,
        )
        listed = msgspec.convert(found, Listed)
        works = works_of(listed.operations)
        kernels = LITERT if listed.is_whole else LITERT_IN_PIECES
        return Asked(works=works, kernels=kernels) if works else None


def estimate_of(model: ModelFile, cpu: Cpu, tracer: Tracer, *, threads: int) -> Estimate | None:
    """How long a model may take on a processor; None where too little is known."""
    core = core_of(cpu)
    asked = tracer.asked(model) if core is not None else None
    if core is None or asked is None:
        return None
    return estimate(asked.works, core, threads=threads, kernels=asked.kernels)


class Forecast:
    """For one profile."""

    def __init__(
        self, plan: ProfilePlan, tracer: Tracer, figures: Mapping[Key, Figure], *, host: Host
    ) -> None:
        """`figures` are what devices measured, see `notebook`."""
        self._profile: Profile = plan.profile
        self._plan, self._host = plan, host
        self._tracer, self._figures = tracer, figures

    @property
    def is_able(self) -> bool:
        """Whether there can be estimates at all, float32's among them."""
        known = core_of(self._profile.cpu) is not None
        return known and self._plan.runtimes[0].kind in _ESTIMATED

    def estimate(self, variant: Variant) -> Estimate | None:
        if variant.failure is not None or variant.recipe.needs.features - self._host.features:
            return None
        threads = self._plan.runtime(variant.kind).threads
        return estimate_of(variant.model, self._profile.cpu, self._tracer, threads=threads)

    def time(self, variant: Variant) -> Estimate | None:
        """The figure, or else the estimate."""
        figure = self.figure(variant)
        if figure is not None:
            return Estimate(ms=figure.median_ms, low=figure.low, high=figure.high)
        return self.estimate(variant)

    def figure(self, variant: Variant) -> Figure | None:
        """What a device of the profile, with its runtime, took for a model of this structure."""
        if variant.failure is not None or not self._figures:
            return None
        return self._figures.get(
            key_of(
                self._profile,
                self._plan.runtime(variant.kind),
                model=structure_digest(variant.path),
            )
        )
