"""The report of a build for one profile: what was tried, what it measured, what was chosen and why.

Invariant: values only, JSON as they are; a candidate that was not chosen says why. The report goes
into the bundle as `files/report.json`.
"""

from __future__ import annotations

import enum
from typing import Annotated, Final, TypeAlias

import msgspec

from edgekit.build.metrics import Score
from edgekit.build.request import Objective
from edgekit_contract import limits
from edgekit_contract.manifest import TensorSpec
from edgekit_converters.recipes.tuning import Tuning

__all__ = [
    "Candidate",
    "ErrorSample",
    "Estimate",
    "Figure",
    "Latency",
    "ModelCard",
    "NodeSensitivity",
    "Outcome",
    "Report",
    "Score",
]


NOTICEABLE: Final = 0.02
"""Where a process happens to place a model in memory makes it about so much faster or slower."""


Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=limits.MAX_JSON_INTEGER)]
"""A report is read from bundles of anybody, too."""


class Outcome(enum.Enum):
    CHOSEN = "chosen"
    LOST = "lost"
    """Sound, but another was better or a bound was broken."""
    FAILED = "failed"
    """Could not be made, does not load, or gives wrong numbers."""
    SKIPPED = "skipped"
    """Not planned."""


class Latency(msgspec.Struct, frozen=True, kw_only=True):
    """One inference, measured turn by turn with the baseline."""

    median_ms: float
    ratio: float
    """To the baseline: the median over the rounds of the ratio within a round."""
    low: float
    high: float
    """95% confidence interval of `ratio` (bootstrap over rounds)."""
    rounds: Count

    @property
    def is_faster(self) -> bool:
        """Than the baseline: the whole interval is below 1, by more than chance placement."""
        return self.high < 1.0 and self.ratio <= 1.0 - NOTICEABLE

    @property
    def is_slower(self) -> bool:
        return self.low > 1.0 and self.ratio >= 1.0 + NOTICEABLE


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """How long one inference may take on the profile's device: computed, never measured."""

    ms: float
    low: float
    high: float


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """How long one inference took on a real device, and what it took besides."""

    median_ms: float
    low: float
    high: float
    """95% confidence interval of the median."""
    p95_ms: float
    rss_bytes: Count
    """Greatest resident memory of the process that ran it."""
    runs: Count
    device: str
    """Id of the device."""
    at: str
    """When, RFC 3339."""


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    recipe: str
    outcome: Outcome
    reason: str = ""
    """Why it was chosen, or why not."""
    size_bytes: Count | None = None
    score: Score | None = None
    """On the samples that the choice was made by."""
    held_out: Score | None = None
    """On samples that the choice did not see; None where there were too few to keep any back."""
    latency: Latency | None = None
    tuning: Tuning = Tuning()
    """What the search changed about the recipe."""
    closeness_db: float | None = None
    """Signal-to-noise ratio of the outputs against float32's: greater is closer, finite always."""
    estimate: Estimate | None = None
    """None where the profile is this machine, or where nothing is known to estimate from."""
    figure: Figure | None = None
    """None where no device of the profile has run it."""
    is_open: bool = False
    """Whether a measurement on a device might have chosen it."""

    @property
    def title(self) -> str:
        """The recipe, and what the search changed about it."""
        return self.tuning.title_of(self.recipe)


class NodeSensitivity(msgspec.Struct, frozen=True, kw_only=True):
    """What quantizing one node of the normalized model, and no other, does to the outputs."""

    node: str
    operator: str
    noise_db: float
    """Noise power over signal power of the outputs: greater is worse, finite always."""
    spared: bool
    """The chosen variant leaves it in the wider format."""
    parameters: Count


class ErrorSample(msgspec.Struct, frozen=True, kw_only=True):
    """A validation sample on which the chosen variant differs from float32."""

    sample: Count
    """Its place in the validation data, from 0."""
    label: int | None = None
    """The true class, where the data have labels."""
    expected: str
    """What float32 says."""
    got: str
    """What the chosen variant says."""
    margin: float | None = None
    """By how much float32's first class leads its second, in units of the output."""


class ModelCard(msgspec.Struct, frozen=True, kw_only=True):
    """The model as it was given."""

    operators: dict[str, Count]
    """How often each operator occurs."""
    opset: Count | None
    """None where the format has none."""
    parameters: Count
    size_bytes: Count
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


class Report(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    version: str
    profile: str
    runtime: str
    threads: Count
    """Of the profile's runtime."""
    measured_threads: Count
    """Of the measurement: fewer where this machine has fewer cores, 0 where there was none."""
    objective: Objective
    metric: str
    """The one that was used, never `auto`."""
    max_drop: float
    measured_on: str
    on_target: bool
    """Whether what was measured here holds for the profile."""
    calibration_samples: Count
    validation_samples: Count
    chosen: str
    candidates: tuple[Candidate, ...]
    normalization: tuple[str, ...]
    """Steps that the model went through."""
    remarks: tuple[str, ...]
    """What the reader should know before trusting the figures."""
    peak_ram_bytes: Count
    sensitivity: tuple[NodeSensitivity, ...] = ()
    """Of the nodes that were ranked, the most sensitive first."""
    errors: tuple[ErrorSample, ...] = ()
    """Where the chosen variant differs most from float32, the worst first; a few."""
    model: ModelCard | None = None
    """None in a bundle of an older build, as all that has a default here."""
    sizes: dict[str, Count] = {}
    """Bytes of the chosen variant's weights by number format, such as `int8`."""
    seconds: dict[str, float] = {}
    """How long each stage of the build took, by its name."""
