"""The shelf: steps of a build that other builds of the same model have taken before.

Invariant: a step's key is of the very bytes that go into it, so that whoever asks for the same gets
the same; without a cache every step is taken anew. What is on the shelf is never changed.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import msgspec

from edgekit.build.cache import Cache, Kind
from edgekit.build.fingerprint import key_of
from edgekit_converters import external, isolation
from edgekit_converters.calibration.estimators import Estimator, Range
from edgekit_converters.normalization import Normalized, normalize
from edgekit_converters.proof import Trial
from edgekit_converters.sources import sha256_of

__all__ = ["NOTHING_KEPT", "KeptRanges", "Shelf"]


class _Steps(msgspec.Struct, frozen=True, kw_only=True):
    steps: tuple[str, ...]
    remarks: tuple[str, ...]
    changed: bool


class KeptRanges(msgspec.Struct, frozen=True, kw_only=True):
    """What one estimator said of a model's tensors."""

    ranges: dict[str, Range]
    samples: int
    sha256: str
    """Digest of the samples, see `samples.Digest`."""
    seen: frozenset[bytes]
    """See `ranges.Calibration`."""


@dataclass(frozen=True, kw_only=True)
class Shelf:
    cache: Cache | None = None
    data: Mapping[str, str] = field(default_factory=dict)
    """Digests of DATA: `calibration`, `validation`."""
    scratch: Path = Path()

    def normalize(
        self,
        given: Path,
        *,
        trials: Sequence[Trial],
        scratch: Path,
        run: isolation.Run,
        run_s: float,
        clock: Callable[[], float],
    ) -> Normalized:
        """As `steps.normalize`, or what that gave another build, if that had time for all steps.

        A model with weights beside its file is always normalized anew: its forms share that file.
        """
        take = partial(
            normalize, given, trials=trials, scratch=scratch, run=run, run_s=run_s, clock=clock
        )
        if self.cache is None or external.is_external(given):
            return take()
        key = key_of(
            {
                "model": sha256_of(given),
                "trials": [(sha256_of(Path(t.feeds)), sha256_of(Path(t.reference)))
                           for t in trials],
            }
        )  # fmt: skip
        kept = self.cache.get(Kind.NORMALIZED, key, _Steps, into=self.scratch)
        if kept is not None:
            told, path = kept.value, given
            if told.changed:
                path = scratch / "normalized.onnx"
                shutil.move(kept.files["model.onnx"], path)
            return Normalized(path=path, steps=told.steps, remarks=told.remarks)
        made = take()
        if made.is_cut:
            return made
        changed = made.path != given
        self.cache.put(
            Kind.NORMALIZED,
            key,
            _Steps(steps=made.steps, remarks=made.remarks, changed=changed),
            {"model.onnx": made.path} if changed else {},
        )
        return made

    def ranges(
        self, model: Path, estimators: Sequence[Estimator], *, role: str
    ) -> dict[Estimator, KeptRanges]:
        """Those that are known of a model on the DATA of this role."""
        if self.cache is None:
            return {}
        found = {}
        for estimator, key in self._keys(model, estimators, role).items():
            kept = self.cache.get(Kind.RANGES, key, KeptRanges, into=self.scratch)
            if kept is not None:
                found[estimator] = kept.value
        return found

    def keep_ranges(self, model: Path, found: Mapping[Estimator, KeptRanges], *, role: str) -> None:
        if self.cache is not None:
            for estimator, key in self._keys(model, tuple(found), role).items():
                self.cache.put(Kind.RANGES, key, found[estimator], {})

    def _keys(
        self, model: Path, estimators: Sequence[Estimator], role: str
    ) -> dict[Estimator, str]:
        digests = [sha256_of(path) for path in external.files(model)]
        return {
            estimator: key_of(
                {
                    "model": digests,
                    "data": self.data[role],
                    "apart": len(self.data) > 1,
                    "estimator": estimator,
                }
            )
            for estimator in estimators
        }


NOTHING_KEPT = Shelf()
