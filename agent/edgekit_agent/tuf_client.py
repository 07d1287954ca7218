"""TUF metadata: python-tuf decides what is signed, we keep it from forgetting.

Invariants: the cache `tuf/metadata` is replaced as a whole, after fsync; losing it costs a download
and nothing else, since the versions that the device has seen are floors in its record. Time is
handed in; what signatures say of it is docs/decisions/0006. Source: TUF specification 1.0.34,
section 5.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

from tuf.api import exceptions
from tuf.api.metadata import TargetFile
from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig

from edgekit_agent import storage
from edgekit_agent.control import MetadataVersions, Release
from edgekit_agent.download import Hub, HubSilent, NotFound
from edgekit_agent.record import binding
from edgekit_contract import limits, names
from edgekit_contract.errors import Refused
from edgekit_contract.messages import metadata_resource, target_resource

__all__ = ["HubStale", "SignedTarget", "TrustMetadata", "UntrustedMetadata"]

_TIMESTAMP_LIFE: Final = timedelta(days=7)
"""How long before its expiry the hub signs a timestamp (DESIGN section 5)."""

_TARGETS_LIFE: Final = timedelta(days=365)
"""How long before their expiry a release signs the targets (docs/fleet.md)."""

logging.getLogger("tuf").setLevel(logging.ERROR)


class UntrustedMetadata(Refused):
    """The hub's metadata are not those that the fleet's keys signed, or older than seen before."""


class HubStale(Exception):
    """The metadata are sound and have expired: wait until the hub has signed new ones."""


@dataclass(frozen=True, kw_only=True)
class SignedTarget:
    release: Release
    path: str
    """On the hub, below `targets/`."""
    length: int


class TrustMetadata:
    """The fleet's TUF repository, seen from the device directory `tuf/`."""

    def __init__(self, directory: Path, hub: Hub, *, now: datetime, clock_behind: bool) -> None:
        """`clock_behind`: `now` is a time that is known to have passed, not the clock's."""
        self._directory, self._hub = directory, hub
        self._now, self._clock_behind = now, clock_behind
        self._cache = directory / "metadata"
        self._work = directory / "metadata.new"

    def refresh(self, floors: MetadataVersions) -> MetadataVersions:
        """Walk root, timestamp, snapshot, targets; the versions that now hold.

        Errors: `UntrustedMetadata`, `HubStale`, `HubSilent`, `OSError`.
        """
        self._start_from_cache()
        fetcher = _HubFetcher(self._hub)
        try:
            updater = Updater(
                metadata_dir=str(self._work),
                metadata_base_url="metadata",
                fetcher=fetcher,
                config=_config(),
                bootstrap=(self._directory / "root.json").read_bytes(),
            )
            trusted: Any = updater._trusted_set
            trusted.reference_time = self._now  # the device's clock may stand in 1970
            updater.refresh()
        except exceptions.ExpiredMetadataError as error:
            raise HubStale(f"the hub's metadata have expired ({error})") from error
        except exceptions.DownloadError as error:
            raise fetcher.failure or HubSilent(str(error)) from error
        except (exceptions.RepositoryError, ValueError, KeyError) as error:
            raise UntrustedMetadata(
                f"the hub's metadata are not to be trusted: {error}."
            ) from error
        versions = self._versions(trusted)
        _demand_floors(versions, binding(floors, versions))
        self._targets = trusted.targets.targets
        self._keep()
        return versions

    def _versions(self, trusted: Any) -> MetadataVersions:
        root, latest = trusted.root, self._now
        if self._clock_behind:
            latest = max(latest, trusted.targets.expires - _TARGETS_LIFE)
        return MetadataVersions(
            root=root.version,
            timestamp=trusted.timestamp.version,
            snapshot=trusted.snapshot.version,
            targets=trusted.targets.version,
            proven=min(latest, trusted.timestamp.expires - _TIMESTAMP_LIFE),
            timestamp_keys=tuple(sorted(root.roles["timestamp"].keyids)),
            snapshot_keys=tuple(sorted(root.roles["snapshot"].keyids)),
        )

    def find(self, model: str, version: str, profile: str) -> SignedTarget:
        """The signed target of a release for this device's profile, after `refresh`.

        Errors: `UntrustedMetadata` where nobody signed it or its custom fields are malformed.
        """
        path = f"{model}/{version}/{profile}.dsse.json"
        return self._signed(
            path,
            version,
            profile,
            lacking=f"{model}@{version} has no bundle for profile {profile}: "
            "build one and add it to the release.",
        )

    def find_bench(self, digest: str, profile: str) -> SignedTarget:
        """The target of a bundle that is signed to be measured only. Errors: as `find`."""
        found = self._signed(
            f"{names.BENCH}/{digest}/{profile}.dsse.json",
            "0",
            profile,
            lacking=f"no bundle {digest[:12]} for profile {profile} is signed to be measured.",
        )
        if found.release.digest != digest:
            raise UntrustedMetadata(f"the bundle {digest[:12]} is signed under another digest.")
        return found

    def _signed(self, path: str, version: str, profile: str, *, lacking: str) -> SignedTarget:
        target: TargetFile | None = self._targets.get(path)
        if target is None:
            raise UntrustedMetadata(lacking)
        custom = target.custom or {}
        counter, floor, digest = (
            custom.get("counter"),
            custom.get("floor"),
            target.hashes.get("sha256"),
        )
        if (
            not isinstance(counter, int)
            or not isinstance(floor, int)
            or not isinstance(digest, str)
            or not 0 <= floor <= counter
            or custom.get("profile") != profile
        ):
            raise UntrustedMetadata(f"{path} is signed with malformed custom fields.")
        head, _, name = path.rpartition("/")
        return SignedTarget(
            release=Release(version=version, digest=digest, counter=counter, floor=floor),
            path=f"{head}/{digest}.{name}",
            length=target.length,
        )

    def envelope(self, target: SignedTarget) -> bytes:
        """The signed bytes of a target. Errors: `HubSilent`, `NotFound`."""
        limit = min(target.length, limits.MAX_ENVELOPE_BYTES)
        data = self._hub.read(target_resource(target.path), limit_bytes=limit)
        if hashlib.sha256(data).hexdigest() != target.release.digest:
            raise HubSilent(f"the hub sends wrong bytes for {target.path}")
        return data

    def _start_from_cache(self) -> None:
        storage.remove(self._work)
        if self._cache.is_dir():
            shutil.copytree(self._cache, self._work, symlinks=True)
        else:
            storage.create_directory(self._work)

    def _keep(self) -> None:
        for path in sorted(self._work.rglob("*")):
            if path.is_symlink():
                continue
            if path.is_dir():
                storage.sync_directory(path)
            else:
                storage.sync_file(path)
        storage.sync_directory(self._work)
        storage.remove(self._cache)  # a cut here loses the cache, not the floors
        storage.move(self._work, self._cache)


