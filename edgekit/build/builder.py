"""The build: material, plan, calibration, search, choice, seal. Wiring only.

Invariant: the model file is only read, and nothing is written but in the scratch directory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Final

import msgspec

from edgekit.build.bench import Bench
from edgekit.build.bundling import Bundling
from edgekit.build.choice import Bounds
from edgekit.build.contest import Contest
from edgekit.build.data import Data
from edgekit.build.finished import Finished
from edgekit.build.forecast import Forecast, Tracer
from edgekit.build.host import read_host
from edgekit.build.kitchen import Kitchen, Variant
from edgekit.build.material import Material, gather, model_card, read_litert
from edgekit.build.memory import peak_ram_bytes
from edgekit.build.metrics import resolve_metric
from edgekit.build.minimal import in_ort_format
from edgekit.build.minimal import remark as minimal_remark
from edgekit.build.model_file import ModelFile, Options
from edgekit.build.notebook import Notebook, default_path
from edgekit.build.pack import Contents, Sealed, seal
from edgekit.build.pantry import Pantry
from edgekit.build.plan import Plan, ProfilePlan, asked_for, make_plan
from edgekit.build.progress import Stopwatch
from edgekit.build.ranking import Ranking
from edgekit.build.remarks import data_remarks, host_remarks, plan_remarks
from edgekit.build.report import ErrorSample, Report
from edgekit.build.request import BuildRequest, Objective
from edgekit.build.search import Search
from edgekit.build.shelf import Shelf
from edgekit.build.timetable import CALIBRATION_SHARE, deadlines
from edgekit.build.tools import missing_tools
from edgekit.build.trials import Trials
from edgekit.build.turns import DISTURBED, Turns
from edgekit_contract import limits
from edgekit_contract.errors import Refused
from edgekit_contract.profile import RuntimeKind
from edgekit_converters import isolation
from edgekit_converters.calibration.estimators import Estimator
from edgekit_converters.facts import weight_bytes
from edgekit_converters.quantization.selection import STATIC_OPERATORS
from edgekit_converters.recipes import all_recipes
from edgekit_converters.sources import Source, open_source
from edgekit_converters.tensorfile import read_tensors
from edgekit_runtime.session import SessionOptions

__all__ = ["Made", "make"]

_ONNX: Final = RuntimeKind.ONNXRUNTIME
_LITERT: Final = RuntimeKind.LITERT
_PACKING_BYTES: Final = limits.MIB // 2
"""What a bundle needs besides model and golden vectors, when planning against a budget."""


@dataclass(frozen=True, kw_only=True)
class Made:
    """What a plan came to."""

    source: Source
    plan: Plan
    finished: tuple[Finished, ...]
    """In the order of the request's profiles; empty after a dry run."""


def make(
    request: BuildRequest,
    calibration: Data | None,
    validation: Data | None,
    *,
    scratch: Path,
    watch: Stopwatch,
    turns: Turns,
    shelf: Shelf,
    began: float,
) -> Made:
    """Plan the request and carry the plan out, in `scratch`. `began` is when by `turns.now`.

    Errors: `Refused` for a model, data or profile that do not do.
    """
    with isolation.Workshop(neighbours=turns) as workshop:
        with watch.stage("reading the model", None):
            source = open_source(
                request.model,
                scratch=scratch,
                run=workshop.run,
                conversion_s=request.conversion_time_s,
            )
            material = gather(
                source,
                calibration,
                validation,
                normalizes=any(asked_for(r, request.recipes) for r in all_recipes()[1:]),
                scratch=scratch,
                run=workshop.run,
                shelf=shelf,
                clock=turns.now,
            )
        installing = turns.now()
        missing = missing_tools(source.kind, request, watch, turns)
        began += turns.now() - installing  # once for all builds, so no time of this one
        plan = make_plan(
            source.kind,
            given=material.given_facts,
            normalized=material.normalized_facts,
            changed=material.is_simplified,
            profiles=request.profiles,
            recipes=all_recipes(),
            patterns=request.recipes,
            has_data=material.data is not None,
            host_saturates=read_host().int8_saturates,
            missing=missing,
        )
        if request.dry_run:
            return Made(source=source, plan=plan, finished=())
        work = _Build(
            request,
            plan,
            material,
            scratch=scratch,
            watch=watch,
            workshop=workshop,
            turns=turns,
            began=began,
        )
        return Made(source=source, plan=plan, finished=work.execute())


