"""Golden vectors: which samples to keep, and by how much a device may differ from them.

Invariant: a vector is kept only if every optimization level of the runtime gives the same top-1 by
a clear margin, where top-1 is to be compared; the tolerance is the spread over those levels plus
one step of the output's number format. Integers of 8 bits are quantized values, wider ones are
class numbers and counts, where one more is another thing. Samples with NaN or infinity in their
outputs are kept only if no other is there, and only if all levels have them in the same places.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from edgekit.build.levels import Outputs, run_levels
from edgekit.build.model_file import ModelFile
from edgekit.build.samples import Sample
from edgekit_contract import limits
from edgekit_contract.errors import Refused
from edgekit_contract.manifest import Golden, Tolerance
from edgekit_contract.profile import RuntimeKind
from edgekit_converters import isolation
from edgekit_runtime.golden import GoldenVector, golden_bytes, stored
from edgekit_runtime.session import Session, SessionOptions, open_session

__all__ = ["CANDIDATES", "GoldenSet", "choose_vectors", "given_vectors"]

CANDIDATES: Final = 64
"""Samples to choose golden vectors from."""
_VECTORS: Final = 8
_BUDGET_BYTES: Final = 8 * limits.MIB
"""What golden vectors may take of a bundle, unless one alone is larger."""
_CLEAR_MARGIN: Final = 2.0
"""In tolerances, how far top-1 must lead the next for its place to be compared."""

_QUANTIZED: Final = frozenset({"int8", "uint8"})

Samples = Callable[[], Iterable[Sample]]


@dataclass(frozen=True, kw_only=True)
class GoldenSet:
    vectors: tuple[GoldenVector, ...]
    golden: Golden
    remarks: tuple[str, ...] = ()
    """What a user should know of how they were found."""

    @property
    def data(self) -> bytes:
        return golden_bytes(self.vectors)


@dataclass(frozen=True, kw_only=True)
class _Candidate:
    index: int
    margin: float
    """Lead of top-1, as a part of the output's range; 0 where there is none to speak of."""
    top1: int
    size_bytes: int
    is_finite: bool


def choose_vectors(
    model: Path,
    kind: RuntimeKind,
    *,
    options: SessionOptions,
    samples: Samples,
    output_step: float,
    source: str,
    run: isolation.Run = isolation.run,
) -> GoldenSet:
    """Pick vectors from the first samples and derive their tolerances.

    `output_step` is one step of the output's number format as a part of its range. `source` says
    where the samples come from. Errors: `Refused` where no sample has outputs to compare.
    """
    session = open_session(kind, model, options)
    chosen = _pick(_candidates(session, samples()))
    session.close()
    if not chosen:
        raise Refused(
            "the model gives NaN or infinity for every sample tried: "
            "check the model and its preprocessing."
        )
    feeds = {
        index: sample.feeds
        for index, sample in zip(range(max(chosen) + 1), samples(), strict=False)
        if index in chosen
    }
    session = open_session(kind, model, options)  # anew: a model may keep state, as devices begin
    began = time.perf_counter()
    outputs = {index: session.run(feeds[index]) for index in sorted(feeds)}
    run_s = time.perf_counter() - began
    session.close()
    levels = run_levels(
        ModelFile(path=model, kind=kind), feeds, options=options, run_s=run_s, run=run
    )
    outputs = {
        index: wanted
        for index, wanted in outputs.items()
        if all(_same_places(level[index], wanted) for level in levels.outputs)
    }
    if not outputs:
        raise Refused(
            "the model gives NaN or infinity in other places when it is optimized less: "
            "check the model and its preprocessing."
        )
    chosen_set = _golden_set(feeds, outputs, levels.outputs, output_step=output_step, source=source)
    return replace(chosen_set, remarks=levels.remarks)


def given_vectors(
    rows: Sequence[tuple[Outputs, Outputs]], *, output_step: float, source: str
) -> GoldenSet:
    """As `choose_vectors`, of inputs and outputs that a model gave elsewhere.

    Errors: `Refused` where no sample has outputs to compare.
    """
    chosen = _pick(_comparable(_judged(i, *row) for i, row in enumerate(rows[:CANDIDATES])))
    if not chosen:
        raise Refused("the outputs are NaN or infinity for every sample: give others.")
    feeds = {index: rows[index][0] for index in sorted(chosen)}
    outputs = {index: rows[index][1] for index in sorted(chosen)}
    return _golden_set(feeds, outputs, [], output_step=output_step, source=source)


