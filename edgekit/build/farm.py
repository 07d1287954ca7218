"""The farm: many builds in one call, one after another or wherever an executor runs them.

Invariant: a build that fails takes none of the others along. The private keys stay here: what
comes back from elsewhere is unsigned bytes, which are proved, signed and written here.
"""

from __future__ import annotations

import contextlib
import io
import os
import platform
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import BrokenExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, TypeAlias

from edgekit.build.cache import Cache, find_cache
from edgekit.build.delivery import Prepared, build, finish, prepare, recall
from edgekit.build.executors import is_local, open_executor
from edgekit.build.fingerprint import circumstances
from edgekit.build.finished import receive, send
from edgekit.build.gate import Gate
from edgekit.build.notebook import default_path
from edgekit.build.pack import open_output
from edgekit.build.prebuilt import prebuilt_kind
from edgekit.build.progress import Progress, Silent
from edgekit.build.request import BuildRequest
from edgekit.build.result import BuildResult
from edgekit.build.scratch import open_scratch
from edgekit_contract import names
from edgekit_contract.errors import EdgekitError, Misused, Refused

__all__ = ["Answer", "Order", "Outcome", "build_all", "work"]

Outcome: TypeAlias = "BuildResult | EdgekitError"
"""Of one request."""
Told: TypeAlias = "Callable[[int, Outcome], None]"
"""Hears the number of a request and how it ended, when it has."""
_LOST_HINT: Final = "run fewer at once, or look at what that machine logged"


@dataclass(frozen=True, kw_only=True)
class Order:
    """What a worker is sent."""

    request: BuildRequest
    """Without its key."""
    progress: Progress
    cache: Cache | None
    """Where the worker is on this machine; elsewhere it uses its own, if this is not None."""
    is_local: bool
    source: str
    """Digest of the edgekit that asks."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a worker sends back: plain values, whatever became of the build."""

    parcels: tuple[bytes, ...] = ()
    """See `finished.receive`."""
    refusal: str | None = None
    is_misuse: bool = False
    trace: str | None = None
    """Where edgekit itself failed."""


def build_all(
    requests: Sequence[BuildRequest],
    *,
    executor: str | None = None,
    cache: Cache | None = None,
    progress: Callable[[BuildRequest], Progress] | None = None,
    gate: Callable[[BuildRequest], Gate | None] | None = None,
    told: Told | None = None,
) -> tuple[Outcome, ...]:
    """Build all of these, in this process or on an executor, see `executors.open_executor`.

    Failures come back as they are, in the place of their request. `progress` makes values that can
    be pickled, where there is an executor: they are used in its workers. `gate` makes what tries
    the bundles of a request, here, see `gate.Gate`. Errors: `Misused` where
    two would write the same bundle or the executor is none, `Refused` where it cannot be reached.
    """
    _check_apart(requests)
    watch, gates = progress or _silent, gate or _no_gate
    outcomes: dict[int, Outcome] = {}

    def end(index: int, outcome: Outcome) -> None:
        outcomes[index] = outcome
        if told is not None:
            told(index, outcome)

    orders: dict[int, Order] = {}
    here = executor is not None and is_local(executor)
    for index, request in enumerate(requests):
        try:
            if executor is None or request.dry_run or prebuilt_kind(request) is not None:
                tries = gates(request)
                end(index, build(request, progress=watch(request), cache=cache, gate=tries))
                continue
            _check_output(request.output)
            if here and (found := _recalled(request, cache, gates(request))) is not None:
                end(index, found)
                continue
        except EdgekitError as error:
            end(index, error)
            continue
        orders[index] = Order(
            request=replace(_anywhere(request), key=None),
            progress=watch(request),
            cache=cache,
            is_local=here,
            source=circumstances().source,
        )
    if executor is not None and orders:
        lost = _farm_out(orders, requests, executor, gates, end)
        # a worker that died may have taken others along that were not to blame
        for index in lost:
            again = {index: orders[index]}
            for _ in _farm_out(again, requests, executor, gates, end):
                end(index, _lost(requests[index], "its process was killed"))
    return tuple(outcomes[index] for index in range(len(requests)))


