"""The plan: which recipes are tried for which profile, and why the others are not. Pure.

Invariant: whatever is planned can run on the profile's runtime and core, as far as declarations
tell; what cannot fit at all is refused here, before anything is made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

from edgekit_contract import limits
from edgekit_contract.compatibility import version_tuple
from edgekit_contract.errors import Misused, Refused
from edgekit_contract.profile import Profile, Runtime, RuntimeKind
from edgekit_converters.calibration.estimators import CHOSEN_AMONG, Estimator
from edgekit_converters.facts import ModelFacts
from edgekit_converters.recipes import conversion_to
from edgekit_converters.recipes.recipe import Recipe
from edgekit_converters.runtime_operators import first_version, newer_than

__all__ = ["Plan", "ProfilePlan", "SkippedRecipe", "asked_for", "make_plan", "min_runtime_version"]

_RELEASES: Final = (
    ("1.10", 15), ("1.11", 16), ("1.12", 17), ("1.14", 18), ("1.15", 19), ("1.17", 20),
    ("1.18", 21), ("1.22", 22), ("1.23", 23),
)  # fmt: skip
"""onnxruntime versions and the newest ONNX operator set of each (its docs, "Versioning")."""


_SOURCE: Final = RuntimeKind.ONNXRUNTIME
"""What conversions start from."""


@dataclass(frozen=True, kw_only=True)
class SkippedRecipe:
    recipe: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class ProfilePlan:
    profile: Profile
    runtimes: tuple[Runtime, ...]
    """Those of the profile that the model can be built for; the baseline's first."""
    recipes: tuple[Recipe, ...]
    """The baseline first."""
    skipped: tuple[SkippedRecipe, ...]

    def runtime(self, kind: RuntimeKind) -> Runtime:
        return next(runtime for runtime in self.runtimes if runtime.kind is kind)


@dataclass(frozen=True, kw_only=True)
class Plan:
    profiles: tuple[ProfilePlan, ...]

    @property
    def recipes(self) -> tuple[Recipe, ...]:
        """Every recipe that some profile needs, once."""
        found = {recipe.id: recipe for plan in self.profiles for recipe in plan.recipes}
        return tuple(found.values())

    @property
    def estimators(self) -> tuple[Estimator, ...]:
        """What calibration must estimate; empty: there is none."""
        named = {r.needs.estimator for r in self.recipes if r.needs.estimator is not None}
        if Estimator.MEASURED in named:
            named = {*named, *CHOSEN_AMONG} - {Estimator.MEASURED}
        return tuple(sorted(named, key=lambda estimator: estimator.value))


def asked_for(recipe: Recipe, patterns: Sequence[str]) -> bool:
    """Whether the patterns, if any, choose this recipe."""
    return not patterns or any(fnmatchcase(recipe.id, pattern) for pattern in patterns)


def make_plan(
    kind: RuntimeKind,
    *,
    given: ModelFacts,
    normalized: ModelFacts,
    changed: bool,
    profiles: Sequence[Profile],
    recipes: Sequence[Recipe],
    patterns: Sequence[str],
    has_data: bool,
    host_saturates: bool,
    missing: Mapping[RuntimeKind, str] = {},
) -> Plan:
    """Plan the build of a model for these profiles.

    `recipes` begin with the baseline; `patterns` choose among the others (none: all). `changed`
    says whether normalization did anything, `has_data` whether there is calibration or validation
    data, `host_saturates` whether 8-bit products may saturate on the machine that builds. `missing`
    says of a runtime why variants for it cannot be made here, though one that is given may be
    packed. Errors: `Misused` for a pattern without a recipe, `Refused` for a profile that cannot
    run the model at all.
    """
    for pattern in patterns:
        if not any(fnmatchcase(recipe.id, pattern) for recipe in recipes):
            families = dict.fromkeys(r.family + ("/*" if r.family != r.id else "") for r in recipes)
            raise Misused(f"no recipe matches {pattern!r}; there are {', '.join(families)}.")
    case = _Case(
        kind=kind,
        facts=normalized,
        changed=changed,
        patterns=patterns,
        has_data=has_data,
        host_saturates=host_saturates,
        missing=missing,
    )
    plans = []
    for profile in profiles:
        runtimes = _runtimes(profile, kind, recipes)
        _check_fit(profile, runtimes[0], given)
        baseline = recipes[0]
        if runtimes[0].kind is not kind:
            baseline = conversion_to(runtimes[0].kind, recipes) or baseline
        reasons = {
            recipe.id: None if recipe is baseline else _skip(recipe, case, profile, runtimes)
            for recipe in (baseline, *(r for r in recipes if r is not baseline))
        }
        by_id = {recipe.id: recipe for recipe in recipes}
        plans.append(
            ProfilePlan(
                profile=profile,
                runtimes=runtimes,
                recipes=tuple(by_id[i] for i, reason in reasons.items() if reason is None),
                skipped=tuple(
                    SkippedRecipe(recipe=i, reason=reason)
                    for i, reason in reasons.items()
                    if reason is not None
                ),
            )
        )
    return Plan(profiles=tuple(plans))


