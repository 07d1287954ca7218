"""The pantry: what variants of a model start from, each made when it is first asked for.

Float models that are rewritten (`Base`), ranges of their tensors, moments of what their layers
read, and files of samples. What runs a model does so in a child (`edgekit_converters.studies`).

Invariant: nothing is made twice, whoever asks at the same time; what fails is left out with a
remark.
"""

from __future__ import annotations

import math
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from itertools import islice
from pathlib import Path
from typing import Any, Final

from edgekit.build.material import Material
from edgekit.build.progress import Progress
from edgekit.build.ranges import Calibration, calibrate
from edgekit.build.samples import Digest
from edgekit_contract import limits
from edgekit_contract.errors import Refused
from edgekit_converters import external, isolation
from edgekit_converters.calibration.estimators import CHOSEN_AMONG, Estimator, Range
from edgekit_converters.recipes.tuning import Tuning
from edgekit_converters.tensorfile import write_tensors

__all__ = ["STUDIES", "Base", "Pantry", "plain", "ranges_in", "told"]

STUDIES: Final = "edgekit_converters.studies"
_SAMPLES: Final = 128
_SAMPLE_BYTES: Final = 256 * limits.MIB
"""At most, of the data that recipes are given as files."""
_STUDIED: Final = 24
"""Calibration samples that conditioning works with."""
_MOMENT_SAMPLES: Final = 256
"""At most, where moments need more of them and there is time."""
_MOMENT_SHARE: Final = 0.4
"""Of the time for calibration: what moments of further samples may take."""
_STUDIED_BYTES: Final = 256 * limits.MIB
"""Of their files; a larger first one is used all the same."""
_MAKE_TIMEOUT_S: Final = 120.0


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


_REWRITES: Final = {
    Base.EQUALIZED: "equalizing channels",
    Base.LEVELLED: "levelling channels",
    Base.SMOOTHED: "smoothing activations",
}
"""What the function in `STUDIES` that is named as the base does."""
_PAID_SHARE: Final = 0.03
"""Of the errors of all tensors: what a node that smooths one takes away, or it is not worth its
time."""


