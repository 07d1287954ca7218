"""What a build made for one profile, before it is signed: to be kept, sent, and signed by others.

Invariant: it is all of the bundle but signature and commit, so that whoever holds the key makes
the same bundle of it; the key is never where it is made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import msgspec

from edgekit.build.cache import Cache, Kind
from edgekit.build.data import Data
from edgekit.build.fingerprint import key_of, repeatable_model, result_key
from edgekit.build.pack import Sealed
from edgekit.build.parcel import Unpacked, pack, unpack
from edgekit.build.plan import ProfilePlan, SkippedRecipe
from edgekit.build.report import Report
from edgekit.build.request import BuildRequest
from edgekit_contract.envelope import ENVELOPE_PATH, decode
from edgekit_contract.profile import Profile, Runtime
from edgekit_converters.recipes import find_recipe
from edgekit_converters.sources import Source, sha256_of

__all__ = ["Finished", "Records", "receive", "send"]


@dataclass(frozen=True, kw_only=True)
class Finished:
    plan: ProfilePlan
    report: Report
    sealed: Sealed
    """Without a signature."""
    contenders: tuple[Sealed, ...] = ()
    """Variants to be measured beside it, without a signature, too."""
    built_at: str
    """RFC 3339, UTC."""
    cached: bool = False
    """Whether another build made it."""


class _Bundle(msgspec.Struct, frozen=True, kw_only=True):
    filename: str
    envelope: bytes


class _Told(msgspec.Struct, frozen=True, kw_only=True):
    """What is not in the files."""

    bundles: tuple[_Bundle, ...]
    """The chosen one, then contenders; files of each are named by its number, too."""
    report: Report
    profile: Profile
    runtimes: tuple[Runtime, ...]
    recipes: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]
    built_at: str


def send(out: BinaryIO, finished: Finished) -> None:
    """Write it as a parcel."""
    pack(out, *_packed(finished))


def receive(parcel: bytes, *, into: Path) -> Finished:
    """Errors: `DamagedParcel`, `BundleRejected`; `OSError`."""
    return _unpacked(unpack(parcel, _Told, into=into))


def _packed(finished: Finished) -> tuple[_Told, Mapping[str, Path | bytes]]:
    plan, bundles = finished.plan, (finished.sealed, *finished.contenders)
    told = _Told(
        bundles=tuple(_Bundle(filename=b.filename, envelope=b.envelope) for b in bundles),
        report=finished.report,
        profile=plan.profile,
        runtimes=plan.runtimes,
        recipes=tuple(recipe.id for recipe in plan.recipes),
        skipped=tuple((skipped.recipe, skipped.reason) for skipped in plan.skipped),
        built_at=finished.built_at,
    )
    return told, {
        f"{number}/{path}": source
        for number, bundle in enumerate(bundles)
        for path, source in bundle.members[1:]
    }


def _unpacked(unpacked: Unpacked[_Told], *, cached: bool = False) -> Finished:
    told = unpacked.value
    sealed, *contenders = (
        _sealed(bundle, number, unpacked.files) for number, bundle in enumerate(told.bundles)
    )
    return Finished(
        plan=ProfilePlan(
            profile=told.profile,
            runtimes=told.runtimes,
            recipes=tuple(find_recipe(recipe) for recipe in told.recipes),
            skipped=tuple(SkippedRecipe(recipe=r, reason=why) for r, why in told.skipped),
        ),
        report=told.report,
        sealed=sealed,
        contenders=tuple(contenders),
        built_at=told.built_at,
        cached=cached,
    )


def _sealed(bundle: _Bundle, number: int, files: Mapping[str, Path]) -> Sealed:
    entries = decode(bundle.envelope).manifest.files
    return Sealed(
        filename=bundle.filename,
        envelope=bundle.envelope,
        members=(
            (ENVELOPE_PATH, bundle.envelope),
            *((entry.path, files[f"{number}/{entry.path}"]) for entry in entries),
        ),
        signed=False,
    )


class _Weights(msgspec.Struct, frozen=True):
    """Files beside a model file that hold weights of it."""

    names: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Records:
    """The cache as one request sees it: what was built of the same before."""

    cache: Cache | None
    request: BuildRequest
    data: Mapping[str, Data]
    """By what it is for."""
    digests: Mapping[str, str]
    """Of `data`."""

    @classmethod
    def of(
        cls, request: BuildRequest, cache: Cache | None, data: Mapping[str, Data | None]
    ) -> Records:
        """Errors: `DataRejected`."""
        given = {name: source for name, source in data.items() if source is not None}
        return cls(
            cache=cache,
            request=request,
            data=given,
            digests={name: d.sha256() for name, d in given.items()} if cache is not None else {},
        )

    def find(self, *, into: Path) -> dict[str, Finished]:
        """By profile, what is kept."""
        file = repeatable_model(self.request)
        if self.cache is None or file is None:
            return {}
        weights = self.cache.get(
            Kind.WEIGHTS, self._weights_key(sha256_of(file)), _Weights, into=into
        )
        if weights is None:
            return {}
        beside = file.resolve().parent
        try:
            model = _digests(file, [beside / name for name in weights.value.names])
        except OSError:
            return {}
        found = {}
        for profile in self.request.profiles:
            key = self._key(profile, model)
            kept = self.cache.get(Kind.BUNDLE, key, _Told, into=into)
            if kept is not None:
                found[profile.name] = _unpacked(kept, cached=True)
        return found

    def keep(self, source: Source, made: Sequence[Finished]) -> None:
        """Keep what was built of this model; not where DATA changed meanwhile."""
        file = repeatable_model(self.request)
        if self.cache is None or file is None:
            return
        if {name: data.sha256() for name, data in self.data.items()} != self.digests:
            return
        home = file.resolve().parent
        beside = {path.resolve().relative_to(home).as_posix(): sha for path, sha in source.data}
        names, model = tuple(beside), {"": source.sha256, **beside}
        self.cache.put(Kind.WEIGHTS, self._weights_key(source.sha256), _Weights(names), {})
        for finished in made:
            key = self._key(finished.plan.profile, model)
            self.cache.put(Kind.BUNDLE, key, *_packed(finished))

    def _key(self, profile: Profile, model: Mapping[str, str]) -> str:
        both = self.request.calibration is not None and "calibration" not in self.data
        data = {**self.digests, "calibrates with what it validates with": both}
        return result_key(self.request, profile, model=model, data=data)

    def _weights_key(self, sha256: str) -> str:
        return key_of({"weights of": sha256})


def _digests(model: Path, beside: Sequence[Path]) -> dict[str, str]:
    home = model.resolve().parent
    return {
        "": sha256_of(model),
        **{path.resolve().relative_to(home).as_posix(): sha256_of(path) for path in beside},
    }
