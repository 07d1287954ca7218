"""Run variants on data, in the runtime code that devices use: right numbers, and how good.

Invariant: all variants and the baseline see the same samples in the same order; what is kept of
them is flat in their number.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np

from edgekit.build.metrics import Meter, Metric, Outputs, new_meter
from edgekit.build.model_file import ModelFile
from edgekit.build.report import ErrorSample, Score
from edgekit.build.samples import Sample
from edgekit.build.truths import Truths, cores
from edgekit_contract.errors import Refused
from edgekit_converters import external
from edgekit_runtime.session import Session, SessionOptions

__all__ = ["Accuracy", "Contestant", "groups", "measure_accuracy"]

_GROUP_BYTES: Final = 1 << 30
"""Model files that are open at a time."""
_WORST: Final = 5
"""Samples that are remembered for having the greatest errors."""
_FARTHEST_DB: Final = 200.0
"""Nothing but noise, or, with the other sign, no noise at all."""

_Item = TypeVar("_Item")


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """What a pass over the data found of one variant."""

    score: Score | None = None
    closeness_db: float | None = None
    """Signal-to-noise ratio of the worst output against the baseline's."""
    errors: tuple[ErrorSample, ...] = ()
    """Where it differs most from the baseline, the worst first."""
    remarks: tuple[str, ...] = ()
    samples: int = 0
    failure: str | None = None
    """Why the variant is unusable: it does not load, does not run, or gives wrong numbers."""


class Contestant:
    """A variant during the pass: its session, and its meters while it has not failed."""

    def __init__(
        self,
        name: str,
        model: ModelFile,
        *,
        options: SessionOptions,
        metric: Metric,
        echoes: bool = False,
    ) -> None:
        """`echoes`: it is the baseline itself, whose outputs are there already."""
        self.name, self._echoes = name, echoes
        self.failure: str | None = None
        self.session: Session | None = None
        self.samples = 0
        self._meter: Meter = new_meter(metric)
        self._open_axes: Mapping[str, frozenset[int]] = {}
        self._takes_other_lengths = metric.takes_other_lengths
        self._closeness = _Closeness()
        self._worst: list[tuple[float, int, ErrorSample]] = []
        if echoes:
            return
        try:
            self.session = model.open(options)
        except Refused as error:
            self.failure = str(error).rstrip(".")
            return
        self._open_axes = {
            spec.name: frozenset(i for i, axis in enumerate(spec.shape) if isinstance(axis, str))
            for spec in self.session.outputs
        }

    def take(self, sample: Sample, baseline: Outputs) -> None:
        """Run a sample and enter the outputs into the meters, unless it has failed before."""
        if self.failure is not None:
            return
        try:
            outputs = baseline if self._echoes else self._run(sample)
        except Refused as error:
            self.failure = str(error).rstrip(".")
            return
        self.failure = _wrong(outputs, baseline, self._open_axes)
        if self.failure is None:
            self._enter(sample, outputs, baseline)
            self.samples += 1

    def _run(self, sample: Sample) -> Outputs:
        if self.session is None:
            raise RuntimeError(f"{self.name} was closed")
        return self.session.run(sample.feeds)

    def _enter(self, sample: Sample, outputs: Outputs, baseline: Outputs) -> None:
        judged = outputs if self._takes_other_lengths else _of_same_lengths(outputs, baseline)
        self._meter.add(judged, baseline, sample.labels)
        noise = self._closeness.add(outputs, baseline)
        place = (noise, -self.samples)
        if noise > 0 and (len(self._worst) < _WORST or place > self._worst[0][:2]):
            entry = (*place, _error(sample, outputs, baseline))
            if len(self._worst) < _WORST:
                heapq.heappush(self._worst, entry)
            else:
                heapq.heapreplace(self._worst, entry)

    def close(self) -> Accuracy:
        """What was found; the session ends."""
        if self.session is not None:
            self.session.close()
            self.session = None
        if self.failure is not None:
            return Accuracy(failure=self.failure)
        if not self.samples:
            return Accuracy(failure="it was run on no sample")
        return Accuracy(
            score=self._meter.score(),
            closeness_db=self._closeness.decibels(),
            errors=tuple(entry[2] for entry in sorted(self._worst, reverse=True)),
            remarks=self._meter.remarks(),
            samples=self.samples,
        )