@dataclass(frozen=True, kw_only=True)
class _Decided:
    """What is to be packed for a profile."""

    plan: ProfilePlan
    report: Report
    contents: Contents
    contenders: tuple[Variant, ...]


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
        turns: Turns,
        began: float,
    ) -> None:
        self._turns = turns
        self._request, self._plan, self._material = request, plan, material
        self._scratch, self._watch, self._workshop = scratch, watch, workshop
        self._ends = began + request.search_time_s
        self._pantry = Pantry(
            material,
            plan.estimators or self._ranking_estimators(),
            workshop,
            scratch=scratch,
            threads=read_host().cores,
            progress=watch,
            is_thrifty=request.objective is Objective.LATENCY,
            calibration_s=request.search_time_s * CALIBRATION_SHARE,
            clock=turns.now,
        )
        self._kitchen = Kitchen(self._pantry, workshop, scratch=scratch)
        self._bundling = Bundling(request, self._pantry, run=workshop.run, watch=watch)
        self._tracer = Tracer(material.feeds, run=workshop.run)
        self._figures = Notebook(request.figures or default_path()).figures()

    def _ranking_estimators(self) -> tuple[Estimator, ...]:
        """Without a recipe that needs ranges nodes are ranked by them, where there can be any."""
        weighted = self._material.normalized_facts.weighted.keys()
        runs_onnx = any(plan.runtimes[0].kind is _ONNX for plan in self._plan.profiles)
        return (Estimator.MINMAX,) if runs_onnx and weighted & STATIC_OPERATORS else ()

    def execute(self) -> tuple[Finished, ...]:
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
            search_time_s=request.search_time_s,
            progress=self._watch,
        )
        decided = [self._decide(plan, bench) for plan in self._plan.profiles]
        source.check_unchanged()
        built_at = datetime.now(timezone.utc).isoformat(timespec="seconds")
        return tuple(
            Finished(
                plan=one.plan,
                report=one.report,
                sealed=seal(one.contents, request.key),
                contenders=tuple(self._seal_contenders(one)),
                built_at=built_at,
            )
            for one in decided
        )

    def _seal_contenders(self, decided: _Decided) -> list[Sealed]:
        """Bundles to be measured: each says of itself that it was not chosen."""
        sealed = []
        for number, variant in enumerate(decided.contenders, start=1):
            plan, feeds = decided.plan, self._material.feeds
            runtime = plan.runtime(variant.kind)
            peak = peak_ram_bytes(
                variant.path, kind=runtime.kind, feeds=feeds, threads=runtime.threads
            )
            if peak > plan.profile.budget.ram_mib * limits.MIB:
                continue  # it could not be chosen, whatever it takes
            remark = f"This bundle holds {variant.title}, which was not chosen, to be measured."
            report = msgspec.structs.replace(
                decided.report,
                runtime=f"{runtime.kind.value} {runtime.version}",
                threads=runtime.threads,
                remarks=(remark, *decided.report.remarks),
                peak_ram_bytes=peak,
            )
            golden = self._bundling.golden_of(variant, plan)
            one = seal(self._bundling.contents(plan, variant, golden, report), self._request.key)
            stem = one.filename.removesuffix(".ekb")
            sealed.append(replace(one, filename=f"{stem}-{number}.ekb"))
        return sealed

    def _decide(self, plan: ProfilePlan, bench: Bench) -> _Decided:
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
        forecast = (
            None if on_target else Forecast(plan, self._tracer, self._figures, host=read_host())
        )
        contest = Contest(
            plan=plan,
            bench=bench,
            options=options,
            objective=request.objective,
            bounds=bounds,
            on_target=on_target,
            turns=self._turns,
            search_time_s=request.search_time_s / len(self._plan.profiles),
            peak_ram_bytes=lambda variant: peak_ram_bytes(
                variant.path,
                kind=variant.kind,
                feeds=self._material.feeds,
                threads=plan.runtime(variant.kind).threads,
            ),
            forecast=forecast,
        )
        verdict = contest.hold(
            self._search(
                plan,
                bench,
                bounds,
                options=options,
                on_target=on_target,
                forecast=forecast if forecast is not None and forecast.is_able else None,
            )
        )
        variant = verdict.winner
        runtime = plan.runtime(variant.kind)
        if runtime.minimal:
            variant = in_ort_format(variant, runtime, scratch=self._scratch, run=self._workshop.run)
        golden = self._bundling.golden_of(variant, plan)
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
            calibration_samples=max(self._pantry.calibration.samples, self._pantry.sampled.samples),
            validation_samples=bench.looked_at,
            chosen=variant.title,
            candidates=verdict.candidates,
            normalization=self._material.normalized.steps,
            remarks=(
                *plan_remarks(plan, request),
                *host_remarks(plan, request, host, verdict.candidates),
                *data_remarks(request, self._material, self._kitchen, bench, verdict),
                *golden.remarks,
                *([minimal_remark(profile.cpu)] if runtime.minimal else []),
                *([DISTURBED] if self._turns.disturbed else []),
            ),
            peak_ram_bytes=verdict.peak_ram_bytes,
            sensitivity=verdict.sensitivity,
            errors=_named(verdict.accuracy.errors, request.labels),
            model=model_card(self._material),
            sizes=self._sizes_of(variant),
            seconds=dict(self._watch.seconds),
        )
        return _Decided(
            plan=plan,
            report=report,
            contents=self._bundling.contents(plan, variant, golden, report),
            contenders=verdict.contenders if request.contenders else (),
        )

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
        forecast: Forecast | None,
    ) -> Search:
        baseline = self._kitchen.make(plan.recipes[0])
        if baseline.failure is not None:
            source = self._material.source
            raise Refused(
                f"{source.title} cannot be converted for {plan.runtimes[0].kind.value} "
                f"({baseline.failure}): choose a profile with {source.kind.value}, or change the "
                "model."
            )
        request, profiles = self._request, self._plan.profiles
        screen = bench.screen(baseline, options)
        trials = Trials(
            plan.recipes,
            self._kitchen,
            screen,
            ranking=Ranking(
                objective=request.objective,
                bounds=bounds,
                on_target=on_target,
                forecast=forecast,
            ),
            deadlines=deadlines(
                now=self._turns.now(),
                ends=self._ends,
                search_time_s=request.search_time_s,
                objective=request.objective,
                selection_s=bench.selection_s,
                held_out_s=bench.held_out_s,
                profiles=len(profiles),
                pending=len(profiles) - profiles.index(plan),
            ),
            clock=self._turns.now,
        )
        return Search(trials, is_asked=bool(request.recipes), progress=self._watch)


def _named(errors: Sequence[ErrorSample], labels: Sequence[str]) -> tuple[ErrorSample, ...]:
    """With the names of the classes, where the request has them."""

    def name(text: str) -> str:
        return labels[int(text)] if text.isdigit() and int(text) < len(labels) else text

    return tuple(
        msgspec.structs.replace(error, expected=name(error.expected), got=name(error.got))
        for error in errors
    )