def _config() -> UpdaterConfig:
    return UpdaterConfig(
        targets_max_length=limits.MAX_METADATA_BYTES,
        snapshot_max_length=limits.MAX_METADATA_BYTES,
    )


def _demand_floors(versions: MetadataVersions, floors: MetadataVersions) -> None:
    for role in ("root", "timestamp", "snapshot", "targets"):
        got, floor = getattr(versions, role), getattr(floors, role)
        if got > limits.MAX_JSON_INTEGER:
            raise UntrustedMetadata(
                f"the hub's metadata are not to be trusted: {role} version {got} is no count."
            )
        if got < floor:
            raise UntrustedMetadata(
                f"the hub offers {role} version {got}, this device has seen {floor}: "
                "restore the hub's newest metadata."
            )


class _HubFetcher(FetcherInterface):
    """python-tuf's downloads over the daemon's connection."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self.failure: Exception | None = None
        """What really happened, since python-tuf tells its own story."""

    def _fetch(self, url: str) -> Iterator[bytes]:
        try:
            data = self._hub.read(
                metadata_resource(url.removeprefix("metadata/")),
                limit_bytes=limits.MAX_METADATA_BYTES,
            )
        except NotFound as error:
            # 404 ends python-tuf's walk along the roots
            raise exceptions.DownloadHTTPError(f"{url} is not there", 404) from error
        except HubSilent as error:
            self.failure = error
            raise exceptions.DownloadError(str(error)) from error
        return iter([data])
