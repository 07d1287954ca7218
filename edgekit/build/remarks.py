"""What a reader should know before trusting a report's figures. No I/O."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final

from edgekit.build.bench import Bench
from edgekit.build.choice import time_on_device
from edgekit.build.contest import Verdict
from edgekit.build.host import Host
from edgekit.build.kitchen import Kitchen
from edgekit.build.material import Material
from edgekit.build.plan import ProfilePlan
from edgekit.build.report import Candidate, Outcome
from edgekit.build.request import BuildRequest, Objective
from edgekit_converters.recipes import find_recipe

__all__ = ["data_remarks", "host_remarks", "plan_remarks"]

_SMALL: Final = 30
"""Validation samples under which a figure is said to be rough."""
_FEW_BITS: Final = 8
_NAMED: Final = 3
"""Open candidates that a remark names."""


def plan_remarks(plan: ProfilePlan, request: BuildRequest) -> list[str]:
    """Why nothing of few bits was tried, where a user might have expected it."""
    if request.recipes or any(recipe.bits <= _FEW_BITS for recipe in plan.recipes):
        return []
    kinds = {runtime.kind for runtime in plan.runtimes}
    reasons: Counter[str] = Counter()
    for skipped in plan.skipped:
        needs = find_recipe(skipped.recipe).needs
        if needs.runtime in kinds and needs.estimator is None and not needs.samples:
            reasons[skipped.reason] += 1
    return [f"Nothing of few bits was tried: {why}." for why, _ in reasons.most_common(1)]


def host_remarks(
    plan: ProfilePlan, request: BuildRequest, host: Host, candidates: Sequence[Candidate]
) -> list[str]:
    """What building on this machine, and not on a device of the profile, means for the figures."""
    said, profile, threads = [], plan.profile, max(r.threads for r in plan.runtimes)
    if (why := host.difference(profile.cpu)) is not None:
        said.append(f"Latency was measured on HOST ({host.title}), not on {profile.name}: {why}.")
    if host.cores < threads:
        said.append(
            f"Latency was measured with {host.cores} of {profile.name}'s {threads} threads: this "
            "machine has no more cores."
        )
    if said and request.objective is Objective.LATENCY:
        said += _forecast_remarks(plan, candidates)
    chosen = next(c for c in candidates if c.outcome is Outcome.CHOSEN)
    if said and request.max_ms is not None and chosen.figure is None:
        said.append(f"--max-ms was not checked: it needs a measurement on {profile.name}.")
    on_device = any(runtime.int8_saturates(profile.cpu) for runtime in plan.runtimes)
    if host.int8_saturates and not on_device and _has_int8(plan):
        said.append(
            f"8-bit products can saturate on this machine and not on {profile.name}: weights of 7 "
            "bits were tried, since 8 could not be proved; build on ARM or on a machine with VNNI."
        )
    return said


def _has_int8(plan: ProfilePlan) -> bool:
    return any(recipe.needs.full_range is not None for recipe in plan.recipes)


def _forecast_remarks(plan: ProfilePlan, candidates: Sequence[Candidate]) -> list[str]:
    """By what the choice went where time is of another machine, and what would tell more."""
    profile, kind = plan.profile, plan.runtimes[0].kind.value
    equals = (
        "by accuracy, where half of what may be lost counts as none, then size, and of about one "
        "size not what is slower here"
    )
    if any(time_on_device(candidate) for candidate in candidates):
        said = [
            f"Times on {profile.name} are estimates of {profile.cpu.core} where no device measured "
            "them; they count where their bars do not overlap. Among equals the choice went "
            f"{equals}."
        ]
    else:
        said = [
            f"Objective latency chose {equals}: there are no estimates of {kind} on "
            f"{profile.cpu.core}."
        ]
    if left := [c.title for c in candidates if c.is_open]:
        named = ", ".join(left[:_NAMED]) + (", ..." if left[_NAMED:] else "")
        said.append(
            f"Estimates do not tell the chosen from {named}: measure on a {profile.name} "
            "(build --contenders packs them; edgekit bench BUNDLE... --device ID)."
        )
    return said


def data_remarks(
    request: BuildRequest, material: Material, kitchen: Kitchen, bench: Bench, verdict: Verdict
) -> tuple[str, ...]:
    """What model and data mean for the figures."""
    said = list(material.normalized.remarks)
    said.append(_DATA_REMARKS[material.data_source])
    if kitchen.pantry.calibration.samples and material.calibration is None:
        said.append(
            "Calibration and validation data are the same: nothing that was held out was used "
            "for ranges."
            if request.calibration is not None and bench.holds_out
            else "There are no calibration data: ranges were taken from the validation data, "
            "which flatters int8."
        )
    if kitchen.pantry.calibration.is_cut:
        said.append(
            f"There was time to calibrate on {kitchen.pantry.calibration.samples} samples: "
            "give more with --search-time."
        )
    if both := len(kitchen.pantry.calibration.seen & bench.seen_held_out):
        said.append(
            f"{both} of the samples held out from the choice are calibration data, too, which "
            "flatters int8: give others."
        )
    if material.data is not None and not bench.holds_out:
        said.append(
            f"{bench.samples} samples are too few to keep some from the choice"
            + (
                f"; one of them is {1 / bench.samples:.1%}: take the figures as rough."
                if bench.samples < _SMALL
                else "."
            )
        )
    judged = verdict.candidates
    winner = next(c for c in judged if c.outcome is Outcome.CHOSEN)
    if winner.held_out is not None and judged[0].held_out is not None:
        drop = judged[0].held_out.value - winner.held_out.value
        if drop > request.max_drop:
            said.append(
                f"On the samples held out from the choice {winner.title} is {drop:.4f} below "
                "float32, more than was allowed: give more validation data."
            )
    said += kitchen.pantry.remarks
    if not bench.metric.judges_truth:
        said.append(
            f"The metric {bench.metric.name} compares with the float32 model, not with truth."
        )
    said += verdict.accuracy.remarks
    return tuple(dict.fromkeys(text for text in said if text))


_DATA_REMARKS: Final = {
    "validation": "",
    "calibration": "There are no validation data: figures are from the calibration data.",
    "generated": "There are no data: figures are from made-up inputs and say only that the "
    "numbers are close.",
}
