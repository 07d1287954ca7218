"""The kitchen: makes variants, each in a child process that also loads and runs what it made.

Invariant: a variant is usable only after it has loaded and run where it was made; whatever goes
wrong with one there is its reason for losing, never the build's. Nothing is made twice.

What is caught: a variant that brings the runtime down when it is loaded, or run on the first
sample, and a model that does so when it is rewritten, ranked or calibrated. What is not: screen and
bench run variants in the build's own process, with the profile's options and on all samples; one
that crashes only there ends the build.
"""

from __future__ import annotations

import itertools
import math
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import onnx

from edgekit.build.material import Material, read_litert
from edgekit.build.model_file import ModelFile
from edgekit.build.progress import Progress
from edgekit.build.ranges import Calibration, calibrate
from edgekit.build.samples import Digest
from edgekit_contract import limits
from edgekit_contract.errors import Refused
from edgekit_contract.profile import RuntimeKind
from edgekit_converters import external, isolation
from edgekit_converters.calibration.estimators import CHOSEN_AMONG, Estimator, Range
from edgekit_converters.litert.conversion import check_signature
from edgekit_converters.proof import Signature, Trial
from edgekit_converters.quantization.outputs import decibels
from edgekit_converters.quantization.selection import weighted_names
from edgekit_converters.quantization.sensitivity import NodeNoise
from edgekit_converters.recipes import BASELINE, all_recipes, conversion_to, find_recipe
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
_SAMPLES: Final = 128
_SAMPLE_BYTES: Final = 256 * limits.MIB
"""At most, of the data that recipes are given as files."""
_RANKING_S: Final = 15.0
_MOMENT_SAMPLES: Final = 24
"""Calibration samples that conditioning works with."""
_STUDIED_BYTES: Final = 256 * limits.MIB
"""Of their files; a larger first one is used all the same."""
_NOISE_SAMPLES: Final = 16


class Base(Enum):
    """What float model a variant starts from."""

    NORMALIZED = "normalized"
    EQUALIZED = "equalized"
    LEVELLED = "levelled"
    SMOOTHED = "smoothed"

    @classmethod
    def of(cls, tuning: Tuning) -> Base:
        if tuning.equalized:
            return cls.EQUALIZED
        if tuning.levelled:
            return cls.LEVELLED
        return cls.SMOOTHED if tuning.smoothed else cls.NORMALIZED


