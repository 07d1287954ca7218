"""The TUF repository, judged by python-tuf's own client."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from bundles import KEY, OTHER_KEY, SmallBundle, null_bundle
from tuf.api import exceptions
from tuf.api.metadata import Metadata, Snapshot, Timestamp
from tuf.ngclient import FetcherInterface, Updater

from edgekit.release import repository as repository_module
from edgekit.release.keys import PrivateKey, load_key, new_key
from edgekit.release.releases import BundleChanged, UnknownRelease
from edgekit.release.repository import Repository, RepositoryDamaged, init_repository
from edgekit.release.storage import locked
from edgekit_contract.errors import BundleRejected, Misused, Reason

NOW = datetime.now(timezone.utc).replace(microsecond=0)


class _Files(FetcherInterface):
    """Serves the repository from disk, as the depot does."""

    def __init__(self, repository: Repository) -> None:
        self._root = repository.directory / "tuf"

    def _fetch(self, url: str) -> Iterator[bytes]:
        path = self._root / url
        if not path.is_file():
            raise exceptions.DownloadHTTPError(f"{url} is not there", 404)
        return iter([path.read_bytes()])


class Device:
    """A TUF client with its own cache."""

    def __init__(self, repository: Repository, directory: Path) -> None:
        directory.mkdir()
        self._repository, self._directory = repository, directory
        self._root = repository.first_root()

    def refresh(self, *, at: datetime = NOW) -> Updater:
        updater = Updater(
            metadata_dir=str(self._directory),
            metadata_base_url="metadata/",
            target_dir=str(self._directory),
            target_base_url="targets/",
            fetcher=_Files(self._repository),
            bootstrap=self._root,
        )
        trusted: Any = updater._trusted_set
        trusted.reference_time = at
        updater.refresh()
        return updater

    def envelope(self, path: str, *, at: datetime = NOW) -> bytes:
        updater = self.refresh(at=at)
        info = updater.get_targetinfo(path)
        assert info is not None
        return Path(updater.download_target(info)).read_bytes()


@pytest.fixture
def keys(tmp_path: Path) -> dict[str, PrivateKey]:
    return {role: new_key(tmp_path / f"{role}.key", None) for role in ("root", "targets")}


@pytest.fixture
def repository(tmp_path: Path, keys: dict[str, PrivateKey]) -> Repository:
    return init_repository(
        tmp_path / "fleet", root_keys=[keys["root"]], targets_keys=[keys["targets"]], now=NOW
    )


@pytest.fixture
def device(repository: Repository, tmp_path: Path) -> Device:
    return Device(repository, tmp_path / "device")


class Releaser:
    def __init__(self, repository: Repository, key: PrivateKey, directory: Path) -> None:
        self.repository, self.key, self.directory = repository, key, directory

    def __call__(self, *bundles: SmallBundle, **options: Any) -> Any:
        paths = []
        for index, bundle in enumerate(bundles):
            path = self.directory / f"{index}.ekb"
            paths.append(bundle.write(path, KEY))
        return self.repository.add_release(
            paths, **{"targets_key": self.key, "now": NOW, **options}
        )


@pytest.fixture
def add(repository: Repository, keys: dict[str, PrivateKey], tmp_path: Path) -> Releaser:
    return Releaser(repository, keys["targets"], tmp_path)


def files_of(repository: Repository) -> dict[str, bytes]:
    folder = repository.directory
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "lock"
    }


def test_a_released_envelope_is_fetched_and_its_blobs_are_its_files(
    repository: Repository, add: Releaser, device: Device
) -> None:
    bundle = null_bundle()
    add(bundle)
    assert device.envelope("tiny/1.0/demo-small.dsse.json") == bundle.envelope(KEY)
    for path, data in bundle.files.items():
        blob = repository.blobs / hashlib.sha256(data).hexdigest()
        assert blob.read_bytes() == data, path


def test_custom_fields_are_signed(repository: Repository, add: Releaser, device: Device) -> None:
    add(null_bundle())
    info = device.refresh().get_targetinfo("tiny/1.0/demo-small.dsse.json")
    assert info is not None
    assert info.custom["profile"] == "demo-small"
    assert info.custom["runtime"] == "null"
    assert (info.custom["counter"], info.custom["floor"]) == (1, 0)
    assert info.custom["sizes"]["download_bytes"] > info.custom["sizes"]["unpacked_bytes"]


def test_counters_grow_and_the_floor_is_the_release_before(add: Releaser) -> None:
    for version in ("1.0", "1.1", "0.9"):
        add(null_bundle(version=version))
    found = [(r.version, r.counter, r.floor) for r in add.repository.releases()]
    assert found == [("0.9", 3, 2), ("1.1", 2, 1), ("1.0", 1, 0)]


def test_profiles_of_one_release_share_its_counter_in_one_call_or_several(add: Releaser) -> None:
    add(null_bundle(), null_bundle(profile="raspberry-pi-4"))
    add(null_bundle(version="1.1"))
    (joined,) = add(null_bundle(profile="raspberry-pi-5"))
    assert (joined.counter, joined.floor) == (1, 0)
    assert sorted(joined.bundles) == ["demo-small", "raspberry-pi-4", "raspberry-pi-5"]


def test_a_floor_may_be_named(add: Releaser) -> None:
    add(null_bundle(version="1.0"))
    add(null_bundle(version="1.1"))
    (wide,) = add(null_bundle(version="1.2"), floor="1.0")
    (narrow,) = add(null_bundle(version="1.3"), floor="1.3")
    assert (wide.counter, wide.floor) == (3, 1)
    assert (narrow.counter, narrow.floor) == (4, 4)
    with pytest.raises(UnknownRelease):
        add(null_bundle(version="1.4"), floor="7")


def test_adding_the_same_bundle_again_changes_nothing(
    repository: Repository, add: Releaser
) -> None:
    add(null_bundle())
    before = files_of(repository)
    add(null_bundle())
    assert files_of(repository) == before


def test_a_changed_bundle_of_a_release_is_refused(repository: Repository, add: Releaser) -> None:
    add(null_bundle())
    before = files_of(repository)
    changed = null_bundle()
    changed = changed.with_files({**changed.files, "files/labels.txt": b"other\nwords\nhere\n"})
    with pytest.raises(BundleChanged):
        add(changed)
    assert files_of(repository) == before


def test_a_damaged_bundle_is_refused_and_nothing_of_its_companions_stays(
    repository: Repository, keys: dict[str, PrivateKey], tmp_path: Path
) -> None:
    good = null_bundle(profile="raspberry-pi-4").write(tmp_path / "good.ekb", KEY)
    data = bytearray(null_bundle().pack())
    at = data.index(b"low\nmiddle\nhigh")
    data[at] ^= 1
    bad = tmp_path / "bad.ekb"
    bad.write_bytes(data)
    before = files_of(repository)
    with pytest.raises(BundleRejected) as caught:
        repository.add_release([good, bad], targets_key=keys["targets"], now=NOW)
    assert caught.value.reason is Reason.DIGEST_MISMATCH
    assert "bad.ekb" in str(caught.value)
    assert files_of(repository) == before


def test_a_bundle_that_no_trusted_key_signed_is_refused(
    repository: Repository, add: Releaser
) -> None:
    before = files_of(repository)
    with pytest.raises(BundleRejected) as caught:
        add(null_bundle(), trusted=[OTHER_KEY.public])
    assert caught.value.reason is Reason.UNTRUSTED_SIGNATURE
    assert files_of(repository) == before
    add(null_bundle(), trusted=[OTHER_KEY.public, KEY.public])


def test_another_targets_key_is_refused(repository: Repository, add: Releaser) -> None:
    with pytest.raises(Misused, match="not the targets key"):
        add(null_bundle(), targets_key=OTHER_KEY)


@pytest.mark.parametrize("fails_at", range(8))
def test_a_disk_that_fails_at_any_write_leaves_the_repository_as_it_was(
    repository: Repository,
    add: Releaser,
    device: Device,
    monkeypatch: pytest.MonkeyPatch,
    fails_at: int,
) -> None:
    from edgekit.release import admission, storage

    add(null_bundle())
    before = files_of(repository)
    left = fails_at

    def failing(path: Path, pieces: Any, *, mode: int = 0o644) -> None:
        nonlocal left
        if left == 0:
            raise OSError(28, "No space left on device")
        left -= 1
        storage.write_pieces(path, [pieces] if isinstance(pieces, bytes) else pieces, mode=mode)

    bundle = null_bundle(version="1.1")
    bundle = bundle.with_files({name: data + b"\n" for name, data in bundle.files.items()})
    bundle = bundle.with_files(
        {**bundle.files, "files/model.json": null_bundle().files["files/model.json"] + b" "}
    )
    with monkeypatch.context() as patched:
        patched.setattr(admission, "write_pieces", failing)
        patched.setattr(repository_module, "write_file", failing)
        try:
            add(bundle)
        except OSError:
            assert files_of(repository) == before
        else:
            assert fails_at == 7  # 3 blobs, envelope, targets, snapshot, timestamp: there are 7
    device.refresh()


def test_an_expired_timestamp_stops_updates_until_it_is_signed_again(
    repository: Repository, add: Releaser, device: Device
) -> None:
    add(null_bundle())
    later = NOW + timedelta(days=8)
    with pytest.raises(exceptions.ExpiredMetadataError):
        device.refresh(at=later)
    assert repository.refresh_online(now=later)
    device.refresh(at=later)


def test_the_timestamp_is_signed_daily_and_the_snapshot_when_it_ages(
    repository: Repository, device: Device
) -> None:
    assert not repository.refresh_online(now=NOW + timedelta(hours=23))
    assert repository.refresh_online(now=NOW + timedelta(hours=25))
    assert not repository.refresh_online(now=NOW + timedelta(hours=26))
    assert not (repository.metadata / "2.snapshot.json").exists()
    late = NOW + timedelta(days=16)
    assert repository.refresh_online(now=late)
    assert (repository.metadata / "2.snapshot.json").exists()
    device.refresh(at=late)
    assert repository.expiries()["timestamp"] == late + timedelta(days=7)


def test_signing_again_does_not_wait_for_who_publishes(repository: Repository) -> None:
    later = NOW + timedelta(hours=25)
    with locked(repository.directory / "tuf" / "lock"), pytest.raises(BlockingIOError):
        repository.refresh_online(now=later)
    assert repository.refresh_online(now=later)


def test_an_older_repository_is_refused_by_a_device_that_saw_a_newer(
    repository: Repository, add: Releaser, device: Device
) -> None:
    add(null_bundle())
    old = (repository.metadata / "timestamp.json").read_bytes()
    add(null_bundle(version="1.1"))
    device.refresh()
    (repository.metadata / "timestamp.json").write_bytes(old)
    with pytest.raises(exceptions.BadVersionNumberError):
        device.refresh()


def test_a_target_that_the_hub_invents_is_believed_by_nobody(
    repository: Repository, add: Releaser, device: Device
) -> None:
    """Whoever holds the hub's online keys and disk still cannot sign targets."""
    add(null_bundle())
    snapshot = Metadata[Snapshot].from_file(str(repository.metadata / "2.snapshot.json")).signed
    timestamp = Metadata[Timestamp].from_file(str(repository.metadata / "timestamp.json")).signed
    forged = json.loads((repository.metadata / "2.targets.json").read_bytes())
    forged["signed"]["version"] = 3
    forged["signed"]["targets"]["tiny/1.0/demo-small.dsse.json"]["custom"]["counter"] = 9
    data = json.dumps(forged).encode()
    (repository.metadata / "3.targets.json").write_bytes(data)
    snapshot.meta["targets.json"] = repository_module._meta_file(3, data)
    snapshot.version = timestamp.version = 3
    repository._publish(snapshot, timestamp)
    with pytest.raises(exceptions.UnsignedMetadataError):
        device.refresh()
    with pytest.raises(RepositoryDamaged):
        repository.releases()
    with pytest.raises(RepositoryDamaged):
        add(null_bundle(version="1.1"))


def test_keys_of_each_role_are_their_own(repository: Repository) -> None:
    root = json.loads(repository.first_root())["signed"]
    held = [tuple(role["keyids"]) for role in root["roles"].values()]
    assert len(set(held)) == 4
    assert root["consistent_snapshot"] is True


def test_root_may_need_several_keys(tmp_path: Path, keys: dict[str, PrivateKey]) -> None:
    made = init_repository(
        tmp_path / "shared",
        root_keys=[keys["root"], KEY, OTHER_KEY],
        root_threshold=2,
        targets_keys=[keys["targets"]],
        now=NOW,
    )
    Device(made, tmp_path / "other-device").refresh()
    root = json.loads(made.first_root())
    assert root["signed"]["roles"]["root"]["threshold"] == 2
    assert len(root["signatures"]) == 3


def test_an_unknown_release_names_those_there_are(repository: Repository, add: Releaser) -> None:
    add(null_bundle())
    with pytest.raises(UnknownRelease, match=r"released of tiny: 1\.0"):
        repository.release("tiny", "2.0")


def test_online_keys_are_for_their_owner_alone(repository: Repository) -> None:
    for path in repository.online.glob("*.key"):
        assert path.stat().st_mode & 0o777 == 0o600
        load_key(path, None)
