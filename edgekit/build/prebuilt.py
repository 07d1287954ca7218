"""A model of a vendor's tool, packed as it is: there is one variant, and nothing to choose.

Its golden vectors are what the runtime's plug-in computes here; where the vendor's runtime does not
run on this machine, they are given beside the inputs, as the vendor's emulator or a device computed
them. Invariant: the file is only read, and where it is run, first in a child process.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from edgekit.build.data import Data, open_data
from edgekit.build.gate import Gate, show
from edgekit.build.host import read_host
from edgekit.build.memory import peak_ram_bytes
from edgekit.build.pack import Contents, report_bytes, seal, write
from edgekit.build.plan import Plan, ProfilePlan
from edgekit.build.progress import Stopwatch
from edgekit.build.provenance import git_commit, tool_versions
from edgekit.build.report import Candidate, ModelCard, Outcome, Report
from edgekit.build.request import BuildRequest
from edgekit.build.result import BuildResult, Built
from edgekit.build.samples import LABELS, DataRejected, Row, Sample
from edgekit.build.scratch import open_scratch
from edgekit.build.vectors import CANDIDATES, GoldenSet, choose_vectors, given_vectors
from edgekit_contract import limits
from edgekit_contract.errors import Misused, Refused
from edgekit_contract.manifest import DTYPES, Provenance, TensorSpec
from edgekit_contract.profile import Profile, Runtime, RuntimeKind
from edgekit_converters import isolation
from edgekit_converters.proof import Signature, generated
from edgekit_converters.recipes.recipe import Ingredients, Needs, Recipe
from edgekit_converters.sources import sha256_of
from edgekit_converters.tensorfile import write_tensors
from edgekit_runtime.plugins import PluginBroken, find_plugin, plugin_for_file
from edgekit_runtime.session import RuntimeMissing, SessionOptions, installed_runtimes

__all__ = ["OUTPUTS", "build_prebuilt", "prebuilt_kind"]

OUTPUTS: Final = "outputs/"
"""What the names of arrays with given outputs begin with, in validation data."""
_STEP: Final = 1 / 255
"""Accelerators compute with 8 bits, whatever they hand out."""
_GENERATED: Final = 16
_AXIS_LENGTH: Final = 8
_OWN: Final = frozenset({RuntimeKind.ONNXRUNTIME, RuntimeKind.LITERT})
"""Whose models are not packed as they are: a build makes something of them."""


def _not_made(ingredients: Ingredients) -> None:
    raise RuntimeError("a prebuilt model is not made")


_RECIPE: Final = Recipe(
    id="prebuilt",
    title="packed as it was given",
    needs=Needs(),
    make=_not_made,
    output_step=_STEP,
)


@dataclass(frozen=True, kw_only=True)
class _Prebuilt:
    """A model file and what is known of running it."""

    path: Path
    sha256: str
    signature: Signature
    golden: GoldenSet
    feeds: Path | None
    """Tensors that it has run on; None: it does not run here."""
    samples: int


def prebuilt_kind(request: BuildRequest) -> RuntimeKind | None:
    """The runtime that the model is prebuilt for, or None where a build has to make something.

    It is the one that was named, else an installed plug-in's that takes files of this name and that
    a profile lists, else the only runtime that each profile lists. Errors: `Misused`.
    """
    if (named := request.runtime) is not None:
        if named in _OWN:
            raise Misused(
                f"--runtime {named.value}: models of {named.value} are built, not packed as they "
                "are: leave it out."
            )
        _file(request)
        return named
    listed = {runtime.kind for profile in request.profiles for runtime in profile.runtimes}
    if not any(kind.is_plugin for kind in listed):
        return None
    found = plugin_for_file(request.model) if isinstance(request.model, Path) else None
    if found is None and len(listed) == 1:
        found = next(iter(listed))
    return found if found in listed else None


def _file(request: BuildRequest) -> Path:
    """Errors: `Misused` for a callable."""
    if isinstance(request.model, str):
        raise Misused(f"{request.model} is a callable, and what is prebuilt is a file: name it.")
    return request.model


def _plan(kind: RuntimeKind, profiles: Sequence[Profile]) -> Plan:
    """Errors: `Refused` for a profile that has no such runtime."""
    plans = []
    for profile in profiles:
        runtime = profile.runtime(kind)
        if runtime is None:
            held = ", ".join(r.kind.value for r in profile.runtimes)
            raise Refused(
                f"{profile.name} has no {kind.value}, only {held}: choose another profile, or add "
                "a [[runtimes]] table to a copy of it."
            )
        plans.append(
            ProfilePlan(profile=profile, runtimes=(runtime,), recipes=(_RECIPE,), skipped=())
        )
    return Plan(profiles=tuple(plans))


def build_prebuilt(
    request: BuildRequest, kind: RuntimeKind, watch: Stopwatch, *, gate: Gate | None = None
) -> BuildResult:
    """Pack the model for each profile; `gate` may stop all. Errors: `Misused`, `Refused`,
    `DataRejected`."""
    plan = _plan(kind, request.profiles)
    if request.dry_run:
        return BuildResult(plan=plan, built=())
    with open_scratch() as scratch:
        built = _execute(request, kind, plan, scratch=scratch, watch=watch, gate=gate)
    return BuildResult(plan=plan, built=built)


def _execute(
    request: BuildRequest,
    kind: RuntimeKind,
    plan: Plan,
    *,
    scratch: Path,
    watch: Stopwatch,
    gate: Gate | None,
) -> tuple[Built, ...]:
    name = request.validation or request.calibration
    data = None if name is None else open_data(name, preprocess=request.preprocess)
    with watch.stage("reading the model", None):
        # children work elsewhere
        found = _open(_file(request).absolute(), kind, data, scratch=scratch)
    decided = [_decide(request, plan, found, watch) for plan in plan.profiles]
    sealed = [seal(contents, request.key) for _, contents in decided]
    if gate is not None:
        show(gate, zip(request.profiles, sealed, strict=True), watch)
    with watch.stage("packing", len(decided)) as advance:
        bundles = write(sealed, request.output, advance=advance)
    return tuple(
        Built(report=report, bundle=bundle)
        for (report, _), bundle in zip(decided, bundles, strict=True)
    )


def _open(path: Path, kind: RuntimeKind, data: Data | None, *, scratch: Path) -> _Prebuilt:
    try:
        size_bytes, digest = path.stat().st_size, sha256_of(path)
    except OSError as error:
        raise Misused(f"cannot read {path}: {error.strerror}; check the path.") from error
    if not 0 < size_bytes <= limits.MAX_BUNDLE_BYTES:
        raise Refused(f"{path.name} has {size_bytes} bytes, a bundle holds 1 to 4 GiB.")
    if kind in installed_runtimes():
        return _run(path, kind, data, digest=digest, size_bytes=size_bytes, scratch=scratch)
    if data is None:
        raise _does_not_run(kind)
    signature, rows = _given(data, kind)
    return _Prebuilt(
        path=path,
        sha256=digest,
        signature=signature,
        golden=given_vectors(rows, output_step=_STEP, source="given"),
        feeds=None,
        samples=len(rows),
    )


def _run(
    path: Path,
    kind: RuntimeKind,
    data: Data | None,
    *,
    digest: str,
    size_bytes: int,
    scratch: Path,
) -> _Prebuilt:
    """By the plug-in on this machine."""
    words = {"path": str(path), "kind": kind.value, "name": path.name}
    bounds = isolation.limits_for(size_bytes)
    step = f"reading {path.name}"
    try:
        told = isolation.run(step, "edgekit_converters.proof:load", words, bounds)
    except isolation.StepFailed as error:
        raise Refused(
            f"{path.name} could not be read: {error.detail}; make it again with the vendor's tool."
        ) from error
    signature = msgspec.convert(told, Signature)

    def samples() -> Iterator[Sample]:
        if data is not None:
            yield from data.samples(signature.inputs)
            return
        for seed in range(_GENERATED):
            feeds = generated(signature.inputs, seed=seed, axis_length=_AXIS_LENGTH)
            yield Sample(feeds=feeds, labels=None, number=seed)

    first = next(samples(), None)
    if first is None:
        raise DataRejected("the data hold no sample: give at least one.")
    feeds = scratch / "feeds.npz"
    write_tensors(feeds, first.feeds)
    golden = choose_vectors(
        path,
        kind,
        options=SessionOptions(),
        samples=samples,
        output_step=_STEP,
        source="validation" if data is not None else "generated",
    )
    return _Prebuilt(
        path=path,
        sha256=digest,
        signature=signature,
        golden=golden,
        feeds=feeds,
        samples=sum(1 for _ in islice(samples(), CANDIDATES)),
    )


def _given(
    data: Data, kind: RuntimeKind
) -> tuple[Signature, list[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]]]:
    """Inputs and outputs of a model that does not run here, and its signature from their shapes:
    a row of an array is a whole tensor, batch axis and all."""
    rows: list[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]] = []
    for row in islice(data.rows(), CANDIDATES):
        rows.append((_named(row, is_output=False), _named(row, is_output=True)))
    if not rows or not rows[0][0] or not rows[0][1]:
        raise _does_not_run(kind)
    inputs, outputs = rows[0]
    return Signature(inputs=_specs(inputs, data), outputs=_specs(outputs, data)), rows


def _named(row: Row, *, is_output: bool) -> dict[str, np.ndarray]:
    return {
        name.removeprefix(OUTPUTS): np.ascontiguousarray(array).reshape(array.shape)
        for name, array in row.items()
        if name.startswith(OUTPUTS) == is_output and name != LABELS
    }


def _specs(tensors: Mapping[str, np.ndarray], data: Data) -> tuple[TensorSpec, ...]:
    for name, array in tensors.items():
        if array.dtype.name not in DTYPES:
            raise DataRejected(
                f"{data.title} has {array.dtype} in {name!r}: tensors are numbers, save such."
            )
    return tuple(
        TensorSpec(name=name, dtype=array.dtype.name, shape=array.shape)
        for name, array in tensors.items()
    )


def _does_not_run(kind: RuntimeKind) -> Refused:
    why = ""
    try:
        find_plugin(kind)
    except PluginBroken as error:
        why = f" ({error.detail})"
    except RuntimeMissing:
        pass  # it is not that a person would want it here
    return Refused(
        f"{kind.value} does not run on this machine{why}: give --validation FILE.npz with the "
        f"model's inputs and, as {OUTPUTS}NAME, what they give on a device or in the vendor's "
        "emulator."
    )


def _decide(
    request: BuildRequest, plan: ProfilePlan, found: _Prebuilt, watch: Stopwatch
) -> tuple[Report, Contents]:
    profile, runtime, size_bytes = plan.profile, plan.runtimes[0], found.path.stat().st_size
    remarks = [_REMARKS[found.golden.golden.source].format(runtime=runtime.kind.value)]
    remarks += found.golden.remarks
    if found.feeds is not None:
        peak = peak_ram_bytes(
            found.path, kind=runtime.kind, feeds=found.feeds, threads=runtime.threads
        )
    else:
        peak = size_bytes
        remarks.append("Memory was not measured: the size of the file stands for it.")
    report = Report(
        name=request.name,
        version=request.version,
        profile=profile.name,
        runtime=f"{runtime.kind.value} {runtime.version}",
        threads=runtime.threads,
        measured_threads=0,
        objective=request.objective,
        metric="none",
        max_drop=request.max_drop,
        measured_on=read_host().title,
        on_target=False,
        calibration_samples=0,
        validation_samples=found.samples,
        chosen=_RECIPE.id,
        candidates=(
            Candidate(
                recipe=_RECIPE.id,
                outcome=Outcome.CHOSEN,
                reason=_RECIPE.title,
                size_bytes=size_bytes,
            ),
        ),
        normalization=(),
        remarks=tuple(text for text in remarks if text),
        peak_ram_bytes=peak,
        model=ModelCard(
            operators={},
            opset=None,
            parameters=0,
            size_bytes=size_bytes,
            inputs=found.signature.inputs,
            outputs=found.signature.outputs,
        ),
        seconds=dict(watch.seconds),
    )
    return report, _contents(request, profile, runtime, found, report)


_REMARKS: Final = {
    "validation": "",
    "generated": "There are no data: golden vectors are of made-up inputs.",
    "given": "{runtime} does not run on this machine: golden vectors are as they were given.",
}


def _contents(
    request: BuildRequest, profile: Profile, runtime: Runtime, found: _Prebuilt, report: Report
) -> Contents:
    return Contents(
        name=request.name,
        version=request.version,
        profile=profile,
        runtime=runtime,
        model=found.path,
        signature=found.signature,
        golden=found.golden.golden,
        golden_data=found.golden.data,
        labels=request.labels,
        preprocess=request.preprocess,
        postprocess=request.postprocess,
        report=report_bytes(report),
        min_runtime_version=runtime.version,
        features=(),
        ir=None,
        opset=None,
        peak_ram_bytes=report.peak_ram_bytes,
        provenance=Provenance(
            source_name=found.path.name,
            source_sha256=found.sha256,
            recipe=_RECIPE.id,
            git_commit=git_commit(found.path),
            tools=tool_versions(),
        ),
    )
