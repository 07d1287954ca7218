"""TUF metadata from a hub that is stolen, outdated or damaged; devices that wake in 1970."""

from __future__ import annotations

import json
import shutil
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from agents import Shop, make_device, utc_now, variant
from bundles import KEY, OTHER_KEY
from tuf.api.metadata import TargetFile
from updaters import DaemonEnd, assignment

from edgekit.release import repository
from edgekit.release.keys import new_key
from edgekit_agent.clock import BUILT
from edgekit_agent.control import MetadataVersions
from edgekit_agent.record import Record, raised

pytestmark = pytest.mark.usefixtures("passing_warmup")


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path / "fleet")


@pytest.fixture
def device(tmp_path: Path, shop: Shop) -> Path:
    return make_device(tmp_path / "device", shop)


def versions(shop: Shop, device: Path) -> MetadataVersions:
    found = DaemonEnd(shop).run(assignment(device)).versions
    assert found is not None
    return found


def test_an_older_repository_is_refused_by_the_floors_even_without_a_cache(
    shop: Shop, device: Path, tmp_path: Path
) -> None:
    shop.release(variant("1.0"))
    shutil.copytree(shop.directory, tmp_path / "before")
    shop.release(variant("1.1"))
    floors = versions(shop, device)
    shutil.rmtree(shop.directory)
    shutil.copytree(tmp_path / "before", shop.directory)
    for cache in ("kept", "lost"):
        if cache == "lost":
            shutil.rmtree(device / "tuf" / "metadata")
        finished = DaemonEnd(shop).run(assignment(device, versions=floors))
        assert finished.verdict is not None and finished.verdict.final
        assert finished.release is None


def test_truncated_metadata_do_not_let_an_older_release_in(
    shop: Shop, device: Path, tmp_path: Path
) -> None:
    """What python-tuf alone would accept: its cache cut to zero bytes by a power loss."""
    shop.release(variant("1.0"))
    shutil.copytree(shop.directory, tmp_path / "before")
    shop.release(variant("1.1"))
    floors = versions(shop, device)
    for path in (device / "tuf" / "metadata").glob("*.json"):
        if not path.is_symlink():
            path.write_bytes(b"")
    shutil.rmtree(shop.directory)
    shutil.copytree(tmp_path / "before", shop.directory)
    alone = DaemonEnd(shop).run(assignment(device))
    assert alone.verdict is None, "without floors it goes through: that is why there are floors"
    verdict = DaemonEnd(shop).run(assignment(device, versions=floors)).verdict
    assert verdict is not None and verdict.final
    assert "this device has seen" in verdict.reason


def test_truncated_metadata_are_fetched_again(shop: Shop, device: Path) -> None:
    shop.release(variant("1.0"))
    floors = versions(shop, device)
    for path in (device / "tuf" / "metadata").rglob("*.json"):
        if not path.is_symlink():
            path.write_bytes(b"")
    assert DaemonEnd(shop).run(assignment(device, versions=floors)).verdict is None


def test_metadata_of_another_fleet_are_refused(shop: Shop, device: Path, tmp_path: Path) -> None:
    stranger = Shop(tmp_path / "stranger")
    stranger.release(variant("1.0"))
    verdict = DaemonEnd(stranger).run(assignment(device)).verdict
    assert verdict is not None and verdict.final
    assert "not to be trusted" in verdict.reason


def test_expired_metadata_block_updates_for_now(shop: Shop, device: Path) -> None:
    shop.release(variant("1.0"))
    shop.older(days=8)
    verdict = DaemonEnd(shop).run(assignment(device)).verdict
    assert verdict is not None and not verdict.final
    assert "expired" in verdict.reason


def test_a_device_in_1970_sees_metadata_that_ended_before_the_last_release(
    shop: Shop, device: Path
) -> None:
    """Its clock says nothing; that the targets key and the hub have signed does."""
    awoken = {"now": BUILT, "clock_behind": True}
    shop.release(variant("1.0"))
    end = DaemonEnd(shop).run(assignment(device, **awoken))
    assert end.verdict is None and end.versions is not None
    record = raised(Record(), end.versions)
    assert record.time_floor > BUILT
    shop.older(days=8)
    later = assignment(device, now=record.time_floor, clock_behind=True)
    verdict = DaemonEnd(shop).run(later).verdict
    assert verdict is not None and not verdict.final
    assert "expired" in verdict.reason


@pytest.mark.parametrize("clock_behind", [True, False])
def test_a_stolen_hub_cannot_make_it_later_than_the_last_release(
    shop: Shop, device: Path, clock_behind: bool
) -> None:
    shop.release(variant("1.0"))
    shop.older(days=-300)
    end = DaemonEnd(shop).run(assignment(device, now=BUILT, clock_behind=clock_behind))
    assert end.versions is not None and end.versions.proven is not None
    assert end.versions.proven <= (utc_now() if clock_behind else BUILT)


FAR = 2**32


