"""Releases as the TUF targets metadata hold them. Pure.

Invariants: counters of a model only grow, and all bundles of a release share its counter and
floor; a released bundle never changes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec
from tuf.api.metadata import TargetFile, Targets

from edgekit_contract import names
from edgekit_contract.envelope import Envelope
from edgekit_contract.errors import Refused
from edgekit_contract.manifest import Manifest

__all__ = [
    "BENCHES_KEPT",
    "BundleChanged",
    "BundleTarget",
    "Release",
    "Sizes",
    "UnknownRelease",
    "extend",
    "releases_in",
    "sign_bench",
    "target_path",
]


BENCHES_KEPT: Final = 32
"""Bundles that stay signed to be measured."""


class BundleChanged(Refused):
    """A bundle that a release holds already, with other bytes."""

    def __init__(self, title: str) -> None:
        super().__init__(
            f"{title} is released with other content, and a release never changes: "
            "build it with a new --version."
        )


class UnknownRelease(Refused):
    """A NAME@VERSION that is not in the repository."""

    def __init__(self, name: str, version: str, known: Sequence[str]) -> None:
        super().__init__(
            f"there is no release {name}@{version}; "
            + (f"released of {name}: {', '.join(known)}" if known else f"{name} has none")
            + " (edgekit release list)."
        )


class Sizes(msgspec.Struct, frozen=True, kw_only=True):
    envelope_bytes: int
    unpacked_bytes: int
    download_bytes: int
    """Envelope and each distinct file once: what a device without any of them fetches."""


class _Custom(msgspec.Struct, frozen=True, kw_only=True):
    """The signed custom fields of a target."""

    profile: str
    runtime: str
    sizes: Sizes
    counter: int
    floor: int


class BundleTarget(msgspec.Struct, frozen=True, kw_only=True):
    """One bundle of a release, as its target describes it."""

    profile: str
    runtime: str
    digest: str
    """SHA-256 of the envelope."""
    sizes: Sizes


class Release(msgspec.Struct, frozen=True, kw_only=True):
    """The bundles of one name and version. `counter` orders the releases of a name."""

    name: str
    version: str
    counter: int
    floor: int
    """COMMIT of this release raises the device's floor to this counter."""
    bundles: Mapping[str, BundleTarget]
    """By profile."""

    @property
    def title(self) -> str:
        return f"{self.name}@{self.version}"


def target_path(name: str, version: str, profile: str) -> str:
    """The TUF target path of a bundle's envelope."""
    return f"{name}/{version}/{profile}.dsse.json"


def extend(
    targets: Targets, envelopes: Sequence[Envelope], *, floor: str | None
) -> dict[str, bytes]:
    """Add to `targets` the envelopes that are new; returns target path to bytes of those.

    Errors: `BundleChanged`, `UnknownRelease` for `floor`.
    """
    added: dict[str, bytes] = {}
    for envelope in envelopes:
        manifest, raw = envelope.manifest, envelope.raw
        path = target_path(manifest.name, manifest.version, manifest.profile)
        digest = hashlib.sha256(raw).hexdigest()
        if path in targets.targets:
            if targets.targets[path].hashes["sha256"] != digest:
                raise BundleChanged(manifest.title)
            continue
        counter, lowest = _counters(releases_in(targets), manifest, floor)
        custom = _Custom(
            profile=manifest.profile,
            runtime=manifest.runtime.value,
            sizes=_sizes(manifest, raw),
            counter=counter,
            floor=lowest,
        )
        targets.targets[path] = TargetFile(
            len(raw), {"sha256": digest}, path, {"custom": msgspec.to_builtins(custom)}
        )
        added[path] = raw
    return added


def sign_bench(targets: Targets, envelopes: Sequence[Envelope]) -> dict[str, bytes]:
    """Add to `targets` envelopes that are only to be measured; target path to bytes of the new.

    Of those before, the newest `BENCHES_KEPT` stay signed.
    """
    added: dict[str, bytes] = {}
    kept = {path: t for path, t in targets.targets.items() if path.startswith(f"{names.BENCH}/")}
    last = max((msgspec.convert(t.custom, _Custom).counter for t in kept.values()), default=0)
    for envelope in envelopes:
        manifest, raw = envelope.manifest, envelope.raw
        digest = hashlib.sha256(raw).hexdigest()
        path = f"{names.BENCH}/{digest}/{manifest.profile}.dsse.json"
        if path in targets.targets:
            continue
        last += 1
        custom = _Custom(
            profile=manifest.profile,
            runtime=manifest.runtime.value,
            sizes=_sizes(manifest, raw),
            counter=last,
            floor=0,
        )
        targets.targets[path] = TargetFile(
            len(raw), {"sha256": digest}, path, {"custom": msgspec.to_builtins(custom)}
        )
        added[path] = raw
    oldest = sorted(kept, key=lambda path: msgspec.convert(kept[path].custom, _Custom).counter)
    for path in oldest[: max(0, len(kept) + len(added) - max(BENCHES_KEPT, len(added)))]:
        del targets.targets[path]
    return added


def _counters(
    releases: Sequence[Release], manifest: Manifest, floor: str | None
) -> tuple[int, int]:
    """Counter and floor of the release that a bundle joins or begins."""
    kin = {r.version: r for r in releases if r.name == manifest.name}
    if (release := kin.get(manifest.version)) is not None:
        return release.counter, release.floor
    before = max((r.counter for r in kin.values()), default=0)
    if floor is None:
        return before + 1, before
    if floor == manifest.version:
        return before + 1, before + 1
    if floor not in kin:
        raise UnknownRelease(manifest.name, floor, list(kin))
    return before + 1, kin[floor].counter


def _sizes(manifest: Manifest, raw: bytes) -> Sizes:
    distinct = {entry.sha256: entry.size for entry in manifest.files}
    return Sizes(
        envelope_bytes=len(raw),
        unpacked_bytes=manifest.requires.unpacked_bytes,
        download_bytes=len(raw) + sum(distinct.values()),
    )


def releases_in(targets: Targets) -> tuple[Release, ...]:
    """Everything that `targets` release, by name, newest first."""
    bundles: dict[tuple[str, str], dict[str, BundleTarget]] = {}
    ranks: dict[tuple[str, str], tuple[int, int]] = {}
    for path, target in targets.targets.items():
        name, version, _ = path.split("/")
        if name == names.BENCH:
            continue
        custom = msgspec.convert(target.custom, _Custom)
        ranks[name, version] = custom.counter, custom.floor
        bundles.setdefault((name, version), {})[custom.profile] = BundleTarget(
            profile=custom.profile,
            runtime=custom.runtime,
            digest=target.hashes["sha256"],
            sizes=custom.sizes,
        )
    found = [
        Release(name=key[0], version=key[1], counter=rank[0], floor=rank[1], bundles=bundles[key])
        for key, rank in ranks.items()
    ]
    return tuple(sorted(found, key=lambda r: (r.name, -r.counter)))
