"""What a recipe is: an id, what it needs, and a function that writes the variant.

Invariant: `Needs` decides without looking at a file; `make` runs in a child process and only writes
the file that it is told to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from edgekit_contract.compatibility import version_tuple
from edgekit_contract.profile import Cpu, Runtime, RuntimeKind
from edgekit_converters.calibration.estimators import Estimator, Range
from edgekit_converters.facts import ModelFacts
from edgekit_converters.proof import Signature, Trial
from edgekit_converters.recipes.tuning import UNTUNED, Knob, Tuning

__all__ = ["Ingredients", "Needs", "Recipe"]


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a recipe asks of the model, the runtime and the core. Empty fields ask nothing."""

    runtime: RuntimeKind = RuntimeKind.ONNXRUNTIME
    min_runtime_version: str = "0"
    weighted: frozenset[str] = frozenset()
    """At least one of these operators has weights in the outermost graph."""
    nested: bool = False
    """Weights inside subgraphs will do, too."""
    min_opset: int | None = None
    estimator: Estimator | None = None
    """How activations' ranges are estimated; with it the recipe needs calibration."""
    samples: bool = False
    """It is made with samples of the data themselves."""
    full_range: bool | None = None
    """True: only where 8-bit products cannot saturate, neither on the profile's core nor on the
    machine that builds and has to prove the variant; False: only where they can; None: both."""

    features: frozenset[str] = frozenset()
    """ISA features that the profile's core must have, as `profile.FEATURES` names them."""

    def unmet(
        self, facts: ModelFacts, runtime: Runtime, cpu: Cpu, *, host_saturates: bool
    ) -> str | None:
        """Why the recipe cannot run, or cannot be proved where it is made, or None."""
        if version_tuple(runtime.version) < version_tuple(self.min_runtime_version):
            return f"it needs {self.runtime.value} {self.min_runtime_version} or newer"
        if self.weighted:
            held = {*facts.weighted, *(facts.nested_weighted if self.nested else ())}
            if not held & self.weighted:
                if not held and facts.other_weights:
                    kinds = " and ".join(facts.other_weights)
                    return f"the model's weights are {kinds} already, not float32"
                if self.runtime is RuntimeKind.LITERT:  # whose operators have other names
                    return "the model has no float32 weights to narrow"
                return "the model has no float32 weights in " + ", ".join(sorted(self.weighted))
        if self.min_opset is not None and (facts.opset or 0) < self.min_opset:
            return f"it needs opset {self.min_opset}, the model could not be raised above " + str(
                facts.opset
            )
        if missing := self.features - set(cpu.features):
            return "the profile's core lacks " + ", ".join(sorted(missing))
        saturates = runtime.int8_saturates(cpu)
        if self.full_range and saturates:
            where = "minimal build of onnxruntime" if runtime.minimal else "core"
            return f"8-bit products can saturate on the profile's {where}"
        if self.full_range and host_saturates:
            return "8-bit products can saturate on this machine: it could not be proved here"
        if self.full_range is False and not (saturates or host_saturates):
            return "8-bit products cannot saturate on the profile's core: the full range is better"
        return None


@dataclass(frozen=True, kw_only=True)
class Ingredients:
    """What `make` works with."""

    given: Path
    """The model as it was given, self-contained."""
    normalized: Path
    """What the recipe starts from: an ONNX model, normalized, or a float LiteRT model."""
    ranges: Mapping[str, Range]
    """By tensor name; empty unless the recipe names an estimator."""
    out: Path
    tuning: Tuning = UNTUNED
    """`equalized`, `levelled` and `smoothed` are seen to before: `normalized` and `ranges` are
    then of the rewritten model."""
    moments: Path | None = None
    """File of `conditioning.moments`; there where the tuning reconstructs or corrects."""
    samples: Path | None = None
    """Directory of tensor files, one per sample; there where the recipe needs samples."""
    signature: Signature | None = None
    """Inputs and outputs of the model as it was given."""
    trials: tuple[Trial, ...] = ()
    """Samples, and what the model as it was given makes of them."""
    home: Path = Path()
    """A scratch directory that ends with the call."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    id: str
    """Such as `int8-static/per-channel/s8s8/percentile`: family, then choices."""
    title: str
    needs: Needs
    make: Callable[[Ingredients], None]
    """Write the variant. Errors: anything; it then loses with that reason."""
    output_step: float
    """One step of the output's number format, as a part of the output's range: 1/255 for 8 bits."""
    bits: float = 32
    """Of a weight in the file, about: where size counts, recipes of fewer are looked for."""
    converts: bool = False
    """Makes a float model for its runtime of one for another, as exact as that. Where the given
    model is of the runtime itself, there is nothing to convert."""
    optimizes: bool = False
    """Starts from the normalized model without quantizing: pointless where nothing was changed."""
    knobs: frozenset[Knob] = frozenset()
    """What of `Ingredients.tuning` the recipe heeds."""
    varies: str | None = None
    """Id of the recipe that this one is a variation of: tried only where that one is promising."""

    @property
    def family(self) -> str:
        """What it has in common with others: one of a family at most is tuned."""
        parts = self.id.split("/")
        return "/".join(parts[: 1 if self.needs.runtime is RuntimeKind.ONNXRUNTIME else 2])

    def heeded(self, tuning: Tuning) -> Tuning:
        """What of a tuning changes this recipe's variants: not what it has no knob for."""
        ignored = _KNOBS_OF_RECIPES - self.knobs
        return msgspec.structs.replace(
            tuning, **{knob.value: getattr(UNTUNED, knob.value) for knob in ignored}
        )


_KNOBS_OF_RECIPES: Final = frozenset(Knob) - {Knob.EQUALIZED, Knob.LEVELLED, Knob.SMOOTHED}
"""The others are seen to before, whatever the recipe."""