@dataclass(frozen=True, kw_only=True)
class Variant:
    recipe: Recipe
    kind: RuntimeKind
    tuning: Tuning = UNTUNED
    path: Path
    failure: str | None = None
    """Why there is no usable file at `path`."""

    @property
    def title(self) -> str:
        return self.tuning.title_of(self.recipe.id)

    @property
    def model(self) -> ModelFile:
        return ModelFile(path=self.path, kind=self.kind)


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
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Calibrates for at most `calibration_s` by the clock, where `estimators` name any.

        Errors: `DataRejected`.
        """
        self.material = material
        self._workshop, self._scratch, self._threads = workshop, scratch, threads
        self._progress, self._estimators = progress, estimators
        self._calibration_s, self._clock = calibration_s, clock
        self.sampled = Calibration()
        """What recipes that need samples were given."""
        self.calibration = calibrate(
            material,
            estimators,
            workshop,
            scratch=scratch,
            progress=progress,
            most_s=calibration_s,
            clock=clock,
        )
        self.remarks: list[str] = []
        """What of the search was left out, a sentence each."""
        self._tell_failure(self.calibration, "")
        self._bases: dict[Base, Path | None] = {Base.NORMALIZED: material.normalized.path}
        self._calibrations: dict[Base, Calibration] = {Base.NORMALIZED: self.calibration}
        self._moments: dict[Base, Path] = {}
        self._made: dict[tuple[str, Tuning], Variant] = {}
        self._numbers = itertools.count()
        self._studying = threading.RLock()
        """What several variants start from is made once."""
        self._measured: dict[Base, Mapping[str, Range]] = {}
        self._studied: tuple[str, ...] = ()
        self._noise: dict[RuntimeKind, tuple[NodeNoise, ...]] = {}
        self._layers: dict[RuntimeKind, tuple[str, ...]] = {}
        self._converting, self._sampling = threading.Lock(), threading.Lock()

    @property
    def normalized(self) -> Path:
        return self.material.normalized.path

    def make(self, recipe: Recipe, tuning: Tuning = UNTUNED) -> Variant:
        """A variant, or its failure."""
        key = (recipe.id, tuning)
        if key not in self._made:
            self._made[key] = self._make(recipe, tuning)
        return self._made[key]

    def make_all(self, wanted: Iterable[tuple[Recipe, Tuning]]) -> None:
        """Make several at a time, so that `make` has them."""
        with ThreadPoolExecutor(_MAKERS) as pool:
            list(pool.map(lambda pair: self.make(*pair), dict.fromkeys(wanted)))

    def base(self, base: Base) -> Path | None:
        """The float model to start from; None where rewriting it does not help."""
        with self._studying:
            if base not in self._bases:
                self._bases[base] = self._rewritten(base)
            return self._bases[base]

    def _calibration_of(self, base: Base, path: Path) -> Calibration:
        """Ranges of a rewritten model, estimated when first asked for."""
        with self._studying:
            if base not in self._calibrations:
                self._calibrations[base] = calibrate(
                    self.material,
                    self._estimators,
                    self._workshop,
                    scratch=self._scratch,
                    progress=self._progress,
                    model=path,
                    most_s=self._calibration_s,
                    clock=self._clock,
                )
                self._tell_failure(self._calibrations[base], f" of the {base.value} model")
            return self._calibrations[base]

    def _tell_failure(self, calibration: Calibration, whose: str) -> None:
        if calibration.failure is not None:
            self.remarks.append(
                f"Recipes that need ranges{whose} were left out: {calibration.failure}."
            )

    def feeds(self) -> Iterator[Mapping[str, np.ndarray]]:
        """A few of the samples that variants are made with."""
        for sample in islice(self.material.calibration_samples(), _MOMENT_SAMPLES):
            yield sample.feeds

    def is_ranked(self, kind: RuntimeKind) -> bool:
        """Whether `noise` has been measured."""
        return kind in self._noise

    def noise(self, kind: RuntimeKind) -> tuple[NodeNoise, ...]:
        """What quantizing each node does, the noisiest first, measured when first asked for; empty
        where it cannot be measured."""
        if kind not in self._noise:
            self._noise[kind] = ()
            try:
                rank = self._rank_nodes if kind is RuntimeKind.ONNXRUNTIME else self._rank_layers
                self._noise[kind] = rank()
            except Refused as error:
                self.remarks.append(f"Nodes were not ranked: {_plain(error)}.")
        return self._noise[kind]

    def _rank_nodes(self) -> tuple[NodeNoise, ...]:
        """Errors: `Refused`."""
        is_onnx = self.material.source.kind is RuntimeKind.ONNXRUNTIME
        if not is_onnx or self.calibration.failure is not None:
            return ()
        arguments = {
            "model": str(self.normalized),
            "ranges": _told(self.calibration.widest),
            "samples": self._samples()[:_NOISE_SAMPLES],
            "threads": 1,
            "scratch": str(self._scratch),
        }
        found = self._run("ranking nodes", f"{_STUDIES}:noise", arguments)
        return msgspec.convert(found, tuple[NodeNoise, ...])

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
        kind = recipe.needs.runtime
        if recipe.id == BASELINE:
            return Variant(recipe=recipe, path=source.path, kind=source.kind)
        name = f"{recipe.id.replace('/', '_')}-{next(self._numbers)}"
        out = self._scratch / f"{name}{_SUFFIXES[kind]}"
        failed = partial(Variant, recipe=recipe, kind=kind, tuning=tuning, path=out)
        start, why = self._start(recipe, tuning)
        if start is None:
            return failed(failure=why)
        needs_moments = tuning.corrected or tuning.reconstructed
        title = tuning.title_of(recipe.id)
        try:
            ranges = self._ranges_of(recipe.needs.estimator, Base.of(tuning), start)
            moments = str(self._moments_of(Base.of(tuning), start)) if needs_moments else None
            arguments = {
                "recipe": recipe.id,
                "tuning": msgspec.to_builtins(tuning),
                "given": str(source.path),
                "normalized": str(start),
                "ranges": _told(ranges),
                "moments": moments,
                "samples": str(self._sample_files()) if recipe.needs.samples else None,
                "signature": msgspec.to_builtins(source.signature),
                "trials": msgspec.to_builtins(self.material.trials),
                "out": str(out),
            }
            self._run(title, "edgekit.build.kitchen:make", arguments)
        except Refused as error:
            return failed(failure=_reason(error, out))
        return Variant(recipe=recipe, kind=kind, tuning=tuning, path=out)

    def _start(self, recipe: Recipe, tuning: Tuning) -> tuple[Path | None, str]:
        """The float model that a recipe works on, or why there is none."""
        kind, source = recipe.needs.runtime, self.material.source
        if kind is source.kind is not RuntimeKind.ONNXRUNTIME:
            return source.path, ""
        conversion = conversion_to(kind, all_recipes())
        if conversion is None or recipe.converts:
            return self.base(Base.of(tuning)), "the rewriting changed nothing"
        with self._converting:  # several recipes may want it at once
            converted = self.make(conversion)
        if converted.failure is not None:
            return None, f"the model cannot be converted ({converted.failure})"
        return converted.path, ""

    def layers(self, kind: RuntimeKind) -> tuple[str, ...]:
        """Names of what a tuning may spare, in the order of the graph.

        Weighted nodes of the normalized model; of LiteRT, the tensors that weighted operators of
        the float model write.
        """
        if kind not in self._layers:
            self._layers[kind] = self._read_layers(kind)
        return self._layers[kind]

    def _rank_layers(self) -> tuple[NodeNoise, ...]:
        """Of the float LiteRT model; empty where that takes too long. Errors: `Refused`."""
        path = self._float_model(RuntimeKind.LITERT)
        facts = read_litert(path, self._workshop.run) if path is not None else None
        if facts is None or self.material.data is None:
            return ()
        arguments = {
            "model": str(path),
            "layers": list(facts.layers),
            "samples": str(self._sample_files()),
            "most_s": _RANKING_S,
            "home": str(self._scratch / "ranking"),
        }
        found = self._run("ranking layers", f"{_LITERT}:rank", arguments)
        return tuple(
            NodeNoise(
                node=name,
                operator=facts.layers[name].operator,
                noise_db=decibels(ratio),
                parameters=facts.layers[name].parameters,
            )
            for name, ratio in sorted(found.items(), key=lambda item: -item[1])
        )

    def _read_layers(self, kind: RuntimeKind) -> tuple[str, ...]:
        if kind is RuntimeKind.ONNXRUNTIME:
            return tuple(weighted_names(onnx.load_model(self.normalized, load_external_data=False)))
        path = self._float_model(kind)
        found = read_litert(path, self._workshop.run) if path is not None else None
        return tuple(found.layers) if found is not None else ()

    def _float_model(self, kind: RuntimeKind) -> Path | None:
        """The float LiteRT model that others are made of, if there is one."""
        conversion = conversion_to(kind, all_recipes())
        if self.material.source.kind is kind:
            return self.material.source.path
        if conversion is None:
            return None
        made = self.make(conversion)
        return made.path if made.failure is None else None

    def _sample_files(self) -> Path:
        """Tensor files of samples that variants are made with, from all over the data."""
        with self._sampling:
            home = self._scratch / "samples"
            if home.exists():
                return home
            home.mkdir()
            count, used = self.material.calibration_count, 0
            step = max(1, (count or 0) // _SAMPLES)
            chosen = islice(self.material.calibration_samples(), 0, None, step)
            digest = Digest()
            for index, sample in enumerate(islice(chosen, _SAMPLES)):
                used += sum(array.nbytes for array in sample.feeds.values())
                if index and used > _SAMPLE_BYTES:
                    break
                digest.add(sample)
                write_tensors(home / f"{index:04}.npz", sample.feeds)
                self.sampled = Calibration(samples=index + 1, sha256=digest.hexdigest())
            return home

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

    def _ranges_of(
        self, estimator: Estimator | None, base: Base, model: Path
    ) -> Mapping[str, Range]:
        """Errors: `Refused`."""
        if estimator is None:
            return {}
        calibration = self._calibration_of(base, model)
        if calibration.failure is not None:
            raise Refused("there are no ranges.")
        if estimator is Estimator.MEASURED:
            return self._measured_of(base, model)
        return calibration.ranges.get(estimator, {})

    def _measured_of(self, base: Base, model: Path) -> Mapping[str, Range]:
        """Of each tensor's ranges the one that the outputs suffer least from, found when first
        asked for. Errors: `Refused`."""
        with self._studying:
            if base not in self._measured:
                estimated = self._calibration_of(base, model).ranges
                arguments = {
                    "model": str(model),
                    "ranges": {
                        each.value: _told(found)
                        for each, found in estimated.items()
                        if each in CHOSEN_AMONG
                    },
                    "samples": self._samples(),
                    "threads": self._threads,
                    "scratch": str(self._scratch),
                }
                with self._progress.stage("measuring ranges", None):
                    found = self._run("measuring ranges", f"{_STUDIES}:ranges", arguments)
                self._measured[base] = _ranges(found)
            return self._measured[base]

    def _moments_of(self, base: Base, model: Path) -> Path:
        """Moments of what weighted nodes read, collected when first asked for.

        Errors: `Refused`.
        """
        with self._studying:
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
    given: str,
    normalized: str,
    ranges: Mapping[str, Any],
    moments: str | None,
    samples: str | None,
    signature: Any,
    trials: Any,
    out: str,
) -> None:
    """In the child: make one variant, load it and run it once. Errors: whatever goes wrong."""
    found = find_recipe(recipe)
    ingredients = Ingredients(
        given=Path(given),
        normalized=Path(normalized),
        ranges=_ranges(ranges),
        out=Path(out),
        tuning=msgspec.convert(tuning, Tuning),
        moments=Path(moments) if moments is not None else None,
        samples=Path(samples) if samples is not None else None,
        signature=msgspec.convert(signature, Signature),
        trials=msgspec.convert(trials, tuple[Trial, ...]),
        home=Path.cwd() / "home",
    )
    found.make(ingredients)
    session = open_session(found.needs.runtime, Path(out))
    if found.needs.runtime is not RuntimeKind.ONNXRUNTIME:
        assert ingredients.signature is not None
        check_signature(session, ingredients.signature)
    session.run(read_tensors(Path(ingredients.trials[0].feeds)))


def _told(ranges: Mapping[str, Range]) -> dict[str, tuple[float, float]]:
    return {name: (found.low, found.high) for name, found in ranges.items()}


def _ranges(told: Mapping[str, Any]) -> dict[str, Range]:
    return {name: Range(low, high) for name, (low, high) in told.items()}


def _reason(error: Refused, out: Path) -> str:
    """Without names of scratch files and the runtime's codes."""
    return _plain(error).replace(f"{out.name} does not load", "does not load")


def _plain(error: Refused) -> str:
    return re.sub(r"\[ONNXRuntimeError\] : \d+ : \w+ : ", "", str(error)).rstrip(".")


_STUDIES: Final = "edgekit_converters.studies"
_LITERT: Final = "edgekit_converters.litert.quantization"
_REWRITES: Final = {
    Base.EQUALIZED: "equalizing channels",
    Base.LEVELLED: "levelling channels",
    Base.SMOOTHED: "smoothing activations",
}
"""What the function in `_STUDIES` that is named as the base does."""
