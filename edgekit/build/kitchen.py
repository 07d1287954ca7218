"""The kitchen: makes variants, each in a child process that also loads and runs what it made.

Invariant: a variant is usable only after it has loaded and run where it was made; whatever goes
wrong with one is its reason for losing, never the build's. Nothing is made twice.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum
from itertools import islice
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from edgekit.build.material import Material
from edgekit.build.progress import Progress
from edgekit.build.ranges import Calibration, calibrate
from edgekit_contract import limits
from edgekit_contract.errors import Refused
from edgekit_contract.profile import RuntimeKind
from edgekit_converters import external, isolation
from edgekit_converters.calibration.estimators import Estimator, Range
from edgekit_converters.quantization.sensitivity import NodeNoise
from edgekit_converters.recipes import BASELINE, find_recipe
from edgekit_converters.recipes.recipe import Ingredients, Recipe
from edgekit_converters.recipes.tuning import UNTUNED, Tuning
from edgekit_converters.tensorfile import read_tensors, write_tensors
from edgekit_runtime.session import open_session

__all__ = ["Base", "Kitchen", "Variant"]

_SUFFIXES: Final = {
    RuntimeKind.ONNXRUNTIME: ".onnx",
    RuntimeKind.LITERT: ".tflite",
    RuntimeKind.NULL: ".json",
}
_MAKE_TIMEOUT_S: Final = 120.0
_MAKERS: Final = 2
"""Children at a time: each holds a few copies of the model."""
_MOMENT_SAMPLES: Final = 24
"""Calibration samples that conditioning works with."""
_STUDIED_BYTES: Final = 256 * limits.MIB
"""Of their files; a larger first one is used all the same."""
_NOISE_SAMPLES: Final = 16


class Base(Enum):
    """What float model a variant starts from."""

    NORMALIZED = "normalized"
    EQUALIZED = "equalized"
    SMOOTHED = "smoothed"

    @classmethod
    def of(cls, tuning: Tuning) -> Base:
        if tuning.equalized:
            return cls.EQUALIZED
        return cls.SMOOTHED if tuning.smoothed else cls.NORMALIZED


@dataclass(frozen=True, kw_only=True)
class Variant:
    recipe: Recipe
    tuning: Tuning = UNTUNED
    path: Path
    failure: str | None = None
    """Why there is no usable file at `path`."""

    @property
    def title(self) -> str:
        return self.tuning.title_of(self.recipe.id)


class Kitchen:
    """Makes variants of one model."""

    def __init__(
        self,
        material: Material,
        estimators: tuple[Estimator, ...],
        workshop: isolation.Workshop,
        *,
        scratch: Path,
        threads: int,
        progress: Progress,
        calibration_s: float = math.inf,
    ) -> None:
        """Calibrates for at most `calibration_s`, where `estimators` name any.

        Errors: `DataRejected`.
        """
        self.material = material
        self._workshop, self._scratch, self._threads = workshop, scratch, threads
        self._progress, self._estimators = progress, estimators
        self._calibration_s = calibration_s
        self.calibration = calibrate(
            material, estimators, scratch=scratch, progress=progress, most_s=calibration_s
        )
        self._bases: dict[Base, Path | None] = {Base.NORMALIZED: material.normalized.path}
        self._calibrations: dict[Base, Calibration] = {Base.NORMALIZED: self.calibration}
        self._moments: dict[Base, Path] = {}
        self._made: dict[tuple[str, Tuning], Variant] = {}
        self._studied: tuple[str, ...] = ()
        self._noise: tuple[NodeNoise, ...] | None = None
        self.remarks: list[str] = []
        """What of the search was left out, a sentence each."""

    @property
    def normalized(self) -> Path:
        return self.material.normalized.path

    def make(self, recipe: Recipe, tuning: Tuning = UNTUNED) -> Variant:
        """A variant, or its failure."""
        key = (recipe.id, tuning)
        if key not in self._made:
            self._made[key] = self._make(recipe, tuning)
        return self._made[key]

    def make_all(self, recipes: Iterable[Recipe]) -> None:
        """Make several at a time, so that `make` has them."""
        with ThreadPoolExecutor(_MAKERS) as pool:
            list(pool.map(self.make, recipes))

    def base(self, base: Base) -> Path | None:
        """The float model to start from; None where rewriting it does not help."""
        if base not in self._bases:
            self._bases[base] = self._rewritten(base)
        return self._bases[base]

    def _calibration_of(self, base: Base, path: Path) -> Calibration:
        """Ranges of a rewritten model, estimated when first asked for."""
        if base not in self._calibrations:
            self._calibrations[base] = calibrate(
                self.material,
                self._estimators,
                scratch=self._scratch,
                progress=self._progress,
                model=path,
                most_s=self._calibration_s,
            )
        return self._calibrations[base]

    def feeds(self) -> Iterator[Mapping[str, np.ndarray]]:
        """A few of the samples that variants are made with."""
        for sample in islice(self.material.calibration_samples(), _MOMENT_SAMPLES):
            yield sample.feeds

    @property
    def is_ranked(self) -> bool:
        """Whether `noise` has been measured."""
        return self._noise is not None

    def noise(self) -> tuple[NodeNoise, ...]:
        """What quantizing each node does, the noisiest first, measured when first asked for; empty
        where it cannot be measured."""
        if self._noise is None:
            self._noise = ()
            ranges = self.calibration.widest
            if self.material.source.kind is RuntimeKind.ONNXRUNTIME:
                arguments = {
                    "model": str(self.normalized),
                    "ranges": _told(ranges),
                    "samples": self._samples()[:_NOISE_SAMPLES],
                    "threads": 1,
                    "scratch": str(self._scratch),
                }
                try:
                    found = self._run("ranking nodes", f"{_STUDIES}:noise", arguments)
                    self._noise = msgspec.convert(found, tuple[NodeNoise, ...])
                except Refused as error:
                    self.remarks.append(f"Nodes were not ranked: {_plain(error)}.")
        return self._noise

    def _samples(self) -> tuple[str, ...]:
        """Files of `feeds` for children, written when first asked for."""
        if not self._studied:
            written = 0
            for index, feeds in enumerate(self.feeds()):
                path = self._scratch / f"studied{index}.npz"
                write_tensors(path, feeds)
                self._studied += (str(path),)
                written += path.stat().st_size
                if written > _STUDIED_BYTES:
                    break
        return self._studied

    def _make(self, recipe: Recipe, tuning: Tuning) -> Variant:
        source = self.material.source
        if recipe.id == BASELINE:
            return Variant(recipe=recipe, path=source.path)
        name = f"{recipe.id.replace('/', '_')}-{len(self._made)}"
        out = self._scratch / f"{name}{_SUFFIXES[source.kind]}"
        path = self.base(Base.of(tuning))
        if path is None:
            return Variant(
                recipe=recipe, tuning=tuning, path=out, failure="the rewriting changed nothing"
            )
        ranges: Mapping[str, Range] = {}
        if (estimator := recipe.needs.estimator) is not None:
            ranges = self._calibration_of(Base.of(tuning), path).ranges.get(estimator, {})
        needs_moments = tuning.corrected or tuning.reconstructed
        title = tuning.title_of(recipe.id)
        try:
            moments = str(self._moments_of(Base.of(tuning), path)) if needs_moments else None
            arguments = {
                "recipe": recipe.id,
                "tuning": msgspec.to_builtins(tuning),
                "kind": source.kind.value,
                "given": str(source.path),
                "normalized": str(path),
                "ranges": _told(ranges),
                "moments": moments,
                "feeds": str(self.material.feeds),
                "out": str(out),
            }
            self._run(title, "edgekit.build.kitchen:make", arguments)
        except Refused as error:
            return Variant(recipe=recipe, tuning=tuning, path=out, failure=_reason(error, out))
        return Variant(recipe=recipe, tuning=tuning, path=out)

    def _run(self, step: str, target: str, arguments: Mapping[str, Any]) -> Any:
        size = external.size_bytes(self.material.source.path)
        bounds = isolation.limits_for(size, timeout_s=_MAKE_TIMEOUT_S)
        return self._workshop.run(step, target, arguments, bounds)

    def _rewritten(self, base: Base) -> Path | None:
        out = self._scratch / f"{base.value}.onnx"
        arguments = {
            "model": str(self.normalized),
            "out": str(out),
            "samples": self._samples(),
            "feeds": str(self.material.feeds),
            "reference": str(self.material.reference),
            "threads": self._threads,
        }
        try:
            changed = self._run(_REWRITES[base], f"{_STUDIES}:{base.value}", arguments)
        except Refused as error:
            self.remarks.append(f"{_REWRITES[base].capitalize()} was left out: {_plain(error)}.")
            return None
        return out if changed else None

    def _moments_of(self, base: Base, model: Path) -> Path:
        """Moments of what weighted nodes read, collected when first asked for.

        Errors: `Refused`.
        """
        if base not in self._moments:
            path = self._scratch / f"moments-{base.value}.npz"
            arguments = {
                "model": str(model),
                "out": str(path),
                "samples": self._samples(),
                "threads": self._threads,
            }
            with self._progress.stage("observing what layers read", None):
                self._run("observing what layers read", f"{_STUDIES}:moments", arguments)
            self._moments[base] = path
        return self._moments[base]


def make(
    *,
    recipe: str,
    tuning: Any,
    kind: str,
    given: str,
    normalized: str,
    ranges: Mapping[str, Any],
    moments: str | None,
    feeds: str,
    out: str,
) -> None:
    """In the child: make one variant, load it and run it once. Errors: whatever goes wrong."""
    find_recipe(recipe).make(
        Ingredients(
            given=Path(given),
            normalized=Path(normalized),
            ranges={name: Range(low, high) for name, (low, high) in ranges.items()},
            out=Path(out),
            tuning=msgspec.convert(tuning, Tuning),
            moments=Path(moments) if moments is not None else None,
        )
    )
    open_session(RuntimeKind(kind), Path(out)).run(read_tensors(Path(feeds)))


def _told(ranges: Mapping[str, Range]) -> dict[str, tuple[float, float]]:
    return {name: (found.low, found.high) for name, found in ranges.items()}


def _reason(error: Refused, out: Path) -> str:
    """Without names of scratch files and the runtime's codes."""
    return _plain(error).replace(f"{out.name} does not load", "does not load")


def _plain(error: Refused) -> str:
    return re.sub(r"\[ONNXRuntimeError\] : \d+ : \w+ : ", "", str(error)).rstrip(".")


_STUDIES: Final = "edgekit_converters.studies"
_REWRITES: Final = {
    Base.EQUALIZED: "equalizing channels",
    Base.SMOOTHED: "smoothing activations",
}
"""What the function in `_STUDIES` that is named as the base does."""
