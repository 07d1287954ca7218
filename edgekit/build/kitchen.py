"""The kitchen: makes variants, each in a child process that also loads and runs what it made.

Invariant: a variant is usable only after it has loaded and run where it was made; whatever goes
wrong with one is its reason for losing, never the build's. Nothing is made twice.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum
from itertools import islice
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec
import numpy as np
import onnx

from edgekit.build.material import Material
from edgekit.build.progress import Progress
from edgekit.build.ranges import Calibration, calibrate
from edgekit_contract.errors import Refused
from edgekit_contract.profile import RuntimeKind
from edgekit_converters import external, isolation
from edgekit_converters.calibration.estimators import Estimator, Range
from edgekit_converters.conditioning.equalization import equalize_file
from edgekit_converters.conditioning.moments import collect_moments, write_moments
from edgekit_converters.conditioning.smoothing import smooth_file
from edgekit_converters.proof import same_outputs
from edgekit_converters.quantization.selection import select_static
from edgekit_converters.recipes import BASELINE, find_recipe
from edgekit_converters.recipes.recipe import Ingredients, Recipe
from edgekit_converters.recipes.tuning import UNTUNED, Tuning
from edgekit_converters.tensorfile import read_tensors
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
    ) -> None:
        """Calibrates, where `estimators` name any. Errors: `DataRejected`."""
        self.material = material
        self._workshop, self._scratch, self._threads = workshop, scratch, threads
        self._progress, self._estimators = progress, estimators
        self.calibration = calibrate(material, estimators, scratch=scratch, progress=progress)
        self._bases: dict[Base, Path | None] = {Base.NORMALIZED: material.normalized.path}
        self._calibrations: dict[Base, Calibration] = {Base.NORMALIZED: self.calibration}
        self._moments: dict[Base, Path] = {}
        self._made: dict[tuple[str, Tuning], Variant] = {}

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
            )
        return self._calibrations[base]

    def feeds(self) -> Iterator[Mapping[str, np.ndarray]]:
        """A few of the samples that variants are made with."""
        for sample in islice(self.material.calibration_samples(), _MOMENT_SAMPLES):
            yield sample.feeds

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
        arguments = {
            "recipe": recipe.id,
            "tuning": msgspec.to_builtins(tuning),
            "kind": source.kind.value,
            "given": str(source.path),
            "normalized": str(path),
            "ranges": {name: (r.low, r.high) for name, r in ranges.items()},
            "moments": str(self._moments_of(Base.of(tuning))) if needs_moments else None,
            "feeds": str(self.material.feeds),
            "out": str(out),
        }
        try:
            self._run(tuning.title_of(recipe.id), "edgekit.build.kitchen:make", arguments)
        except Refused as error:
            return Variant(recipe=recipe, tuning=tuning, path=out, failure=_reason(error, out))
        return Variant(recipe=recipe, tuning=tuning, path=out)

    def _run(self, step: str, target: str, arguments: Mapping[str, Any]) -> Any:
        size = external.size_bytes(self.material.source.path)
        bounds = isolation.limits_for(size, timeout_s=_MAKE_TIMEOUT_S)
        return self._workshop.run(step, target, arguments, bounds)

    def _rewritten(self, base: Base) -> Path | None:
        source, out = self.material.normalized.path, self._scratch / f"{base.value}.onnx"
        try:
            changed = _REWRITES[base](
                source, out, self.feeds(), threads=self._threads, scratch=self._scratch
            )
            return out if changed and self._holds(out) else None
        except Refused:
            return None

    def _holds(self, path: Path) -> bool:
        """Whether a rewritten model computes what the given one does."""
        session = open_session(RuntimeKind.ONNXRUNTIME, path)
        got = session.run(read_tensors(self.material.feeds))
        session.close()
        return same_outputs(got, read_tensors(self.material.reference)) is None

    def _moments_of(self, base: Base) -> Path:
        """Moments of what weighted nodes read, collected when first asked for."""
        if base not in self._moments:
            model = self.base(base)
            assert model is not None
            nodes = select_static(onnx.load_model(model, load_external_data=False)).nodes
            path = self._scratch / f"moments-{base.value}.npz"
            with self._progress.stage("observing what layers read", _MOMENT_SAMPLES) as advance:
                moments = collect_moments(
                    model,
                    nodes,
                    self.feeds(),
                    threads=self._threads,
                    scratch=self._scratch,
                    advance=advance,
                )
            write_moments(path, moments)
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


def _reason(error: Refused, out: Path) -> str:
    """Without names of scratch files and the runtime's codes."""
    text = re.sub(r"\[ONNXRuntimeError\] : \d+ : \w+ : ", "", str(error))
    return text.replace(f"{out.name} does not load", "does not load").rstrip(".")


class _Rewrite(Protocol):
    def __call__(
        self,
        source: Path,
        out: Path,
        samples: Iterable[Mapping[str, np.ndarray]],
        *,
        threads: int,
        scratch: Path,
    ) -> int: ...


_REWRITES: Final[Mapping[Base, _Rewrite]] = {
    Base.EQUALIZED: equalize_file,
    Base.SMOOTHED: smooth_file,
}
"""Write the rewritten model, and tell how many places changed; for 0 nothing is written."""
