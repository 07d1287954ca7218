"""What is known of a variant's latency on a profile's device: an estimate, or a device's figure.

Invariant: an estimate is of the operators that the device will run; where this machine runs others
in their place, and where nothing is known of the core or the runtime, there is none.
"""

from __future__ import annotations

from pathlib import Path

from edgekit.build.estimates import core_of, estimate, trace
from edgekit.build.estimates.operators import Work, work_of
from edgekit.build.host import Host
from edgekit.build.kitchen import Variant
from edgekit.build.notebook import Notebook, key_of
from edgekit.build.plan import ProfilePlan
from edgekit.build.report import Estimate, Figure
from edgekit_contract.errors import Refused
from edgekit_contract.profile import Profile, RuntimeKind
from edgekit_converters.structure import structure_digest
from edgekit_converters.tensorfile import read_tensors

__all__ = ["Forecast", "Tracer"]


class Tracer:
    """Traces of variants, kept: profiles share them."""

    def __init__(self, feeds: Path, *, scratch: Path, host: Host) -> None:
        """`feeds` is the file of the tensors to run on."""
        self._feeds, self._scratch, self.host = feeds, scratch, host
        self._works: dict[Path, tuple[Work, ...] | None] = {}

    def works(self, model: Path) -> tuple[Work, ...] | None:
        """What an ONNX file asks of a processor; None where it does not run."""
        if model not in self._works:
            try:
                runs = trace(model, read_tensors(self._feeds), scratch=self._scratch)
            except Refused:
                self._works[model] = None
            else:
                self._works[model] = tuple(map(work_of, runs))
        return self._works[model]


class Forecast:
    """For one profile."""

    def __init__(self, plan: ProfilePlan, tracer: Tracer, notebook: Notebook) -> None:
        self._profile: Profile = plan.profile
        self._plan = plan
        self._core = core_of(plan.profile.cpu)
        self._tracer, self._figures = tracer, notebook.figures()

    @property
    def is_able(self) -> bool:
        """Whether there can be estimates at all, float32's among them."""
        return self._core is not None and self._plan.runtimes[0].kind is RuntimeKind.ONNXRUNTIME

    def estimate(self, variant: Variant) -> Estimate | None:
        if self._core is None or variant.kind is not RuntimeKind.ONNXRUNTIME:
            return None
        if (
            variant.failure is not None
            or variant.recipe.needs.features - self._tracer.host.features
        ):
            return None
        works = self._tracer.works(variant.path)
        threads = self._plan.runtime(variant.kind).threads
        return estimate(works, self._core, threads=threads) if works else None

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
