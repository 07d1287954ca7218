"""The material of a build: a model that has run, and data that fit it.

Invariant: a stranger's model is loaded and run for the first time in a child process, on the first
samples of the data or on made-up inputs; what gets here has done so, and gave numbers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from edgekit.build.data import Data
from edgekit.build.report import ModelCard
from edgekit.build.samples import DataChanged, Sample
from edgekit.build.shelf import NOTHING_KEPT, Shelf
from edgekit.build.split import Split
from edgekit_contract import limits
from edgekit_contract.errors import Refused
from edgekit_contract.profile import RuntimeKind
from edgekit_converters import isolation
from edgekit_converters.facts import ModelFacts, read_facts
from edgekit_converters.litert.file import LiteRtFacts
from edgekit_converters.normalization import Normalized
from edgekit_converters.proof import Trial, Tried, generated
from edgekit_converters.sources import Source
from edgekit_converters.tensorfile import read_tensors, write_tensors

__all__ = ["Material", "gather", "model_card", "read_litert"]

_GENERATED: Final = 16
"""Inputs to make up where there are no data,"""
_LEAST_GENERATED: Final = 2
_GENERATED_S: Final = 4.0
"""or fewer, so that the model runs no longer on all of them."""
_TRIALS: Final = 4
"""Samples that each step of normalization is proved on."""
_COMPARED: Final = 256
"""Samples that a converted model is compared with its framework on, at most,"""
_COMPARED_BYTES: Final = 64 * limits.MIB
"""and how much they may hold together."""


@dataclass(frozen=True, kw_only=True)
class Material:
    """Model and data, opened and tried."""

    source: Source
    normalized: Normalized
    given_facts: ModelFacts
    normalized_facts: ModelFacts
    trials: tuple[Trial, ...]
    """Samples and the model's outputs for them; the first is the first sample's."""
    calibration: Data | None
    validation: Data | None
    axis_length: int
    labelled: bool
    """Whether the data tell the class of each row."""
    run_s: float = 0.0
    """About how long the model takes for one sample here."""
    remarks: tuple[str, ...] = ()
    """What opening the model and the first runs showed, a sentence each."""
    shelf: Shelf = NOTHING_KEPT
    """What other builds of the same model have left."""

    @property
    def is_simplified(self) -> bool:
        """Whether normalization left another computation than it found: the same one under other
        names takes the same time."""
        given, left = (
            {name: count for name, count in facts.operators.items() if name != "Constant"}
            for facts in (self.given_facts, self.normalized_facts)
        )
        return bool(self.normalized.steps) and given != left

    @property
    def feeds(self) -> Path:
        """Tensor file of the first sample."""
        return Path(self.trials[0].feeds)

    @property
    def reference(self) -> Path:
        """Tensor file of the model's outputs for `feeds`."""
        return Path(self.trials[0].reference)

    @property
    def data(self) -> Data | None:
        """What variants are run on; None: made-up inputs."""
        return self.validation or self.calibration

    @cached_property
    def count(self) -> int:
        """Samples that variants are run on, read through once where nothing else tells."""
        if self.data is None:
            in_time = int(_GENERATED_S / max(self.run_s, 1e-9))
            return min(_GENERATED, max(_LEAST_GENERATED, in_time))
        known = self.data.sample_count(self.source.signature.inputs)
        return sum(1 for _ in self._series()) if known is None else known

    @property
    def split(self) -> Split:
        """Which of the samples the choice may see."""
        return Split(samples=self.count)

    @property
    def data_source(self) -> str:
        if self.validation is not None:
            return "validation"
        return "calibration" if self.calibration is not None else "generated"

    def samples(self) -> Iterator[Sample]:
        """Validation data, else calibration data, else made-up inputs; the same ones each time.

        Errors: `DataRejected`, also at the end of a pass that gave more or fewer than `count`.
        """
        given = 0
        for sample in self._series():
            given += 1
            yield sample
        if given != self.count:
            raise DataChanged(self.data.title if self.data is not None else "made-up input")

    @property
    def calibration_source(self) -> Data | None:
        """What `calibration_samples` are from; None: made-up inputs."""
        return self.calibration or self.validation

    @property
    def calibration_role(self) -> str:
        """Which DATA `calibration_source` is."""
        return "calibration" if self.calibration is not None else "validation"

    @property
    def calibration_count(self) -> int | None:
        """How many `calibration_samples` there are, where that is known without reading."""
        if self.calibration is not None and self.validation is not None:
            return self.calibration.sample_count(self.source.signature.inputs)
        return self.split.selected

    def calibration_samples(self) -> Iterator[Sample]:
        """What variants are made with: nothing that is held out from the choice.

        Calibration data where others are judged, else what the choice may see of the judged ones.
        """
        if self.calibration is not None and self.validation is not None:
            return self.calibration.samples(self.source.signature.inputs)
        return self.split.selection(self.samples())

    def _series(self) -> Iterator[Sample]:
        if self.data is not None:
            yield from self.data.samples(self.source.signature.inputs)
            return
        for seed in range(self.count):
            feeds = generated(self.source.signature.inputs, seed=seed, axis_length=self.axis_length)
            yield Sample(feeds=feeds, labels=None, number=seed)


