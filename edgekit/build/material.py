"""The material of a build: a model that has run, and data that fit it.

Invariant: a stranger's model is loaded and run for the first time in a child process, on the first
sample of the data or on made-up inputs; what gets here has done so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from edgekit.build.data import Data
from edgekit.build.report import ModelCard
from edgekit.build.samples import Sample
from edgekit_contract.errors import Refused
from edgekit_contract.profile import RuntimeKind
from edgekit_converters import isolation
from edgekit_converters.facts import ModelFacts, read_facts
from edgekit_converters.normalization import Normalized, normalize
from edgekit_converters.proof import generated
from edgekit_converters.sources import Source
from edgekit_converters.tensorfile import read_tensors, write_tensors

__all__ = ["Material", "gather", "model_card"]

_GENERATED: Final = 16
"""Inputs to make up where there are no data."""


@dataclass(frozen=True, kw_only=True)
class Material:
    """Model and data, opened and tried."""

    source: Source
    normalized: Normalized
    given_facts: ModelFacts
    normalized_facts: ModelFacts
    feeds: Path
    reference: Path
    calibration: Data | None
    validation: Data | None
    axis_length: int
    labelled: bool
    """Whether the data tell the class of each row."""

    @property
    def data(self) -> Data | None:
        """What variants are run on; None: made-up inputs."""
        return self.validation or self.calibration

    @property
    def count(self) -> int | None:
        """Samples, where that is known without reading."""
        return self.data.count if self.data is not None else _GENERATED

    @property
    def data_source(self) -> str:
        if self.validation is not None:
            return "validation"
        return "calibration" if self.calibration is not None else "generated"

    def samples(self) -> Iterator[Sample]:
        """Validation data, else calibration data, else made-up inputs."""
        if self.data is not None:
            yield from self.data.samples(self.source.signature.inputs)
            return
        for seed in range(_GENERATED):
            feeds = generated(self.source.signature.inputs, seed=seed, axis_length=self.axis_length)
            yield Sample(feeds=feeds, labels=None)


def gather(
    source: Source,
    calibration: Data | None,
    validation: Data | None,
    *,
    normalizes: bool,
    scratch: Path,
) -> Material:
    """Try the model on the data, and normalize it if that is wanted.

    Errors: `Refused`, `DataRejected`.
    """
    inputs = source.signature.inputs
    feeds, reference = scratch / "feeds.npz", scratch / "reference.npz"
    data = validation or calibration
    if calibration is not None:
        calibration.first(inputs)
    labelled = False
    if data is not None:
        first = data.first(inputs)
        labelled = first.labels is not None
        write_tensors(feeds, first.feeds)
    _run_once(source, feeds, reference, has_feeds=data is not None)
    normalized = Normalized(path=source.path, steps=(), remarks=())
    given_facts = normalized_facts = ModelFacts(size_bytes=source.path.stat().st_size)
    if source.kind is RuntimeKind.ONNXRUNTIME:
        if normalizes:
            normalized = normalize(source.path, feeds=feeds, reference=reference, scratch=scratch)
        given_facts, normalized_facts = read_facts(source.path), read_facts(normalized.path)
    return Material(
        source=source,
        normalized=normalized,
        given_facts=given_facts,
        normalized_facts=normalized_facts,
        feeds=feeds,
        reference=reference,
        calibration=calibration,
        validation=validation,
        axis_length=_axis_length(source, read_tensors(feeds)),
        labelled=labelled,
    )


def _run_once(source: Source, feeds: Path, reference: Path, *, has_feeds: bool) -> None:
    """The first run of a stranger's model, in a child process. Errors: `Refused`."""
    arguments = {
        "path": str(source.path),
        "kind": source.kind.value,
        "feeds": str(feeds) if has_feeds else None,
        "out": str(reference),
        "feeds_out": None if has_feeds else str(feeds),
    }
    bounds = isolation.limits_for(source.path.stat().st_size)
    step = f"running {source.origin.name}"
    try:
        isolation.run(step, "edgekit_converters.proof:outputs", arguments, bounds)
    except isolation.StepRefused as error:
        if has_feeds:
            raise Refused(
                f"{source.origin.name} does not run on the first sample ({error}) "
                "Check that the data are what the model takes."
            ) from error
        raise Refused(
            f"{source.origin.name} runs on no made-up input ({error}) "
            "Give --validation or --calibration data."
        ) from error


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