def work(order: Order) -> Answer:
    """In a worker: all of a build but its signatures."""
    if order.source != circumstances().source:
        return Answer(
            refusal=f"{platform.node()} has another edgekit than the one that asks: install the "
            "same on all machines."
        )
    cache = order.cache
    if cache is not None and not order.is_local:
        cache = find_cache(os.environ)
    try:
        with open_scratch() as scratch:
            prepared = prepare(order.request, scratch=scratch, progress=order.progress, cache=cache)
            parcels = []
            for finished in prepared.finished:
                out = io.BytesIO()
                send(out, finished)
                parcels.append(out.getvalue())
    except EdgekitError as error:
        return Answer(refusal=str(error), is_misuse=isinstance(error, Misused))
    except Exception:
        return Answer(trace=traceback.format_exc())
    return Answer(parcels=tuple(parcels))


def _farm_out(
    orders: Mapping[int, Order],
    requests: Sequence[BuildRequest],
    executor: str,
    gates: Callable[[BuildRequest], Gate | None],
    end: Callable[[int, Outcome], None],
) -> list[int]:
    """Run orders; returns those that were lost with the executor itself."""
    lost = []
    with open_executor(executor) as pool:
        futures = {}
        for index, order in orders.items():
            try:
                futures[pool.submit(work, order)] = index
            except BrokenExecutor:
                lost.append(index)
        for future in as_completed(futures):
            index = futures[future]
            try:
                answer = future.result()
            except BrokenExecutor:
                lost.append(index)
                continue
            except Exception as error:  # whatever an executor may say
                end(index, _lost(requests[index], f"{type(error).__name__}: {error}"))
                continue
            end(index, _outcome(requests[index], answer, gates(requests[index])))
    return lost


def _outcome(request: BuildRequest, answer: Answer, gate: Gate | None) -> Outcome:
    """Prove, sign and write what came back."""
    if answer.trace is not None:
        return Refused(f"building {request.name} failed in edgekit itself:\n{answer.trace}")
    if answer.refusal is not None:
        return (Misused if answer.is_misuse else Refused)(answer.refusal)
    try:
        with open_scratch() as scratch:
            finished = tuple(
                receive(parcel, into=scratch / str(number))
                for number, parcel in enumerate(answer.parcels)
            )
            with open_output(request.output):
                return finish(request, Prepared.of(finished), gate=gate)
    except EdgekitError as error:
        return error


def _recalled(request: BuildRequest, cache: Cache | None, gate: Gate | None) -> BuildResult | None:
    """What this machine's cache has of it. Errors: as `build`."""
    if cache is None:
        return None
    with open_scratch() as scratch:
        prepared = recall(request, scratch=scratch, cache=cache)
        if prepared is None:
            return None
        with open_output(request.output):
            return finish(request, prepared, gate=gate)


class _Checked(Exception):
    """Whatever was made to see whether it can be made goes again."""


def _check_output(directory: Path) -> None:
    """Before an hour of work. Errors: `Misused`."""
    with contextlib.suppress(_Checked), open_output(directory):
        raise _Checked


def _anywhere(request: BuildRequest) -> BuildRequest:
    """With paths that hold in every working directory."""
    return replace(
        request,
        model=request.model.absolute() if isinstance(request.model, Path) else request.model,
        calibration=_absolute(request.calibration),
        validation=_absolute(request.validation),
        figures=(request.figures or default_path()).absolute(),
    )


def _absolute(data: str | None) -> str | None:
    """DATA that is a path here is a path there, anything else a callable."""
    return str(Path(data).absolute()) if data is not None and Path(data).exists() else data


def _check_apart(requests: Sequence[BuildRequest]) -> None:
    """No two may write the same file. Errors: `Misused`."""
    seen: dict[Path, BuildRequest] = {}
    for request in requests:
        for profile in request.profiles:
            filename = names.bundle_filename(request.name, request.version, profile.name)
            path = (request.output / filename).absolute()
            if path in seen:
                raise Misused(
                    f"{seen[path].model} and {request.model} would both be {filename}: give each a "
                    "name or a version in an edgekit.toml of its own."
                )
            seen[path] = request


def _lost(request: BuildRequest, why: str) -> Refused:
    return Refused(f"the build of {request.name} was lost ({why}): {_LOST_HINT}.")


def _silent(request: BuildRequest) -> Progress:
    return Silent()


def _no_gate(request: BuildRequest) -> Gate | None:
    return None
