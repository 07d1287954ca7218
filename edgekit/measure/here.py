"""Measuring a bundle or a model on this machine, in a process of its own.

Invariant: what is run is a stranger's until proven otherwise: a child with limits runs it, and of a
bundle only files of the digests that its envelope names.
"""

from __future__ import annotations

import resource
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from edgekit.build.forecast import Tracer, estimate_of
from edgekit.build.host import read_host
from edgekit.build.model_file import ModelFile
from edgekit.build.report import Estimate
from edgekit.build.scratch import open_scratch
from edgekit_contract.errors import Misused, Refused
from edgekit_contract.manifest import Manifest
from edgekit_contract.profile import Profile, RuntimeKind
from edgekit_contract.trust import checked_pieces, open_bundle
from edgekit_converters import external, isolation
from edgekit_converters.proof import generated
from edgekit_converters.sources import open_source
from edgekit_converters.tensorfile import read_tensors, write_tensors
from edgekit_runtime.golden import read_golden
from edgekit_runtime.session import SessionOptions, Tensors, installed_runtimes, open_session
from edgekit_runtime.timing import Timing, time_runs

__all__ = ["Measured", "measure_here", "run"]

BUNDLE: Final = ".ekb"
_MOST_FEEDS: Final = 8
_AXIS: Final = 32
"""Length of open axes but the first where inputs are made up."""
_LOADING_S: Final = 60.0


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """What one bundle or model took here."""

    title: str
    timing: Timing
    rss_bytes: int
    """Greatest resident memory of the process, runtime and interpreter included."""
    runtime: str
    threads: int
    machine: str
    inputs: str
    """`golden`, those of the bundle, or `made-up`."""
    profile: str | None = None
    estimate: Estimate | None = None
    """Of `profile`: computed, where a measurement is of this machine."""


@dataclass(frozen=True, kw_only=True)
class _Subject:
    title: str
    model: Path
    kind: RuntimeKind
    threads: int
    feeds: tuple[Path, ...]
    inputs: str


def measure_here(path: Path, *, profile: Profile | None, budget_s: float) -> Measured:
    """Time a `.ekb`, `.onnx` or `.tflite` file; an estimate for `profile` beside, if given.

    Errors: `BundleRejected`, `Refused`, `Misused` where the file cannot be read.
    """
    with open_scratch() as scratch, isolation.Workshop() as workshop:
        if path.suffix == BUNDLE:
            subject = _of_bundle(path, scratch)
        else:
            subject = _of_model(path, scratch, workshop, profile)
        installed = installed_runtimes()
        if subject.kind not in installed:
            raise Refused(
                f"{subject.title} needs {subject.kind.value}, which is not installed here: "
                "pip install 'edgekit[host]', or 'edgekit[host,tflite]' for LiteRT."
            )
        size_bytes = external.size_bytes(subject.model)
        answer = workshop.run(
            "measuring",
            "edgekit.measure.here:run",
            {
                "model": str(subject.model),
                "kind": subject.kind.value,
                "feeds": [str(feed) for feed in subject.feeds],
                "threads": subject.threads,
                "budget_s": budget_s,
            },
            isolation.limits_for(size_bytes, timeout_s=_LOADING_S + 4 * budget_s),
        )
        return Measured(
            title=subject.title,
            timing=msgspec.convert(answer["timing"], Timing),
            rss_bytes=answer["rss_bytes"],
            runtime=f"{subject.kind.value} {installed[subject.kind]}",
            threads=subject.threads,
            machine=read_host().title,
            inputs=subject.inputs,
            profile=profile.name if profile else None,
            estimate=_estimate(subject, profile, workshop) if profile else None,
        )


def run(
    model: str, kind: str, feeds: list[str], threads: int, budget_s: float
) -> dict[str, object]:
    """In the child: load, run, and say how long it took."""
    session = open_session(RuntimeKind(kind), Path(model), SessionOptions(threads=threads))
    tensors = [read_tensors(Path(feed)) for feed in feeds]
    timing = time_runs(session, tensors, budget_s=budget_s)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"timing": msgspec.to_builtins(timing), "rss_bytes": peak}


def _estimate(subject: _Subject, profile: Profile, workshop: isolation.Workshop) -> Estimate | None:
    runtime = profile.runtime(subject.kind)
    if runtime is None:
        return None
    tracer = Tracer(subject.feeds[0], run=workshop.run)
    model = ModelFile(path=subject.model, kind=subject.kind)
    return estimate_of(model, profile.cpu, tracer, threads=runtime.threads)


def _of_bundle(path: Path, scratch: Path) -> _Subject:
    bundle = open_bundle(path)
    manifest = bundle.manifest
    directory = scratch / "bundle"
    for entry in manifest.files:
        target = directory / entry.path
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as stream:
            stream.writelines(checked_pieces(entry, bundle.archive.pieces(entry.path)))
    feeds = [scratch / f"golden-{index}.tensors" for index in range(_MOST_FEEDS)]
    vectors = list(_golden(manifest, directory))[:_MOST_FEEDS]
    for feed, tensors in zip(feeds, vectors, strict=False):
        write_tensors(feed, tensors)
    return _Subject(
        title=manifest.title,
        model=directory / manifest.model,
        kind=manifest.runtime,
        threads=min(manifest.threads, read_host().cores),
        feeds=tuple(feeds[: len(vectors)]),
        inputs="golden",
    )


def _golden(manifest: Manifest, directory: Path) -> Iterator[Tensors]:
    data = (directory / manifest.golden.path).read_bytes()
    for vector in read_golden(data, manifest.golden, manifest.inputs, manifest.outputs):
        yield vector.inputs


def _of_model(
    path: Path, scratch: Path, workshop: isolation.Workshop, profile: Profile | None
) -> _Subject:
    if not path.is_file():
        what = "no file" if path.exists() else "not there"
        raise Misused(f"{path} is {what}: name a bundle (.ekb) or a model.")
    source = open_source(path, scratch=scratch, run=workshop.run)
    runtime = profile.runtime(source.kind) if profile is not None else None
    feed = scratch / "made-up.tensors"
    write_tensors(feed, generated(source.signature.inputs, seed=0, axis_length=_AXIS))
    return _Subject(
        title=path.name,
        model=source.path,
        kind=source.kind,
        threads=min(runtime.threads if runtime else 1, read_host().cores),
        feeds=(feed,),
        inputs="made-up",
    )