@dataclass(frozen=True, kw_only=True)
class _Case:
    """What is asked, and of what model."""

    kind: RuntimeKind
    facts: ModelFacts
    changed: bool
    patterns: Sequence[str]
    has_data: bool
    host_saturates: bool
    missing: Mapping[RuntimeKind, str]


def min_runtime_version(runtime: Runtime, recipe: Recipe, made: ModelFacts) -> str:
    """The oldest version of the runtime that runs what `recipe` made.

    Where nothing tells, it is the profile's own version: that is what was planned for.
    """
    opset = made.opset
    if runtime.kind is not RuntimeKind.ONNXRUNTIME or opset is None:
        return runtime.version
    known = (version for version, newest in _RELEASES if opset <= newest)
    firsts = (first_version(operator) for operator in made.operators)
    return max(
        next(known, runtime.version),
        recipe.needs.min_runtime_version,
        *(first for first in firsts if first is not None),
        key=version_tuple,
    )


def _runtimes(
    profile: Profile, kind: RuntimeKind, recipes: Sequence[Recipe]
) -> tuple[Runtime, ...]:
    """Of the profile: the model's own first, then those that it can be converted for.

    Errors: `Refused` where there is none.
    """
    kinds = [kind, *(r.needs.runtime for r in recipes if r.converts and kind is _SOURCE)]
    found = [profile.runtime(k) for k in dict.fromkeys(kinds)]
    if not any(found):
        held = ", ".join(r.kind.value for r in profile.runtimes)
        raise Refused(
            f"{profile.name} has no {kind.value}, only {held}: choose another profile or convert "
            "the model."
        )
    return tuple(runtime for runtime in found if runtime is not None)


def _check_fit(profile: Profile, runtime: Runtime, given: ModelFacts) -> None:
    if (
        runtime.max_opset is not None
        and given.opset is not None
        and given.opset > runtime.max_opset
    ):
        raise Refused(
            f"the model is of opset {given.opset}, onnxruntime {runtime.version} of {profile.name} "
            f"reads up to {runtime.max_opset}: export it again with an older opset."
        )
    if runtime.max_ir is not None and given.ir is not None and given.ir > runtime.max_ir:
        raise Refused(
            f"the model is of IR version {given.ir}, onnxruntime {runtime.version} of "
            f"{profile.name} reads up to {runtime.max_ir}: export it again for an older one."
        )
    if runtime.kind is RuntimeKind.ONNXRUNTIME:
        for operator, first in newer_than(runtime.version, given.operators).items():
            raise Refused(
                f"the model uses the operator {operator}, which onnxruntime {runtime.version} of "
                f"{profile.name} does not have (the first with it is {first}): export the model "
                "without it, or choose a profile with a newer runtime."
            )
    if given.size_bytes > limits.MAX_BUNDLE_BYTES:
        raise Refused(
            f"the model has {given.size_bytes >> 20} MiB, a bundle holds at most 4 GiB: "
            "choose a smaller model."
        )


def _skip(recipe: Recipe, case: _Case, profile: Profile, runtimes: Sequence[Runtime]) -> str | None:
    """Why a recipe is not tried, or None."""
    needs = recipe.needs
    runtime = next((r for r in runtimes if r.kind is needs.runtime), None)
    if runtime is None or (recipe.converts and needs.runtime is case.kind):
        return _of_another_runtime(recipe, case, profile)
    if not asked_for(recipe, case.patterns):
        return "not asked for"
    if needs.runtime in case.missing:
        return case.missing[needs.runtime]
    if recipe.optimizes and not case.changed:
        return "simplification changed nothing, or did not hold"
    if (needs.estimator is not None or needs.samples) and not case.has_data:
        return "there are no data to calibrate with"
    if needs.runtime is RuntimeKind.ONNXRUNTIME:
        for operator, first in newer_than(runtime.version, case.facts.operators).items():
            return f"simplified, the model uses {operator}, which onnxruntime has since {first}"
    return needs.unmet(case.facts, runtime, profile.cpu, host_saturates=case.host_saturates)


def _of_another_runtime(recipe: Recipe, case: _Case, profile: Profile) -> str:
    wanted = recipe.needs.runtime
    if profile.runtime(wanted) is None:
        return f"{profile.name} has no {wanted.value}"
    if wanted is case.kind:
        return f"the model is of {wanted.value} as it is"
    return f"it is for {wanted.value}, and the model is of {case.kind.value}"