class Pantry:
    """Of one model."""

    def __init__(
        self,
        material: Material,
        estimators: tuple[Estimator, ...],
        workshop: isolation.Workshop,
        *,
        scratch: Path,
        threads: int,
        progress: Progress,
        is_thrifty: bool = False,
        calibration_s: float = math.inf,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Calibrates for at most `calibration_s` by the clock, where `estimators` name any.

        Where it `is_thrifty`, smoothing adds nodes only where they are worth their time.

        Errors: `DataRejected`.
        """
        self.material = material
        self._workshop, self._scratch, self._threads = workshop, scratch, threads
        self._progress, self._estimators = progress, estimators
        self._is_thrifty = is_thrifty
        self._calibration_s, self._clock = calibration_s, clock
        self.remarks: list[str] = []
        """What was left out, a sentence each."""
        self.sampled = Calibration()
        """What recipes that need samples were given."""
        self._bases: dict[Base, Path | None] = {Base.NORMALIZED: material.normalized.path}
        self._calibrations: dict[Base, Calibration] = {}
        self._calibrating_s = 0.0
        """How long the last calibration took."""
        self._measured: dict[Base, Mapping[str, Range]] = {}
        self._moments: dict[Base, Path] = {}
        self._studied: tuple[str, ...] = ()
        self._asked = 0
        self._studying, self._sampling = threading.RLock(), threading.Lock()
        self.calibration = self._calibration_of(Base.NORMALIZED, self.normalized)

    @property
    def normalized(self) -> Path:
        return self.material.normalized.path

    def base(self, base: Base) -> Path | None:
        """The float model to start from; None where rewriting it does not help."""
        with self._studying:
            if base not in self._bases:
                self._bases[base] = self._rewritten(base)
            return self._bases[base]

    def _rewritten(self, base: Base) -> Path | None:
        out = self._scratch / f"{base.value}.onnx"
        arguments = {
            "model": str(self.normalized),
            "out": str(out),
            "samples": self.samples(),
            "feeds": str(self.material.feeds),
            "reference": str(self.material.reference),
            "threads": self._threads,
        }
        if base is Base.SMOOTHED:
            arguments["paid_share"] = _PAID_SHARE if self._is_thrifty else 0.0
        try:
            changed = self.run(_REWRITES[base], f"{STUDIES}:{base.value}", arguments)
        except Refused as error:
            self.remarks.append(f"{_REWRITES[base].capitalize()} was left out: {plain(error)}.")
            return None
        return out if changed else None

    def samples(self, most: int = _STUDIED, *, most_s: float = math.inf) -> tuple[str, ...]:
        """Files of the first samples that variants are made with, for children; written when first
        asked for, those beyond the first few for at most `most_s`."""
        with self._sampling:
            if most > self._asked:
                self._studied, self._asked = tuple(self._written(most, most_s)), most
            return self._studied[:most]

    def _written(self, most: int, most_s: float) -> Iterator[str]:
        written, began = 0, self._clock()
        for index, sample in enumerate(islice(self.material.calibration_samples(), most)):
            path = self._scratch / f"studied{index}.npz"
            if not path.exists():
                write_tensors(path, sample.feeds)
            yield str(path)
            written += path.stat().st_size
            is_late = index + 1 >= _STUDIED and self._clock() - began > most_s
            if written > _STUDIED_BYTES or is_late:
                return

    def sample_files(self) -> Path:
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

    def ranges_of(
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
                        each.value: told(found)
                        for each, found in estimated.items()
                        if each in CHOSEN_AMONG
                    },
                    "samples": self.samples(),
                    "threads": self._threads,
                    "scratch": str(self._scratch),
                }
                with self._progress.stage("measuring ranges", None):
                    found = self.run("measuring ranges", f"{STUDIES}:ranges", arguments)
                self._measured[base] = ranges_in(found)
            return self._measured[base]

    def _calibration_of(self, base: Base, path: Path) -> Calibration:
        """Ranges of a rewritten model, estimated when first asked for."""
        with self._studying:
            if base not in self._calibrations:
                began = self._clock()
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
                self._calibrating_s = self._clock() - began
                self._tell_failure(
                    self._calibrations[base],
                    "" if base is Base.NORMALIZED else f" of the {base.value} model",
                )
            return self._calibrations[base]

    def _tell_failure(self, calibration: Calibration, whose: str) -> None:
        if calibration.failure is not None:
            self.remarks.append(
                f"Recipes that need ranges{whose} were left out: {calibration.failure}."
            )

    def calibrating_s(self, base: Base) -> float:
        """How long it may take to calibrate; nothing where that is done."""
        return 0.0 if base in self._calibrations else self._calibrating_s

    def rounding_s(self, base: Base) -> float:
        """How long it may take to round weights: to collect moments, where there are none, and
        about as long to work with them."""
        return self._observing_s if base in self._moments else 2 * self._observing_s

    @property
    def _observing_s(self) -> float:
        return min(self._calibration_s * _MOMENT_SHARE, _MAKE_TIMEOUT_S / 2)

    def moments_of(self, base: Base, model: Path) -> Path:
        """Moments of what weighted nodes read, collected when first asked for.

        Errors: `Refused`.
        """
        with self._studying:
            if base not in self._moments:
                path = self._scratch / f"moments-{base.value}.npz"
                most_s, began = self._observing_s, self._clock()
                files = self.samples(_MOMENT_SAMPLES, most_s=most_s)
                arguments = {
                    "model": str(model),
                    "out": str(path),
                    "samples": files,
                    "least": _STUDIED,
                    "most_s": max(0.0, most_s - (self._clock() - began)),
                    "threads": self._threads,
                }
                with self._progress.stage("observing what layers read", None):
                    self.run("observing what layers read", f"{STUDIES}:moments", arguments)
                self._moments[base] = path
            return self._moments[base]

    def run(self, step: str, target: str, arguments: Mapping[str, Any]) -> Any:
        size = external.size_bytes(self.material.source.path)
        bounds = isolation.limits_for(size, timeout_s=_MAKE_TIMEOUT_S)
        return self._workshop.run(step, target, arguments, bounds)


def told(ranges: Mapping[str, Range]) -> dict[str, tuple[float, float]]:
    return {name: (found.low, found.high) for name, found in ranges.items()}


def ranges_in(told: Mapping[str, Any]) -> dict[str, Range]:
    return {name: Range(low, high) for name, (low, high) in told.items()}


def plain(error: Refused) -> str:
    return re.sub(r"\[ONNXRuntimeError\] : \d+ : \w+ : ", "", str(error)).rstrip(".")
