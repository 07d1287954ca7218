"""The kitchen: makes variants, each in a child process that also loads and runs what it made.

Invariant: a variant is usable only after it has loaded and run where it was made; whatever goes
wrong with one there is its reason for losing, never the build's. Nothing is made twice.

What is caught: a variant that brings the runtime down when it is loaded, or run on the first
sample, and a model that does so when it is rewritten, ranked or calibrated. What is not: screen and
bench run variants in the build's own process, with the profile's options and on all samples; one
that crashes only there ends the build.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec
import onnx

from edgekit.build.material import read_litert
from edgekit.build.model_file import ModelFile
from edgekit.build.pantry import STUDIES, Base, Pantry, plain, ranges_in, told
from edgekit_contract.errors import Refused
from edgekit_contract.profile import RuntimeKind
from edgekit_converters import isolation
from edgekit_converters.litert.conversion import check_signature
from edgekit_converters.proof import Signature, Trial
from edgekit_converters.quantization.outputs import decibels
from edgekit_converters.quantization.selection import weighted_names
from edgekit_converters.quantization.sensitivity import NodeNoise
from edgekit_converters.recipes import BASELINE, all_recipes, conversion_to, find_recipe
from edgekit_converters.recipes.recipe import Ingredients, Recipe
from edgekit_converters.recipes.tuning import UNTUNED, Tuning
from edgekit_converters.tensorfile import read_tensors
from edgekit_runtime.session import open_session

__all__ = ["Kitchen", "Variant"]

_SUFFIXES: Final = {
    RuntimeKind.ONNXRUNTIME: ".onnx",
    RuntimeKind.LITERT: ".tflite",
    RuntimeKind.NULL: ".json",
}
_MAKERS: Final = 2
"""Children at a time: each holds a few copies of the model."""
_RANKING_S: Final = 15.0
_NOISE_SAMPLES: Final = 16


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

    def __init__(self, pantry: Pantry, workshop: isolation.Workshop, *, scratch: Path) -> None:
        self.pantry, self.material = pantry, pantry.material
        self._workshop, self._scratch = workshop, scratch
        self._made: dict[tuple[str, Tuning], Variant] = {}
        self._numbers = itertools.count()
        self._noise: dict[RuntimeKind, tuple[NodeNoise, ...]] = {}
        self._layers: dict[RuntimeKind, tuple[str, ...]] = {}
        self._converting = threading.Lock()

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

    def is_ranked(self, kind: RuntimeKind) -> bool:
        """Whether `noise` has been measured."""
        return kind in self._noise

    def read_samples(self, kind: RuntimeKind) -> None:
        """Read from DATA what `noise` needs, where that is still to be measured."""
        if kind not in self._noise and self._is_rankable(kind):
            with self._leaving_out(kind):
                if kind is RuntimeKind.ONNXRUNTIME:
                    self.pantry.samples()
                else:
                    self.pantry.sample_files()

    def noise(self, kind: RuntimeKind) -> tuple[NodeNoise, ...]:
        """What quantizing each node does, the noisiest first, measured when first asked for; empty
        where it cannot be measured."""
        if kind not in self._noise:
            with self._leaving_out(kind):
                rank = self._rank_nodes if kind is RuntimeKind.ONNXRUNTIME else self._rank_layers
                self._noise[kind] = rank() if self._is_rankable(kind) else ()
        return self._noise[kind]

    def _is_rankable(self, kind: RuntimeKind) -> bool:
        if kind is RuntimeKind.ONNXRUNTIME:
            is_onnx = self.material.source.kind is RuntimeKind.ONNXRUNTIME
            return is_onnx and self.pantry.calibration.failure is None
        return self.material.data is not None

    @contextlib.contextmanager
    def _leaving_out(self, kind: RuntimeKind) -> Iterator[None]:
        """Nodes stay unranked where that fails, and a remark says so."""
        try:
            yield
        except Refused as error:
            self._noise[kind] = ()
            self.pantry.remarks.append(f"Nodes were not ranked: {plain(error)}.")

    def _rank_nodes(self) -> tuple[NodeNoise, ...]:
        """Errors: `Refused`."""
        arguments = {
            "model": str(self.pantry.normalized),
            "ranges": told(self.pantry.calibration.widest),
            "samples": self.pantry.samples()[:_NOISE_SAMPLES],
            "threads": 1,
            "scratch": str(self._scratch),
        }
        found = self.pantry.run("ranking nodes", f"{STUDIES}:noise", arguments)
        return msgspec.convert(found, tuple[NodeNoise, ...])

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
        title = tuning.title_of(recipe.id)
        try:
            base = Base.of(tuning)
            ranges = self.pantry.ranges_of(recipe.needs.estimator, base, start)
            moments = str(self.pantry.moments_of(base, start)) if tuning.is_rounded else None
            arguments = {
                "recipe": recipe.id,
                "tuning": msgspec.to_builtins(tuning),
                "given": str(source.path),
                "normalized": str(start),
                "ranges": told(ranges),
                "moments": moments,
                "samples": str(self.pantry.sample_files()) if recipe.needs.samples else None,
                "signature": msgspec.to_builtins(source.signature),
                "trials": msgspec.to_builtins(self.material.trials),
                "out": str(out),
            }
            self.pantry.run(title, "edgekit.build.kitchen:make", arguments)
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
            return self.pantry.base(Base.of(tuning)), "the rewriting changed nothing"
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
        if facts is None:
            return ()
        arguments = {
            "model": str(path),
            "layers": list(facts.layers),
            "samples": str(self.pantry.sample_files()),
            "most_s": _RANKING_S,
            "home": str(self._scratch / "ranking"),
        }
        found = self.pantry.run("ranking layers", f"{_LITERT}:rank", arguments)
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
            return tuple(
                weighted_names(onnx.load_model(self.pantry.normalized, load_external_data=False))
            )
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
        ranges=ranges_in(ranges),
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


def _reason(error: Refused, out: Path) -> str:
    """Without names of scratch files and the runtime's codes."""
    return plain(error).replace(f"{out.name} does not load", "does not load")


_LITERT: Final = "edgekit_converters.litert.quantization"
