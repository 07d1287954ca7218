"""How good a variant is: metrics by name, and the user's own as `package.module:callable`.

Invariant: every score is greater-is-better, and its drop can be held against `--max-drop`. Only
`custom` runs code of the user's; the rest is pure.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from edgekit.build.metrics import classification, closeness, detection, ranking, sequences
from edgekit.build.metrics.custom import custom, load_metric
from edgekit.build.metrics.intervals import wilson_interval
from edgekit.build.metrics.meter import Meter, Outputs, Score
from edgekit.build.metrics.options import DEFAULTS, MetricOptions
from edgekit_contract.errors import Misused
from edgekit_converters.callables import is_callable_name

__all__ = [
    "AUTO",
    "DEFAULTS",
    "METRICS",
    "Meter",
    "Metric",
    "MetricOptions",
    "Outputs",
    "Score",
    "check_metric",
    "new_meter",
    "resolve_metric",
    "wilson_interval",
]

AUTO: Final = "auto"

METRICS: Final[Mapping[str, Callable[[MetricOptions], Meter]]] = {
    "top1": classification.top1,
    "top5": classification.top5,
    "f1": classification.f1,
    "auc": ranking.auc,
    "agreement": classification.agreement,
    "r2": closeness.r2,
    "cosine": closeness.cosine,
    "mse": closeness.mse,
    "detection": detection.detection,
    "ctc": sequences.ctc,
}
"""The metrics that have a name."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A metric that was decided on."""

    name: str
    options: MetricOptions = DEFAULTS

    @property
    def judges_truth(self) -> bool:
        """Whether it may compare with labels, and not with the float32 model alone."""
        return self.name not in _AGAINST_FLOAT

    @property
    def takes_other_lengths(self) -> bool:
        """Whether outputs may be longer or shorter than float32's: as many boxes as were found."""
        return self.name == "detection" or ":" in self.name


_AGAINST_FLOAT: Final = frozenset({"agreement", "r2", "cosine", "mse", "detection"})


def check_metric(name: str) -> None:
    """Errors: `Misused` for what is neither `auto`, nor a metric, nor names a callable."""
    known = (AUTO, *METRICS)
    if name in known or is_callable_name(name):
        return
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise Misused(
        f"there is no metric {name!r}: {hint}choose {', '.join(known)}, or package.module:callable."
    )


def resolve_metric(
    asked: str,
    *,
    labelled: bool,
    outputs: Outputs,
    options: MetricOptions = DEFAULTS,
) -> Metric:
    """`auto` by what there is: labels, classes as output, or neither.

    `outputs` are float32's for some sample. Errors: `Misused` for a callable that is none,
    `Refused` for an output that is none.
    """
    if is_callable_name(asked):
        load_metric(asked)
    if asked != AUTO:
        return Metric(name=asked, options=options)
    if labelled:
        return Metric(name="top1", options=options)
    classes = classification.tells_classes(outputs, options)
    return Metric(name="agreement" if classes else "r2", options=options)


def new_meter(metric: Metric) -> Meter:
    """A meter that has seen nothing."""
    make = METRICS.get(metric.name)
    return custom(metric.name) if make is None else make(metric.options)