def gather(
    source: Source,
    calibration: Data | None,
    validation: Data | None,
    *,
    normalizes: bool,
    scratch: Path,
    run: isolation.Run = isolation.run,
    shelf: Shelf = NOTHING_KEPT,
    clock: Callable[[], float] = time.monotonic,
) -> Material:
    """Try the model on the data, and normalize it if that is wanted, for a time by the clock.

    Errors: `Refused`, also where all that it gives is NaN; `DataRejected`.
    """
    inputs = source.signature.inputs
    for held, kind in ((inputs, "input"), (source.signature.outputs, "output")):
        if not held:
            raise Refused(f"{source.title} has no {kind}: export it with what it takes and gives.")
    given_facts = normalized_facts = ModelFacts(size_bytes=source.path.stat().st_size)
    if source.kind is RuntimeKind.ONNXRUNTIME:
        given_facts = read_facts(source.path)
        calibration, validation = (
            replace(data, may_miss=given_facts.may_miss) if data is not None else None
            for data in (calibration, validation)
        )
    data = validation or calibration
    if calibration is not None:
        calibration.first(inputs)
    labelled = False
    given = []
    if data is not None:
        labelled = data.first(inputs).classes is not None
        for index, sample in enumerate(data.samples(inputs, limit=_TRIALS)):
            given.append(scratch / f"sample{index}.npz")
            write_tensors(given[-1], sample.feeds)
    tried = _try_out(source, given, scratch, run)
    if tried.drawing:
        raise Refused(
            f"{source.title} draws random numbers ({', '.join(tried.drawing)}), so no device could "
            "prove that it computes the same: export it without, or give those operators a seed."
        )
    references = [read_tensors(Path(trial.reference)) for trial in tried.trials]
    remarks = (
        *_compared(source, data, tried, scratch, run),
        *source.remarks,
        *_remarks(source.title, tried, references, has_data=data is not None),
    )
    normalized = Normalized(path=source.path, steps=(), remarks=())
    if source.kind is RuntimeKind.ONNXRUNTIME:
        if normalizes and tried.repeats:
            normalized = shelf.normalize(
                source.path,
                trials=tried.trials,
                scratch=scratch,
                run=run,
                run_s=tried.run_s,
                clock=clock,
            )
        normalized_facts = read_facts(normalized.path)
    elif source.kind is RuntimeKind.LITERT:
        found = read_litert(source.path, run)
        if found is not None:
            given_facts = normalized_facts = ModelFacts(
                size_bytes=given_facts.size_bytes,
                operators=found.operators,
                weighted=found.weighted,
                parameters=found.parameters,
            )
    first = tried.trials[0]
    return Material(
        source=source,
        normalized=replace(normalized, remarks=(*remarks, *normalized.remarks)),
        given_facts=given_facts,
        normalized_facts=normalized_facts,
        trials=tried.trials,
        calibration=calibration,
        validation=validation,
        axis_length=_axis_length(source, read_tensors(Path(first.feeds))),
        labelled=labelled,
        run_s=tried.run_s / len(tried.trials),
        shelf=shelf,
    )