def run_ahead(shop: Shop, *, timestamp: int, snapshot: int = FAR) -> None:
    """What a thief of the online keys may do."""
    chain = shop.repository._chain()
    chain.snapshot.signed.version, chain.timestamp.signed.version = snapshot, timestamp
    shop.repository._publish(chain.snapshot.signed, chain.timestamp.signed)


def replace_online_keys(shop: Shop) -> None:
    """A new root, signed offline, with which the hub signs what it published last."""
    chain = shop.repository._chain()
    root = chain.root.signed
    root.version += 1
    for role in ("snapshot", "timestamp"):
        for path in shop.repository.online.glob(f"{role}.key*"):
            path.unlink()
        key = new_key(shop.repository.online / f"{role}.key", None)
        for keyid in list(root.roles[role].keyids):
            root.revoke_key(keyid, role)
        root.add_key(repository._signer(key).public_key, role)
    data = repository._signed(root, [OTHER_KEY])
    (shop.repository.metadata / f"{root.version}.root.json").write_bytes(data)
    shop.repository._publish(chain.snapshot.signed, chain.timestamp.signed)


def test_a_hub_that_ran_ahead_is_forgotten_when_its_keys_are_replaced(
    shop: Shop, device: Path, tmp_path: Path
) -> None:
    shop.release(variant("1.0"))
    shutil.copytree(shop.directory, tmp_path / "before")
    run_ahead(shop, timestamp=FAR)
    record = raised(Record(), versions(shop, device))
    assert record.versions.snapshot == record.versions.timestamp == FAR
    shutil.rmtree(shop.directory)
    shutil.copytree(tmp_path / "before", shop.directory)
    verdict = DaemonEnd(shop).run(assignment(device, versions=record.versions)).verdict
    assert verdict is not None and verdict.final, "the thief's keys are still those of the fleet"
    replace_online_keys(shop)
    end = DaemonEnd(shop).run(assignment(device, versions=record.versions))
    assert end.verdict is None and end.versions is not None
    after = raised(record, end.versions).versions
    assert (after.root, after.targets) == (2, record.versions.targets)
    assert max(after.timestamp, after.snapshot) < FAR
    assert raised(record, end.versions) == raised(raised(record, end.versions), end.versions)


def test_a_version_that_no_repository_reaches_is_refused(shop: Shop, device: Path) -> None:
    shop.release(variant("1.0"))
    run_ahead(shop, timestamp=2**64)
    verdict = DaemonEnd(shop).run(assignment(device)).verdict
    assert verdict is not None and verdict.final
    assert "not to be trusted" in verdict.reason


def test_the_time_floor_is_what_the_timestamp_proves(shop: Shop, device: Path) -> None:
    shop.release(variant("1.0"))
    shop.older(days=2)
    proven = versions(shop, device).proven
    assert proven is not None
    assert abs(proven - (utc_now() - timedelta(days=2))) < timedelta(minutes=5)


def test_the_time_floor_is_never_ahead_of_the_clock(shop: Shop, device: Path) -> None:
    shop.release(variant("1.0"))
    shop.older(days=-30)
    proven = versions(shop, device).proven
    assert proven is not None
    assert proven <= datetime.now(timezone.utc)


def test_an_envelope_that_was_changed_on_the_hub_is_not_taken(shop: Shop, device: Path) -> None:
    shop.release(variant("1.0"))
    (path,) = (shop.directory / "tuf" / "targets").rglob("*.dsse.json")
    path.write_bytes(path.read_bytes().replace(b"payload", b"paylaod", 1))
    verdict = DaemonEnd(shop).run(assignment(device)).verdict
    assert verdict is not None and not verdict.final
    assert "wrong bytes" in verdict.reason


def test_a_bundle_published_under_another_name_is_refused(
    shop: Shop, device: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The targets key signs a name and a digest: both must agree with what the bundle says."""
    shop.release(variant("1.0"))
    chain = shop.repository._chain()
    targets = chain.targets.signed.targets
    target = targets["tiny/1.0/demo-small.dsse.json"]
    body = json.loads(json.dumps(target.to_dict()))
    targets["tiny/2.0/demo-small.dsse.json"] = TargetFile.from_dict(
        body, "tiny/2.0/demo-small.dsse.json"
    )
    chain.targets.signed.version += 1
    data = repository._signed(chain.targets.signed, [KEY])
    version = chain.targets.signed.version
    (shop.repository.metadata / f"{version}.targets.json").write_bytes(data)
    chain.snapshot.signed.meta["targets.json"] = repository._meta_file(version, data)
    chain.snapshot.signed.version += 1
    chain.timestamp.signed.version += 1
    shop.repository._publish(chain.snapshot.signed, chain.timestamp.signed)
    source = shop.directory / "tuf/targets/tiny/1.0"
    shutil.copytree(source, shop.directory / "tuf/targets/tiny/2.0")
    verdict = DaemonEnd(shop).run(assignment(device, "2.0")).verdict
    assert verdict is not None and verdict.final
    assert "calls itself tiny@1.0" in verdict.reason
