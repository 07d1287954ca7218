"""The build: material, plan, calibration, search, choice, pack. Wiring only.

Invariant: the model file is only read, and what leaves the scratch directory are whole bundles.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from edgekit.build.bench import Bench
from edgekit.build.choice import Bounds
from edgekit.build.contest import Contest, Verdict
from edgekit.build.data import Data, open_data
from edgekit.build.host import Host, read_host
from edgekit.build.kitchen import Kitchen, Variant
from edgekit.build.material import Material, gather, model_card, read_litert
from edgekit.build.memory import peak_ram_bytes
from edgekit.build.metrics import resolve_metric
from edgekit.build.minimal import REMARK as MINIMAL_REMARK
from edgekit.build.minimal import in_ort_format, operators_of
from edgekit.build.model_file import ModelFile, Options
from edgekit.build.pack import Contents, Sealed, open_output, report_bytes, seal, write
from edgekit.build.plan import Plan, ProfilePlan, asked_for, make_plan, min_runtime_version
from edgekit.build.prebuilt import build_prebuilt, prebuilt_kind
from edgekit.build.progress import Progress, Silent, Stopwatch
from edgekit.build.provenance import git_commit, tool_versions
from edgekit.build.report import ErrorSample, Outcome, Report
from edgekit.build.request import BuildRequest, Objective
from edgekit.build.result import BuildResult, Built
from edgekit.build.scratch import open_scratch
from edgekit.build.search import Deadlines, Search
from edgekit.build.tools import missing_tools
from edgekit.build.vectors import GoldenSet, choose_vectors
from edgekit_contract import limits
from edgekit_contract.errors import Refused
from edgekit_contract.manifest import Provenance
from edgekit_contract.profile import VNNI, Arch, Profile, RuntimeKind
from edgekit_converters import environments, external, isolation
from edgekit_converters.calibration.estimators import Estimator
from edgekit_converters.facts import ModelFacts, read_facts, weight_bytes
from edgekit_converters.quantization.selection import STATIC_OPERATORS
from edgekit_converters.recipes import all_recipes
from edgekit_converters.recipes.recipe import Recipe
from edgekit_converters.sources import open_source
from edgekit_converters.tensorfile import read_tensors
from edgekit_runtime.session import SessionOptions

__all__ = ["BuildResult", "Built", "Gate", "build"]

_ONNX: Final = RuntimeKind.ONNXRUNTIME
_CALIBRATION_SHARE: Final = 0.25
"""Of the search time, at most."""
_LITERT: Final = RuntimeKind.LITERT
_TRIALS_SHARE: Final = 0.6
"""Of the search time that is left when calibration is done: until when trials begin."""
_RELIEF_SHARE: Final = 0.85
"""The same for reliefs, full figures included; latencies come after."""
_PACKING_SHARE: Final = 0.07
"""Of the search time: for latencies in full, golden vectors and the bundle."""
_RANKING_S: Final = 3.0
"""What ranking the nodes for the report takes, as a rule."""
_SMALL: Final = 30
"""Validation samples under which a figure is said to be rough."""
_PACKING_BYTES: Final = limits.MIB // 2
"""What a bundle needs besides model and golden vectors, when planning against a budget."""


Gate = Callable[[Profile, Sealed], None]
"""Told each bundle before any is written; raises `Refused` where it does not do on its profile."""


def build(
    request: BuildRequest, *, progress: Progress | None = None, gate: Gate | None = None
) -> BuildResult:
    """Make the best bundle of a model for each profile; `gate` may stop all of them.

    Errors: `Misused` for a wrong request, `Refused` for a model, data or profile that do not do;
    an output directory that was made for it is gone then.
    """
    if request.dry_run:
        return _build(request, progress, gate)
    with open_output(request.output):
        return _build(request, progress, gate)


def _build(request: BuildRequest, progress: Progress | None, gate: Gate | None) -> BuildResult:
    began = time.monotonic()
    watch = Stopwatch(progress or Silent())
    if (kind := prebuilt_kind(request)) is not None:
        return build_prebuilt(request, kind, watch)
    calibration = None if _is_same(request) else _open(request.calibration, request)
    validation = _open(request.validation, request)
    with open_scratch() as scratch, isolation.Workshop() as workshop:
        with watch.stage("reading the model", None):
            source = open_source(request.model, scratch=scratch, run=workshop.run)
            material = gather(
                source,
                calibration,
                validation,
                normalizes=any(asked_for(r, request.recipes) for r in all_recipes()[1:]),
                scratch=scratch,
                run=workshop.run,
            )
        plan = make_plan(
            source.kind,
            given=material.given_facts,
            normalized=material.normalized_facts,
            changed=bool(material.normalized.steps),
            profiles=request.profiles,
            recipes=all_recipes(),
            patterns=request.recipes,
            has_data=material.data is not None,
            host_saturates=read_host().int8_saturates,
            missing=missing_tools(source.kind, request, watch),
        )
        if request.dry_run:
            return BuildResult(plan=plan, built=())
        work = _Build(
            request,
            plan,
            material,
            scratch=scratch,
            watch=watch,
            workshop=workshop,
            began=began,
        )
        return BuildResult(plan=plan, built=work.execute(gate))


def _open(name: str | None, request: BuildRequest) -> Data | None:
    return None if name is None else open_data(name, preprocess=request.preprocess)


def _is_same(request: BuildRequest) -> bool:
    """Whether calibration and validation data are one: then what is held out calibrates nothing."""
    names = (request.calibration, request.validation)
    if None in names:
        return False
    first, second = (Path(str(name)) for name in names)
    return first == second or (first.exists() and second.exists() and first.samefile(second))


class _Build:
    """One execution of a plan."""

    def __init__(
        self,
        request: BuildRequest,
        plan: Plan,
        material: Material,
        *,
        scratch: Path,
        watch: Stopwatch,
        workshop: isolation.Workshop,
        began: float,
    ) -> None:
        self._request, self._plan, self._material = request, plan, material
        self._scratch, self._watch, self._workshop = scratch, watch, workshop
        self._ends = began + request.search_time_s
        self._kitchen = Kitchen(
            material,
            plan.estimators or self._ranking_estimators(),
            workshop,
            scratch=scratch,
            threads=read_host().cores,
            progress=watch,
            calibration_s=request.search_time_s * _CALIBRATION_SHARE,
        )
        self._golden: dict[tuple[str, int], GoldenSet] = {}

    def _ranking_estimators(self) -> tuple[Estimator, ...]:
        """Without a recipe that needs ranges nodes are ranked by them, where there can be any."""
        weighted = self._material.normalized_facts.weighted.keys()
        runs_onnx = any(r.needs.runtime is _ONNX for r in self._plan.recipes[1:])
        return (Estimator.MINMAX,) if runs_onnx and weighted & STATIC_OPERATORS else ()

    def execute(self, gate: Gate | None) -> tuple[Built, ...]:
        source, request = self._material.source, self._request
        metric = resolve_metric(
            request.metric,
            labelled=self._material.labelled,
            outputs=read_tensors(self._material.reference),
            options=request.metric_options,
        )
        bench = Bench(
            truth=ModelFile(path=source.path, kind=source.kind),
            metric=metric,
            samples=self._material.samples,
            count=self._material.count,
            progress=self._watch,
        )
        decided = [self._decide(plan, bench) for plan in self._plan.profiles]
        source.check_unchanged()
        # all are sealed and tried before one is written: one that refuses leaves nothing behind
        sealed = [seal(contents, request.key) for _, contents in decided]
        if gate is not None:
            with self._watch.stage("trying each on its profile", len(sealed)) as advance:
                for (_, contents), bundle in zip(decided, sealed, strict=True):
                    gate(contents.profile, bundle)
                    advance(1)
        with self._watch.stage("packing", len(decided)) as advance:
            bundles = write(sealed, request.output, advance=advance)
        return tuple(
            Built(report=report, bundle=bundle)
            for (report, _), bundle in zip(decided, bundles, strict=True)
        )

    def _decide(self, plan: ProfilePlan, bench: Bench) -> tuple[Report, Contents]:
        request, profile, host = self._request, plan.profile, read_host()
        # more threads than this machine has cores would measure the scheduler
        options = {
            r.kind: SessionOptions(threads=min(r.threads, host.cores)) for r in plan.runtimes
        }
        on_target = host.is_of(profile.cpu) and all(
            options[r.kind].threads == r.threads for r in plan.runtimes
        )
        bounds = Bounds(
            max_drop=request.max_drop,
            max_ms=request.max_ms,
            max_mb=request.max_mb,
            budget_bytes=profile.budget.bundle_mib * limits.MIB - _PACKING_BYTES,
            ram_bytes=profile.budget.ram_mib * limits.MIB,
        )
        contest = Contest(
            plan=plan,
            bench=bench,
            options=options,
            objective=request.objective,
            bounds=bounds,
            on_target=on_target,
            search_time_s=request.search_time_s / len(self._plan.profiles),
            peak_ram_bytes=lambda variant: peak_ram_bytes(
                variant.path,
                kind=variant.kind,
                feeds=self._material.feeds,
                threads=plan.runtime(variant.kind).threads,
            ),
        )
        verdict = contest.hold(
            self._search(plan, bench, bounds, options=options, on_target=on_target)
        )
        variant = verdict.winner
        runtime = plan.runtime(variant.kind)
        if runtime.minimal:
            variant = in_ort_format(variant, runtime, scratch=self._scratch, run=self._workshop.run)
        golden = self._golden_of(variant, plan)
        report = Report(
            name=request.name,
            version=request.version,
            profile=profile.name,
            runtime=f"{runtime.kind.value} {runtime.version}",
            threads=runtime.threads,
            measured_threads=options[runtime.kind].threads,
            objective=request.objective,
            metric=bench.metric.name,
            max_drop=request.max_drop,
            measured_on=host.title,
            on_target=on_target,
            calibration_samples=max(
                self._kitchen.calibration.samples, self._kitchen.sampled.samples
            ),
            validation_samples=bench.looked_at,
            chosen=variant.title,
            candidates=verdict.candidates,
            normalization=self._material.normalized.steps,
            remarks=(
                *_host_remarks(plan, request, host),
                *self._remarks(verdict, bench),
                *([MINIMAL_REMARK] if runtime.minimal else []),
            ),
            peak_ram_bytes=verdict.peak_ram_bytes,
            sensitivity=verdict.sensitivity,
            errors=_named(verdict.accuracy.errors, request.labels),
            model=model_card(self._material),
            sizes=self._sizes_of(variant),
            seconds=dict(self._watch.seconds),
        )
        return report, self._contents(plan, variant, golden, report)

    def _sizes_of(self, variant: Variant) -> dict[str, int]:
        """Bytes of its weights by number format."""
        if variant.kind is _ONNX:
            return weight_bytes(variant.path)
        found = read_litert(variant.path, self._workshop.run)
        return found.sizes if found is not None else {}

    def _search(
        self,
        plan: ProfilePlan,
        bench: Bench,
        bounds: Bounds,
        *,
        options: Options,
        on_target: bool,
    ) -> Search:
        baseline = self._kitchen.make(plan.recipes[0])
        if baseline.failure is not None:
            raise Refused(
                f"{self._request.model.name} cannot be converted for {plan.runtimes[0].kind.value} "
                f"({baseline.failure}): choose a profile with {self._material.source.kind.value}, "
                "or change the model."
            )
        profiles = self._plan.profiles
        screen = bench.screen(baseline, options)
        now = time.monotonic()
        left_s = self._ends - now - bench.held_out_s
        left_s -= self._request.search_time_s * _PACKING_SHARE
        slice_s = max(0.0, left_s) / (len(profiles) - profiles.index(plan))
        return Search(
            plan.recipes,
            self._kitchen,
            screen,
            objective=self._request.objective,
            bounds=bounds,
            on_target=on_target,
            is_asked=bool(self._request.recipes),
            deadlines=Deadlines(
                explore_s=now + slice_s * _TRIALS_SHARE,
                relieve_s=now + slice_s * _RELIEF_SHARE,
                rank_s=now + slice_s + bench.held_out_s - _RANKING_S,
            ),
            progress=self._watch,
        )

    def _golden_of(self, variant: Variant, plan: ProfilePlan) -> GoldenSet:
        runtime = plan.runtime(variant.kind)
        key = (variant.title, runtime.threads)
        if key not in self._golden:
            with self._watch.stage("choosing golden vectors", None):
                self._golden[key] = choose_vectors(
                    variant.path,
                    variant.kind,
                    options=SessionOptions(threads=runtime.threads),
                    samples=self._material.samples,
                    output_step=variant.recipe.output_step,
                    source=self._material.data_source,
                )
        return self._golden[key]

    def _remarks(self, verdict: Verdict, bench: Bench) -> tuple[str, ...]:
        said = list(self._material.normalized.remarks)
        said.append(_DATA_REMARKS[self._material.data_source])
        if self._kitchen.calibration.samples and self._material.calibration is None:
            said.append(
                "Calibration and validation data are the same: nothing that was held out was used "
                "for ranges."
                if self._request.calibration is not None and bench.holds_out
                else "There are no calibration data: ranges were taken from the validation data, "
                "which flatters int8."
            )
        if self._kitchen.calibration.is_cut:
            said.append(
                f"There was time to calibrate on {self._kitchen.calibration.samples} samples: "
                "give more with --search-time."
            )
        if both := len(self._kitchen.calibration.seen & bench.seen_held_out):
            said.append(
                f"{both} of the samples held out from the choice are calibration data, too, which "
                "flatters int8: give others."
            )
        if self._material.data is not None and not bench.holds_out:
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
            if drop > self._request.max_drop:
                said.append(
                    f"On the samples held out from the choice {winner.title} is {drop:.4f} below "
                    "float32, more than was allowed: give more validation data."
                )
        said += self._kitchen.remarks
        if not bench.metric.judges_truth:
            said.append(
                f"The metric {bench.metric.name} compares with the float32 model, not with truth."
            )
        said += verdict.accuracy.remarks
        return tuple(dict.fromkeys(text for text in said if text))

    def _contents(
        self, plan: ProfilePlan, variant: Variant, golden: GoldenSet, report: Report
    ) -> Contents:
        request, source = self._request, self._material.source
        runtime = plan.runtime(variant.kind)
        size = external.size_bytes(variant.path)
        facts = read_facts(variant.path) if variant.kind is _ONNX else ModelFacts(size_bytes=size)
        needs, kitchen = variant.recipe.needs, self._kitchen
        ranges = kitchen.sampled if needs.samples else kitchen.calibration
        needs_ranges = needs.samples or needs.estimator is not None
        return Contents(
            name=request.name,
            version=request.version,
            profile=plan.profile,
            runtime=runtime,
            model=variant.path,
            signature=source.signature,
            golden=golden.golden,
            golden_data=golden.data,
            labels=request.labels,
            preprocess=request.preprocess,
            postprocess=request.postprocess,
            report=report_bytes(report),
            min_runtime_version=min_runtime_version(runtime, variant.recipe, facts),
            features=_relied_on(variant.recipe, plan.profile),
            ir=facts.ir,
            opset=facts.opset,
            peak_ram_bytes=report.peak_ram_bytes,
            provenance=Provenance(
                source_name=source.origin.name,
                source_sha256=source.sha256,
                recipe=variant.title,
                calibration_sha256=ranges.sha256 if needs_ranges else None,
                git_commit=git_commit(source.origin),
                tools=tool_versions(
                    environments.LITERT.pins if variant.recipe.needs.runtime is _LITERT else ()
                ),
            ),
            beside=operators_of(variant, run=self._workshop.run) if variant.kind is _ONNX else {},
        )


def _host_remarks(plan: ProfilePlan, request: BuildRequest, host: Host) -> list[str]:
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
        said.append(
            "Objective latency chose by accuracy, where half of what may be lost counts as none, "
            "then size, and of about one size not what is slower here."
        )
    if said and request.max_ms is not None:
        said.append(f"--max-ms was not checked: it needs a measurement on {profile.name}.")
    if host.int8_saturates and not profile.cpu.int8_saturates and _has_int8(plan):
        said.append(
            f"8-bit products can saturate on this machine and not on {profile.name}: weights of 7 "
            "bits were tried, since 8 could not be proved; build on ARM or on a machine with VNNI."
        )
    return said


def _has_int8(plan: ProfilePlan) -> bool:
    return any(recipe.needs.full_range is not None for recipe in plan.recipes)


_DATA_REMARKS: Final = {
    "validation": "",
    "calibration": "There are no validation data: figures are from the calibration data.",
    "generated": "There are no data: figures are from made-up inputs and say only that the "
    "numbers are close.",
}


def _relied_on(recipe: Recipe, profile: Profile) -> tuple[str, ...]:
    """Features without which the variant's products could saturate (x86-64 only)."""
    if recipe.needs.full_range is not True or profile.cpu.arch is not Arch.X86_64:
        return ()
    dot_products = sorted(VNNI & set(profile.cpu.features))
    return tuple(dot_products[:1])


def _named(errors: Sequence[ErrorSample], labels: Sequence[str]) -> tuple[ErrorSample, ...]:
    """With the names of the classes, where the request has them."""

    def name(text: str) -> str:
        return labels[int(text)] if text.isdigit() and int(text) < len(labels) else text

    return tuple(
        msgspec.structs.replace(error, expected=name(error.expected), got=name(error.got))
        for error in errors
    )