def read_litert(path: Path, run: isolation.Run) -> LiteRtFacts | None:
    """Facts of a LiteRT model that has loaded, read in a child process; None where it cannot be."""
    bounds = isolation.limits_for(path.stat().st_size)
    try:
        found = run(
            "reading it", "edgekit_converters.litert.file:read", {"path": str(path)}, bounds
        )
    except Refused:
        return None
    return msgspec.convert(found, LiteRtFacts)


def _compared(
    source: Source, data: Data | None, tried: Tried, scratch: Path, run: isolation.Run
) -> Iterator[str]:
    """What a converted model has in common with its framework's. Errors: `Refused`."""
    if source.conversion is None:
        return
    feeds = [Path(trial.feeds) for trial in tried.trials]
    named = "made-up inputs, for want of data"
    if data is not None:
        feeds, held, named = [], 0, f"samples of {data.title}"
        for sample in data.samples(source.signature.inputs, limit=_COMPARED):
            held += sum(array.nbytes for array in sample.feeds.values())
            if feeds and held > _COMPARED_BYTES:
                break
            feeds.append(scratch / f"compared{len(feeds)}.npz")
            write_tensors(feeds[-1], sample.feeds)
    yield source.conversion.check(source.path, feeds, data=named, made_up=data is None, run=run)


def _try_out(source: Source, given: Sequence[Path], scratch: Path, run: isolation.Run) -> Tried:
    """The first runs of a stranger's model, in a child process. Errors: `Refused`."""
    words = {
        "path": str(source.path),
        "kind": source.kind.value,
        "feeds": [str(path) for path in given],
        "directory": str(scratch),
    }
    bounds = isolation.limits_for(source.size_bytes)
    step = f"running {source.title}"
    try:
        found = run(step, "edgekit_converters.proof:try_out", words, bounds)
    except isolation.StepRefused as error:
        if given:
            raise Refused(
                f"{source.title} does not run on the first sample ({error}) "
                "Check that the data are what the model takes."
            ) from error
        raise Refused(
            f"{source.title} runs on no made-up input ({error}) "
            "Give --validation or --calibration data."
        ) from error
    except isolation.StepFailed as error:
        raise Refused(
            f"{source.title} could not be run: {error.detail}; "
            + (
                "check that the data are what the model takes."
                if given
                else "give --validation or --calibration data."
            )
        ) from error
    return msgspec.convert(found, Tried)


def _remarks(
    name: str, tried: Tried, references: Sequence[Mapping[str, np.ndarray]], *, has_data: bool
) -> Iterator[str]:
    """What the first runs tell a user. Errors: `Refused` where they gave no number at all."""
    if not tried.repeats:
        yield (
            f"{name} gives other outputs for the same input: no step of normalization could be "
            "proved, and all were left out."
        )
    floats = [n for n, array in references[0].items() if array.dtype.kind == "f"]
    finite = {n: [bool(np.isfinite(r[n]).any()) or not r[n].size for r in references]
              for n in floats}  # fmt: skip
    if floats and not any(any(found) for found in finite.values()):
        raise Refused(
            f"{name} gives nothing but NaN or infinity for each of the {len(references)} "
            f"{'samples' if has_data else 'made-up inputs'} tried, in output {floats[0]!r}: "
            + (
                "check the model and its preprocessing."
                if has_data
                else "give --validation or --calibration data, or check the model."
            )
        )
    for output in floats:
        for index, outputs in enumerate(references):
            if np.isnan(outputs[output]).any():
                yield (
                    f"Output {output!r} of {name} itself has NaN, first on "
                    f"{'sample' if has_data else 'made-up input'} {index}: such elements are "
                    "compared with nothing."
                )
                break


def _axis_length(source: Source, feeds: Mapping[str, np.ndarray]) -> int:
    """Length of the open axes but the first, as the tried feeds have it."""
    lengths = [
        feeds[spec.name].shape[index]
        for spec in source.signature.inputs
        for index, axis in enumerate(spec.shape)
        if index and isinstance(axis, str)
    ]
    return lengths[0] if lengths else 1


def model_card(material: Material) -> ModelCard:
    """The model as it was given, for the report."""
    facts, signature = material.given_facts, material.source.signature
    return ModelCard(
        operators=dict(facts.operators),
        opset=facts.opset,
        parameters=facts.parameters,
        size_bytes=facts.size_bytes,
        inputs=signature.inputs,
        outputs=signature.outputs,
    )
