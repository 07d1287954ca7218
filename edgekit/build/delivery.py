"""From a request to bundles: what is kept is found, the rest is made, all is signed and written.

Invariant: what leaves the scratch directory are whole bundles; the key is used after everything
else is done, and here alone.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from edgekit.build.builder import make
from edgekit.build.cache import Cache
from edgekit.build.data import Data, open_data
from edgekit.build.finished import Finished, Records
from edgekit.build.gate import Gate, show
from edgekit.build.pack import Packed, Sealed, open_output, signed, write
from edgekit.build.plan import Plan
from edgekit.build.prebuilt import build_prebuilt, prebuilt_kind
from edgekit.build.progress import Progress, Silent, Stopwatch
from edgekit.build.provenance import git_commit
from edgekit.build.request import BuildRequest
from edgekit.build.result import BuildResult, Built
from edgekit.build.scratch import open_scratch
from edgekit.build.shelf import Shelf
from edgekit.build.turns import Considerate, open_turns

__all__ = ["CONTENDERS", "Prepared", "build", "finish", "prepare", "recall"]

CONTENDERS: Final = "contenders"
"""Directory beside the bundles: a release of all in the output must not have them."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """All that can be made without the key, and nothing written."""

    plan: Plan
    finished: tuple[Finished, ...]
    """In the order of the request's profiles; empty after a dry run."""

    @classmethod
    def of(cls, finished: tuple[Finished, ...]) -> Prepared:
        return cls(plan=Plan(profiles=tuple(f.plan for f in finished)), finished=finished)


def build(
    request: BuildRequest,
    *,
    progress: Progress | None = None,
    cache: Cache | None = None,
    gate: Gate | None = None,
) -> BuildResult:
    """Make the best bundle of a model for each profile; `gate` may stop all of them.

    With a cache, what was built of the very same before is signed and written again. Errors:
    `Misused` for a wrong request, `Refused` for a model, data or profile that do not do; an output
    directory that was made for it is gone then.
    """
    watch = progress or Silent()
    if request.dry_run:
        return _build(request, watch, cache, gate)
    with open_output(request.output):
        return _build(request, watch, cache, gate)


def _build(
    request: BuildRequest, watch: Progress, cache: Cache | None, gate: Gate | None
) -> BuildResult:
    if (kind := prebuilt_kind(request)) is not None:
        return build_prebuilt(request, kind, Stopwatch(watch), gate=gate)
    with open_scratch() as scratch:
        prepared = prepare(request, scratch=scratch, progress=watch, cache=cache)
        if request.dry_run:
            return BuildResult(plan=prepared.plan, built=())
        return finish(request, prepared, progress=watch, gate=gate)


def prepare(
    request: BuildRequest, *, scratch: Path, progress: Progress | None, cache: Cache | None
) -> Prepared:
    """Make all but signatures, in `scratch`; the request's key is not looked at. Errors: as
    `build`."""
    began = time.monotonic()
    data = _data(request)
    records = Records.of(request, cache, data)
    known = {} if request.dry_run else records.find(into=scratch)
    missing = tuple(p for p in request.profiles if p.name not in known)
    if missing:
        share = len(missing) / len(request.profiles)
        with open_turns() as turns:
            made = make(
                replace(
                    request, key=None, profiles=missing, search_time_s=request.search_time_s * share
                ),
                data["calibration"],
                data["validation"],
                scratch=scratch,
                watch=Stopwatch(Considerate(progress or Silent(), turns), turns.now),
                turns=turns,
                shelf=Shelf(cache=cache, data=records.digests, scratch=scratch),
                began=began,
            )
        if request.dry_run:
            return Prepared(plan=made.plan, finished=())
        if not turns.disturbed:
            records.keep(made.source, made.finished)
        known |= {finished.plan.profile.name: finished for finished in made.finished}
    return Prepared.of(tuple(known[profile.name] for profile in request.profiles))


def recall(request: BuildRequest, *, scratch: Path, cache: Cache) -> Prepared | None:
    """All that is asked for, where the cache has it. Errors: as `build`."""
    data = _data(request)
    known = Records.of(request, cache, data).find(into=scratch)
    if len(known) < len(request.profiles):
        return None
    return Prepared.of(tuple(known[profile.name] for profile in request.profiles))


def finish(
    request: BuildRequest,
    prepared: Prepared,
    *,
    progress: Progress | None = None,
    gate: Gate | None = None,
) -> BuildResult:
    """Sign, try and write what was made, into a directory that is there, all or nothing.

    Errors: `Refused`.
    """
    watch = progress or Silent()
    commit = git_commit(request.model) if isinstance(request.model, Path) else None
    # all are signed and tried before one is written: one that refuses leaves nothing behind
    sealed = [signed(f.sealed, request.key, git_commit=commit) for f in prepared.finished]
    others = [
        [signed(one, request.key, git_commit=commit) for one in f.contenders]
        for f in prepared.finished
    ]
    if gate is not None:
        profiles = [finished.plan.profile for finished in prepared.finished]
        show(gate, zip(profiles, sealed, strict=True), watch)
    with watch.stage("packing", len(sealed)) as advance:
        bundles = write(sealed, request.output, advance=advance)
        contenders = [_write_contenders(listed, request.output) for listed in others]
    return BuildResult(
        plan=prepared.plan,
        built=tuple(
            Built(
                report=finished.report,
                bundle=bundle,
                contenders=beside,
                built_at=finished.built_at,
                cached=finished.cached,
            )
            for finished, bundle, beside in zip(prepared.finished, bundles, contenders, strict=True)
        ),
    )


def _write_contenders(sealed: Sequence[Sealed], output: Path) -> tuple[Packed, ...]:
    if not sealed:
        return ()
    directory = output / CONTENDERS
    with open_output(directory):
        return write(sealed, directory, advance=lambda steps: None)


def _data(request: BuildRequest) -> dict[str, Data | None]:
    """DATA by what it is for. Errors: `Misused`, `DataRejected`."""
    named = {
        "calibration": None if _is_same(request) else request.calibration,
        "validation": request.validation,
    }
    return {
        role: None if name is None else open_data(name, preprocess=request.preprocess)
        for role, name in named.items()
    }


def _is_same(request: BuildRequest) -> bool:
    """Whether calibration and validation data are one: then what is held out calibrates nothing."""
    names = (request.calibration, request.validation)
    if None in names:
        return False
    first, second = (Path(str(name)) for name in names)
    return first == second or (first.exists() and second.exists() and first.samefile(second))
