"""What a build is asked for: values, parsed and checked before anything runs."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass
from pathlib import Path

from edgekit.build.metrics import AUTO, DEFAULTS, MetricOptions, check_metric
from edgekit.release.keys import PrivateKey
from edgekit_contract import names
from edgekit_contract.errors import Misused
from edgekit_contract.manifest import Postprocess, Preprocess
from edgekit_contract.profile import Profile, RuntimeKind
from edgekit_converters.callables import is_callable_name
from edgekit_converters.sources import CONVERSION_S

__all__ = ["BuildRequest", "Objective"]


class Objective(enum.Enum):
    """What the chosen variant is best in, among those within every bound."""

    LATENCY = "latency"
    SIZE = "size"
    ACCURACY = "accuracy"


@dataclass(frozen=True, kw_only=True)
class BuildRequest:
    """Errors: `Misused` for a bound or name that is none."""

    model: Path | str
    """A file or directory, or, as a text, `package.module:callable`: see `sources.open_source`."""
    profiles: tuple[Profile, ...]
    name: str
    version: str
    output: Path
    calibration: str | None = None
    """DATA, see `data.open_data`."""
    validation: str | None = None
    metric: str = AUTO
    """`auto`, a name in `metrics.METRICS`, or `package.module:callable`, see `metrics.custom`."""
    metric_options: MetricOptions = DEFAULTS
    max_drop: float = 0.01
    """Greatest loss of the metric against float32, in its own unit: 0.01 is one point in 100."""
    max_ms: float | None = None
    max_mb: float | None = None
    """Greatest size of the model file, in 10^6 bytes."""
    objective: Objective = Objective.LATENCY
    recipes: tuple[str, ...] = ()
    """Patterns (`fnmatch`) of recipe ids; empty: all. The baseline is always made."""
    search_time_s: float = 60.0
    """About how long measuring may take; fewer rounds are run where it is short."""
    conversion_time_s: float = CONVERSION_S
    """How long the conversion of another framework's model may take, and as long again its
    comparison with it."""
    key: PrivateKey | None = None
    preprocess: tuple[Preprocess, ...] = ()
    postprocess: tuple[Postprocess, ...] = ()
    labels: tuple[str, ...] = ()
    """Names of the classes."""
    runtime: RuntimeKind | None = None
    """The model is prebuilt for this runtime and packed as it is; None: see `prebuilt`."""
    dry_run: bool = False
    contenders: bool = False
    """Pack, too, the variants that a measurement on a device might choose."""
    figures: Path | None = None
    """File of what devices measured, see `notebook`; None: the user's own."""

    def __post_init__(self) -> None:
        names.model_name(self.name)
        names.version(self.version)
        if not self.profiles:
            raise Misused("no profile: add --profile NAME (edgekit profiles list).")
        repeated = [p.name for p in self.profiles]
        if len(set(repeated)) != len(repeated):
            raise Misused(f"a profile is named twice: {', '.join(sorted(repeated))}.")
        check_metric(self.metric)
        most = math.inf if is_callable_name(self.metric) else 1
        if not 0 <= self.max_drop < most:
            raise Misused(
                f"--max-drop {self.max_drop:g} would let everything be lost: give a share below 1, "
                "such as 1% or 0.01."
            )
        for what, seconds in (
            ("search", self.search_time_s),
            ("conversion", self.conversion_time_s),
        ):
            if not 0 < seconds < math.inf:
                raise Misused(f"a {what} of {seconds} s: give a number of seconds above 0.")
        for flag, value in (("--max-ms", self.max_ms), ("--max-mb", self.max_mb)):
            if value is not None and not value > 0:
                raise Misused(f"{flag} {value} is not above 0.")
