"""The TUF repository of a fleet, on disk: releases, their counters and floors.

Invariants: `timestamp.json` is the one file that is ever replaced, and replacing it is what
publishes; whatever fails before leaves the published repository as it was. What the offline
targets key signs was signed by it before, or was named in this call: the published chain is
verified before it is extended.
Source: The Update Framework specification 1.0.33, sections 4 and 6.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
from securesystemslib.signer import CryptoSigner, SSlibKey
from tuf.api.exceptions import RepositoryError, StorageError
from tuf.api.metadata import (
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)
from tuf.api.serialization import DeserializationError

from edgekit.release.admission import admit, look
from edgekit.release.keys import PrivateKey, load_key, new_key
from edgekit.release.releases import Release, UnknownRelease, extend, releases_in, sign_bench
from edgekit.release.storage import TEMPORARY_PREFIX, locked, write_file
from edgekit_contract.envelope import Envelope
from edgekit_contract.errors import Misused, Refused
from edgekit_contract.trust import PublicKey

__all__ = ["Repository", "RepositoryDamaged", "init_repository"]

ROOT_LIFE: Final = timedelta(days=5 * 365)
TARGETS_LIFE: Final = timedelta(days=365)
SNAPSHOT_LIFE: Final = timedelta(days=30)
SNAPSHOT_RENEWAL: Final = timedelta(days=15)
"""A snapshot with less than this to live is signed again."""
TIMESTAMP_LIFE: Final = timedelta(days=7)
TIMESTAMP_RENEWAL: Final = timedelta(days=6)

_ONLINE_ROLES: Final = (Snapshot.type, Timestamp.type)

S = TypeVar("S", Root, Timestamp, Snapshot, Targets)


class RepositoryDamaged(Refused):
    """Metadata on disk that their own keys do not vouch for."""

    def __init__(self, directory: Path, detail: str) -> None:
        super().__init__(
            f"the TUF repository in {directory} does not hold together ({detail}): "
            "restore it from a backup before releasing anything."
        )


def init_repository(
    directory: Path,
    *,
    root_keys: Sequence[PrivateKey],
    root_threshold: int = 1,
    targets_keys: Sequence[PrivateKey],
    now: datetime,
) -> Repository:
    """Make the repository of a fleet directory, and its online keys. Errors: `OSError`."""
    repository = Repository(directory)
    for folder in (repository.metadata, repository.targets, repository.online, repository.blobs):
        folder.mkdir(parents=True)
    online = {role: new_key(repository.online / f"{role}.key", None) for role in _ONLINE_ROLES}
    root = Root(expires=now + ROOT_LIFE, consistent_snapshot=True)
    holders = {Root.type: root_keys, Targets.type: targets_keys} | {
        role: [key] for role, key in online.items()
    }
    for role, keys in holders.items():
        for key in keys:
            root.add_key(_signer(key).public_key, role)
    root.roles[Root.type].threshold = root_threshold
    write_file(repository.metadata / "1.root.json", _signed(root, root_keys))
    targets = _signed(Targets(expires=now + TARGETS_LIFE), targets_keys)
    write_file(repository.metadata / "1.targets.json", targets)
    snapshot = Snapshot(expires=now + SNAPSHOT_LIFE, meta={"targets.json": _meta_file(1, targets)})
    timestamp = Timestamp(expires=now + TIMESTAMP_LIFE)
    repository._publish(snapshot, timestamp)
    return repository


class Repository:
    """The repository of one fleet directory. Methods that write hold its lock."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.metadata = directory / "tuf" / "metadata"
        self.targets = directory / "tuf" / "targets"
        self.online = directory / "tuf" / "online"
        self.blobs = directory / "blobs"

    def first_root(self) -> bytes:
        """The root metadata that enrolment gives to devices; TUF leads from there to newer."""
        return (self.metadata / "1.root.json").read_bytes()

    def stamp(self) -> int:
        """A number that changes when something was published."""
        return (self.metadata / "timestamp.json").stat().st_mtime_ns

    def releases(self) -> tuple[Release, ...]:
        """Everything released, by name, newest first. Errors: `RepositoryDamaged`."""
        return releases_in(self._chain().targets.signed)

    def release(self, name: str, version: str) -> Release:
        """One release. Errors: `UnknownRelease`, `RepositoryDamaged`."""
        found = self.releases()
        for release in found:
            if (release.name, release.version) == (name, version):
                return release
        raise UnknownRelease(name, version, [r.version for r in found if r.name == name])

    def added_at(self, release: Release) -> datetime:
        """When the first bundle of a release was added, by this machine's files."""
        folder = self.targets / release.name / release.version
        times = [
            (folder / f"{bundle.digest}.{profile}.dsse.json").stat().st_mtime
            for profile, bundle in release.bundles.items()
        ]
        return datetime.fromtimestamp(min(times), timezone.utc)

    def expiries(self) -> dict[str, datetime]:
        """When each role's metadata end, by role. Errors: `RepositoryDamaged`."""
        chain = self._chain()
        parts: tuple[Metadata[Root] | Metadata[Targets] | Metadata[Snapshot], ...]
        parts = (chain.root, chain.targets, chain.snapshot)
        return {part.signed.type: part.signed.expires for part in parts} | {
            Timestamp.type: chain.timestamp.signed.expires
        }

    def add_release(
        self,
        bundles: Sequence[Path],
        *,
        targets_key: PrivateKey,
        trusted: Sequence[PublicKey] = (),
        floor: str | None = None,
        now: datetime,
    ) -> tuple[Release, ...]:
        """Publish bundles; those of one name and version join its release. All or none.

        `trusted`: keys of which one must have signed each bundle; none: only digests are checked.
        `floor`: the oldest version that a device may go back to after committing to one of these;
        default: the release before. Adding the same bundle again changes nothing.
        Returns the releases that the bundles belong to.
        Errors: `BundleRejected`, `BundleChanged`, `UnknownRelease`, `RepositoryDamaged`,
        `Misused`, `OSError`.
        """
        added: list[Envelope] = []

        def joined(targets: Targets, envelopes: Sequence[Envelope]) -> dict[str, bytes]:
            added.extend(envelopes)
            return extend(targets, envelopes, floor=floor)

        targets = self._sign(bundles, joined, targets_key=targets_key, trusted=trusted, now=now)
        touched = {(e.manifest.name, e.manifest.version) for e in added}
        return tuple(r for r in releases_in(targets) if (r.name, r.version) in touched)

    def add_bench(
        self,
        bundles: Sequence[Path],
        *,
        targets_key: PrivateKey,
        trusted: Sequence[PublicKey] = (),
        now: datetime,
    ) -> tuple[str, ...]:
        """Sign bundles to be measured on devices, under a name that no release can have.

        Returns the digests of their envelopes. Errors: as `add_release`.
        """
        added: list[Envelope] = []

        def joined(targets: Targets, envelopes: Sequence[Envelope]) -> dict[str, bytes]:
            added.extend(envelopes)
            return sign_bench(targets, envelopes)

        self._sign(bundles, joined, targets_key=targets_key, trusted=trusted, now=now)
        return tuple(hashlib.sha256(envelope.raw).hexdigest() for envelope in added)

    def _sign(
        self,
        bundles: Sequence[Path],
        join: Callable[[Targets, Sequence[Envelope]], dict[str, bytes]],
        *,
        targets_key: PrivateKey,
        trusted: Sequence[PublicKey],
        now: datetime,
    ) -> Targets:
        """Admit bundles, have `join` put them into the targets, and publish: all or none.

        `join` gives target path to bytes of what is new. Returns the targets.
        """
        opened = [look(path, trusted) for path in bundles]
        with locked(self.directory / "tuf" / "lock"):
            chain = self._chain()
            if _signer(targets_key).public_key.keyid not in (
                chain.root.signed.roles[Targets.type].keyids
            ):
                raise Misused(
                    "that is not the targets key of this fleet: "
                    "give the tuf-targets.key that `edgekit fleet init` wrote."
                )
            made: list[Path] = []
            stamp = self.stamp()
            try:
                self._clear_unfinished()
                added = [admit(bundle, self.blobs, made=made) for bundle in opened]
                targets = chain.targets.signed
                new = join(targets, added)
                for name, raw in new.items():
                    self._write_target(targets.targets[name], raw, made)
                if new:
                    targets.version += 1
                    targets.expires = now + TARGETS_LIFE
                    data = _signed(targets, [targets_key])
                    made.append(self.metadata / f"{targets.version}.targets.json")
                    write_file(made[-1], data)
                    snapshot = chain.snapshot.signed
                    snapshot.meta["targets.json"] = _meta_file(targets.version, data)
                    snapshot.version += 1
                    snapshot.expires = now + SNAPSHOT_LIFE
                    made.append(self.metadata / f"{snapshot.version}.snapshot.json")
                    timestamp = chain.timestamp.signed
                    timestamp.version += 1
                    timestamp.expires = now + TIMESTAMP_LIFE
                    self._publish(snapshot, timestamp)
            except BaseException:
                if self.stamp() == stamp:  # else it is published, and only the disk complained
                    for path in made:
                        path.unlink(missing_ok=True)
                raise
        return targets

    def refresh_online(self, *, now: datetime) -> bool:
        """Sign the timestamp, and the snapshot, again where they age; whether that was needed.

        Waits for nobody. Errors: `BlockingIOError` where another process publishes just now;
        `RepositoryDamaged`, `OSError`.
        """
        with locked(self.directory / "tuf" / "lock", wait=False):
            chain = self._chain()
            snapshot, timestamp = chain.snapshot.signed, chain.timestamp.signed
            renew_snapshot = snapshot.expires - now < SNAPSHOT_RENEWAL
            if not renew_snapshot and timestamp.expires - now > TIMESTAMP_RENEWAL:
                return False
            if renew_snapshot:
                snapshot.version += 1
                snapshot.expires = now + SNAPSHOT_LIFE
            timestamp.version += 1
            timestamp.expires = now + TIMESTAMP_LIFE
            self._publish(snapshot if renew_snapshot else None, timestamp)
        return True

    def _publish(self, snapshot: Snapshot | None, timestamp: Timestamp) -> None:
        """Sign and write snapshot (None: the published one stays), then replace the timestamp."""
        if snapshot is not None:
            data = _signed(snapshot, [load_key(self.online / "snapshot.key", None)])
            write_file(self.metadata / f"{snapshot.version}.snapshot.json", data)
            timestamp.snapshot_meta = _meta_file(snapshot.version, data)
        key = load_key(self.online / "timestamp.key", None)
        write_file(self.metadata / "timestamp.json", _signed(timestamp, [key]))

    def _write_target(self, target: TargetFile, raw: bytes, made: list[Path]) -> None:
        folder, _, name = target.path.rpartition("/")
        path = self.targets / folder / f"{target.hashes['sha256']}.{name}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            made.append(path)
            write_file(path, raw)

    def _clear_unfinished(self) -> None:
        for folder in (self.blobs, self.metadata):
            for path in folder.glob(f"{TEMPORARY_PREFIX}*"):
                path.unlink()

    def _chain(self) -> _Chain:
        """What is published, each part vouched for by the newest root."""
        try:
            newest = max(
                int(path.name.partition(".")[0]) for path in self.metadata.glob("*.root.json")
            )
            root: Metadata[Root] = self._load(f"{newest}.root.json", Root, None)
            timestamp: Metadata[Timestamp] = self._load("timestamp.json", Timestamp, root)
            version = timestamp.signed.snapshot_meta.version
            snapshot: Metadata[Snapshot] = self._load(f"{version}.snapshot.json", Snapshot, root)
            version = snapshot.signed.meta["targets.json"].version
            targets: Metadata[Targets] = self._load(f"{version}.targets.json", Targets, root)
        except (RepositoryError, DeserializationError, StorageError, ValueError) as error:
            raise RepositoryDamaged(self.directory, str(error)) from error
        return _Chain(root=root, targets=targets, snapshot=snapshot, timestamp=timestamp)

    def _load(self, filename: str, role: type[S], root: Metadata[Root] | None) -> Metadata[S]:
        """Read one role's metadata, vouched for by `root`; None: a root, by itself."""
        metadata: Metadata[S] = Metadata.from_file(str(self.metadata / filename))
        signed = metadata.signed
        if not isinstance(signed, role) or filename not in (
            f"{signed.type}.json",
            f"{signed.version}.{signed.type}.json",
        ):
            raise ValueError(f"{filename} holds another role or version")
        voucher = root.signed if root is not None else signed
        assert isinstance(voucher, Root)
        voucher.verify_delegate(signed.type, metadata.signed_bytes, metadata.signatures)
        return metadata


class _Chain(msgspec.Struct, frozen=True, kw_only=True):
    root: Metadata[Root]
    targets: Metadata[Targets]
    snapshot: Metadata[Snapshot]
    timestamp: Metadata[Timestamp]


def _signer(key: PrivateKey) -> CryptoSigner:
    return CryptoSigner(key.private, SSlibKey.from_crypto(key.private.public_key()))


def _signed(signed: Root | Timestamp | Snapshot | Targets, keys: Sequence[PrivateKey]) -> bytes:
    metadata: Metadata[Any] = Metadata(signed)
    for key in keys:
        metadata.sign(_signer(key), append=True)
    return metadata.to_bytes()


def _meta_file(version: int, data: bytes) -> MetaFile:
    return MetaFile(
        version=version, length=len(data), hashes={"sha256": hashlib.sha256(data).hexdigest()}
    )