class _Closeness:
    """Sums of squares of the outputs and of their errors."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[float, float]] = {}

    def add(self, got: Outputs, baseline: Outputs) -> float:
        """Enter a sample; its greatest ratio of noise to signal over the outputs."""
        worst = 0.0
        for name, want in baseline.items():
            noise, signal = _powers(got[name], want)
            before = self._sums.get(name, (0.0, 0.0))
            self._sums[name] = (before[0] + noise, before[1] + signal)
            worst = max(worst, noise / signal if signal > 0 else noise)
        return worst

    def decibels(self) -> float | None:
        if not self._sums:
            return None
        return min(_decibels(noise, signal) for noise, signal in self._sums.values())


def _powers(got: np.ndarray, want: np.ndarray) -> tuple[float, float]:
    """Sum of squared errors and of squares; of what has no distance, counts.

    Tensors of other lengths are as far from each other as noise is.
    """
    if got.shape != want.shape:
        wide = want.astype(np.float64) if want.dtype.kind == "f" else np.ones(want.shape)
        power = float(np.nansum(wide * wide)) or 1.0
        return power, power
    if want.dtype.kind != "f":
        return float((got != want).sum()), float(want.size)
    finite = np.isfinite(want)
    wide = want[finite].astype(np.float64)
    error = got[finite].astype(np.float64) - wide
    return float(error @ error), float(wide @ wide)


def _decibels(noise: float, signal: float) -> float:
    if noise <= 0:
        return _FARTHEST_DB
    if signal <= 0:
        return -_FARTHEST_DB
    return float(np.clip(10 * np.log10(signal / noise), -_FARTHEST_DB, _FARTHEST_DB))


def _error(sample: Sample, got: Outputs, baseline: Outputs) -> ErrorSample:
    """How one sample differs, in words: the class where there is one, else the farthest element."""
    name, want = next(iter(baseline.items()))
    classes = sample.classes
    label = int(classes[0]) if classes is not None and len(classes) else None
    if got[name].shape == want.shape and _is_rows(want):
        row = int(np.argmax(_distances(got[name], want).max(axis=-1)))
        ranked = np.sort(want[row])
        if classes is not None and row < len(classes):
            label = int(classes[row])
        return ErrorSample(
            sample=sample.number,
            label=label,
            expected=str(int(np.argmax(want[row]))),
            got=str(int(np.argmax(got[name][row]))),
            margin=float(ranked[-1] - ranked[-2]),
        )
    name = max(baseline, key=lambda n: _relative(got[n], baseline[n]))
    wide = baseline[name].ravel()
    if got[name].shape != baseline[name].shape:
        return ErrorSample(
            sample=sample.number,
            label=label,
            expected=f"{name} {list(baseline[name].shape)}",
            got=str(list(got[name].shape)),
        )
    if wide.dtype.kind == "f":
        at = int(np.argmax(_distances(got[name].ravel(), wide)))
    else:
        at = int(np.argmax(got[name].ravel() != wide))
    return ErrorSample(
        sample=sample.number,
        label=label,
        expected=f"{name}[{at}] = {_shown(wide[at])}",
        got=_shown(got[name].ravel()[at]),
    )


def _is_rows(array: np.ndarray) -> bool:
    """Whether it may be scores, for which places must be told: all are finite numbers."""
    return (
        array.ndim == 2
        and array.shape[0] > 0
        and array.shape[-1] > 1
        and array.dtype.kind == "f"
        and bool(np.isfinite(array).all())
    )


def _distances(got: np.ndarray, want: np.ndarray) -> np.ndarray:
    """Of each element where the baseline has a number, else 0."""
    away = np.abs(np.where(np.isfinite(want), got, 0) - np.where(np.isfinite(want), want, 0))
    return np.asarray(away)


def _relative(got: np.ndarray, want: np.ndarray) -> float:
    noise, signal = _powers(got, want)
    return noise / signal if signal > 0 else noise


def _shown(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float | np.floating) else str(value)


def _wrong(got: Outputs, baseline: Outputs, open_axes: Mapping[str, frozenset[int]]) -> str | None:
    """What no tolerance excuses: other outputs, shapes or types, or NaN where there was none.

    Lengths may differ on `open_axes`: how many there are may hang on numbers.
    """
    if list(got) != list(baseline):
        return f"its outputs are {list(got)}, not {list(baseline)}"
    for name, want in baseline.items():
        array = got[name]
        free = open_axes.get(name, frozenset())
        fits = array.ndim == want.ndim and all(
            a == b or axis in free
            for axis, (a, b) in enumerate(zip(array.shape, want.shape, strict=True))
        )
        if not fits or array.dtype != want.dtype:
            return (
                f"output {name!r} is {array.dtype} {list(array.shape)}, "
                f"not {want.dtype} {list(want.shape)}"
            )
        if array.shape != want.shape:
            continue
        if array.dtype.kind == "f" and (~np.isfinite(array) & np.isfinite(want)).any():
            return f"output {name!r} has NaN or infinity where float32 has none"
    return None


def _of_same_lengths(got: Outputs, baseline: Outputs) -> Outputs:
    """For metrics that compare element by element: outputs of other lengths as wrong throughout."""
    return {
        name: array if array.shape == baseline[name].shape else _wrong_throughout(baseline[name])
        for name, array in got.items()
    }


def _wrong_throughout(want: np.ndarray) -> np.ndarray:
    if want.dtype.kind == "f":
        return np.asarray(np.where(want == 0, 1, -want), want.dtype)
    if want.dtype.kind in "biu":
        return ~want
    return np.full_like(want, "")


def measure_accuracy(
    variants: Mapping[str, ModelFile],
    *,
    metric: Metric,
    samples: Callable[[], Iterable[Sample]],
    truths: Truths,
    advance: Callable[[int], None],
) -> dict[str, Accuracy]:
    """Run each variant over the samples; the baseline may be among them.

    `truths` are of these samples. `advance` hears one step per sample and group. Errors: `Refused`
    where the baseline itself fails, or the metric does not fit the data.
    """
    found: dict[str, Accuracy] = {}
    for group in groups(variants):
        # Nothing is timed here: contestants share the cores, each has its own session and meters.
        options = SessionOptions(threads=max(1, cores() // len(group)))
        contestants = [
            Contestant(
                name,
                variants[name],
                options=options,
                metric=metric,
                echoes=truths.is_of(variants[name]),
            )
            for name in group
        ]
        along = truths.along(samples())
        with ThreadPoolExecutor(cores()) as pool:
            for sample, outputs in _ahead(along):
                list(pool.map(lambda c, s=sample, t=outputs: c.take(s, t), contestants))
                advance(1)
        found |= {contestant.name: contestant.close() for contestant in contestants}
    return found


def _ahead(items: Iterator[_Item]) -> Iterator[_Item]:
    """The same items, each made while the one before is worked on."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = pool.submit(next, items, None)
            yield item


def groups(variants: Mapping[str, ModelFile]) -> list[list[str]]:
    """Variants that are open together: as many as `_GROUP_BYTES` of model files allow."""
    grouped: list[list[str]] = []
    used = 0
    for name, model in variants.items():
        size = external.size_bytes(model.path)
        if not grouped or used + size > _GROUP_BYTES:
            grouped.append([])
            used = 0
        grouped[-1].append(name)
        used += size
    return grouped
