"""What a bundle holds of a variant: the model, golden vectors, and what is known of both.

Invariant: golden vectors are those that the profile's own runtime settings give; they are chosen
once for a variant.
"""

from __future__ import annotations

from typing import Final

from edgekit.build.kitchen import Variant
from edgekit.build.minimal import operators_of
from edgekit.build.pack import Contents, report_bytes
from edgekit.build.pantry import Pantry
from edgekit.build.plan import ProfilePlan, min_runtime_version
from edgekit.build.progress import Stopwatch
from edgekit.build.provenance import git_commit, tool_versions
from edgekit.build.report import Report
from edgekit.build.request import BuildRequest
from edgekit.build.vectors import GoldenSet, choose_vectors
from edgekit_contract.manifest import Provenance
from edgekit_contract.profile import VNNI, Arch, Profile, RuntimeKind
from edgekit_converters import environments, external, isolation
from edgekit_converters.facts import ModelFacts, read_facts
from edgekit_converters.recipes.recipe import Recipe
from edgekit_runtime.session import SessionOptions

__all__ = ["Bundling"]

_ONNX: Final = RuntimeKind.ONNXRUNTIME
_LITERT: Final = RuntimeKind.LITERT


class Bundling:
    """Of the variants of one build."""

    def __init__(
        self,
        request: BuildRequest,
        pantry: Pantry,
        *,
        run: isolation.Run,
        watch: Stopwatch,
    ) -> None:
        self._request, self._pantry, self._material = request, pantry, pantry.material
        self._run, self._watch = run, watch
        self._golden: dict[tuple[str, int], GoldenSet] = {}

    def golden_of(self, variant: Variant, plan: ProfilePlan) -> GoldenSet:
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
                    run=self._run,
                )
        return self._golden[key]

    def contents(
        self, plan: ProfilePlan, variant: Variant, golden: GoldenSet, report: Report
    ) -> Contents:
        request, source = self._request, self._material.source
        runtime = plan.runtime(variant.kind)
        size = external.size_bytes(variant.path)
        facts = read_facts(variant.path) if variant.kind is _ONNX else ModelFacts(size_bytes=size)
        needs, pantry = variant.recipe.needs, self._pantry
        ranges = pantry.sampled if needs.samples else pantry.calibration
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
                source_name=source.title,
                source_sha256=source.sha256,
                recipe=variant.title,
                calibration_sha256=ranges.sha256 if needs_ranges else None,
                git_commit=None if source.origin is None else git_commit(source.origin),
                tools=source.versions
                | tool_versions(
                    environments.LITERT.pins if variant.recipe.needs.runtime is _LITERT else ()
                ),
            ),
            beside=operators_of(variant, run=self._run) if variant.kind is _ONNX else {},
        )


def _relied_on(recipe: Recipe, profile: Profile) -> tuple[str, ...]:
    """Features without which the variant's products could saturate (x86-64 only)."""
    if recipe.needs.full_range is not True or profile.cpu.arch is not Arch.X86_64:
        return ()
    dot_products = sorted(VNNI & set(profile.cpu.features))
    return tuple(dot_products[:1])