def _golden_set(
    feeds: Mapping[int, Outputs],
    outputs: Mapping[int, Outputs],
    others: Sequence[Mapping[int, Outputs]],
    *,
    output_step: float,
    source: str,
) -> GoldenSet:
    """`others`: the outputs of less optimized sessions."""
    tolerances = {
        name: _tolerance(
            [outputs[i][name] for i in outputs],
            [[level[i][name] for i in outputs] for level in others],
            output_step,
        )
        for name in next(iter(outputs.values()))
    }
    vectors = tuple(
        GoldenVector(
            inputs={name: stored(array) for name, array in feeds[index].items()},
            outputs={name: stored(array) for name, array in outputs[index].items()},
        )
        for index in outputs
    )
    return GoldenSet(
        vectors=vectors,
        golden=Golden(
            count=len(vectors),
            tolerances=tolerances,
            top1=tuple(
                name
                for name, tolerance in tolerances.items()
                if _is_clear([outputs[i][name] for i in outputs], tolerance)
            ),
            source=source,
        ),
    )


def _candidates(session: Session, samples: Iterable[Sample]) -> list[_Candidate]:
    numbered = zip(range(CANDIDATES), samples, strict=False)
    return _comparable(_judged(i, s.feeds, session.run(s.feeds)) for i, s in numbered)


def _comparable(candidates: Iterable[_Candidate | None]) -> list[_Candidate]:
    found = [candidate for candidate in candidates if candidate is not None]
    return [c for c in found if c.is_finite] or found


def _judged(index: int, feeds: Outputs, outputs: Outputs) -> _Candidate | None:
    """None where there is nothing but NaN and infinity."""
    finite = [np.isfinite(array) for array in outputs.values()]
    if not any(array.any() or not array.size for array in finite):
        return None
    margin, top1 = _lead(outputs)
    return _Candidate(
        index=index,
        margin=margin,
        top1=top1,
        size_bytes=sum(array.nbytes for array in (*feeds.values(), *outputs.values())),
        is_finite=all(a.all() for a in finite),
    )


def _same_places(got: Outputs, want: Outputs) -> bool:
    """Whether NaN and infinities are where the others are: `golden.compare` takes no other."""
    return all(
        got[name].shape != array.shape
        or np.array_equal(
            np.where(np.isfinite(got[name]), 0, got[name]),
            np.where(np.isfinite(array), 0, array),
            equal_nan=True,
        )
        for name, array in want.items()
        if array.dtype.kind == "f"
    )


def _lead(outputs: Outputs) -> tuple[float, int]:
    """Margin and class of the first output that has scores."""
    for array in outputs.values():
        if array.dtype.kind == "f" and array.ndim and array.shape[-1] > 1 and array.size:
            if not np.isfinite(array).all():
                break
            extent = float(array.max()) - float(array.min())
            margin = _least_margin(array) / extent if extent > 0 else 0.0
            return margin, int(np.argmax(array.reshape(-1, array.shape[-1])[0]))
    return 0.0, 0


def _least_margin(array: np.ndarray) -> float:
    """The least lead of the greatest element over the next, along the last axis."""
    two = np.partition(array.reshape(-1, array.shape[-1]).astype(np.float64), -2, axis=-1)[:, -2:]
    return float((two[:, 1] - two[:, 0]).min())


def _pick(candidates: Sequence[_Candidate]) -> set[int]:
    """Clear ones first, but one of each class before a second of any."""
    ranked = sorted(candidates, key=lambda c: (-c.margin, c.index))
    seen: set[int] = set()
    firsts: list[_Candidate] = []
    rest: list[_Candidate] = []
    for candidate in ranked:
        (rest if candidate.top1 in seen else firsts).append(candidate)
        seen.add(candidate.top1)
    picked: set[int] = set()
    used = 0
    for candidate in (*firsts, *rest):
        if len(picked) == _VECTORS or (picked and used + candidate.size_bytes > _BUDGET_BYTES):
            break
        picked.add(candidate.index)
        used += candidate.size_bytes
    return picked


def _tolerance(
    recorded: Sequence[np.ndarray], levels: Sequence[Sequence[np.ndarray]], output_step: float
) -> Tolerance:
    spread = 0.0
    for level in levels:
        for got, want in zip(level, recorded, strict=True):
            if got.shape == want.shape and got.size:
                numbers = np.isfinite(want)
                off = np.abs(got[numbers].astype(np.float64) - want[numbers].astype(np.float64))
                spread = max(spread, float(off.max(initial=0.0)))
    if recorded[0].dtype.kind != "f":
        return Tolerance(absolute=spread + (1 if recorded[0].dtype.name in _QUANTIZED else 0))
    finite = [array[np.isfinite(array)] for array in recorded]
    low = min((float(a.min()) for a in finite if a.size), default=0.0)
    high = max((float(a.max()) for a in finite if a.size), default=0.0)
    extent = max(high, 0.0) - min(low, 0.0) or 1.0  # zeros do not tell their range
    return Tolerance(absolute=spread + extent * output_step)


def _is_clear(arrays: Sequence[np.ndarray], tolerance: Tolerance) -> bool:
    return all(
        array.dtype.kind == "f"
        and array.ndim > 0
        and array.shape[-1] > 1
        and array.size > 0
        and bool(np.isfinite(array).all())
        and _least_margin(array) > _CLEAR_MARGIN * tolerance.absolute
        for array in arrays
    )
