"""The updater against a bad medium and a bad hub."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import msgspec
import pytest
from agents import BUSY, NOT_FOUND, Shop, Silence, make_device, utc_now, variant
from power import every_cut
from updaters import FACTS, DaemonEnd, assignment

from edgekit_agent.updater import Updater
from edgekit_contract.limits import BLOCK_BYTES
from edgekit_contract.messages import Chunk, ChunkStatus, Fetch, Phase
from edgekit_contract.trust import verify_directory

pytestmark = pytest.mark.usefixtures("passing_warmup")


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path / "fleet")


@pytest.fixture
def device(tmp_path: Path, shop: Shop) -> Path:
    return make_device(tmp_path / "device", shop)


def test_power_loss_anywhere_in_an_updater_is_made_good_by_the_next(
    quick_path: Path, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.release(variant("1.0", ballast_bytes=BLOCK_BYTES + 5))
    template = make_device(quick_path / "template", shop)
    cuts = 0
    for cut, root in every_cut(
        lambda root: shutil.copytree(template, root, dirs_exist_ok=True) and None,
        lambda root: DaemonEnd(shop).run(assignment(root)) and None,
        quick_path,
        monkeypatch,
    ):
        cuts = cut
        finished = DaemonEnd(shop).run(assignment(root))
        assert finished.verdict is None, f"cut {cut}: {finished.verdict}"
        assert finished.release is not None
        verify_directory(root / "models/tiny/b", envelope_sha256=finished.release.digest)
        assert not list((root / "downloads").iterdir()), "nothing is left over"
    assert cuts > 60


def test_an_interrupted_download_goes_on_where_it_was(shop: Shop, device: Path) -> None:
    size = 6 * BLOCK_BYTES
    shop.release(variant("1.0", ballast_bytes=size))
    given = 0

    def dies_midway(fetch: Fetch) -> Chunk | None:
        nonlocal given
        if fetch.resource.startswith("blobs/"):
            given += fetch.length
            if given > 3 * BLOCK_BYTES:
                raise Silence
        return None

    first = DaemonEnd(shop, dies_midway)
    finished = first.run(assignment(device))
    assert finished.verdict is not None and not finished.verdict.final
    assert "sent nothing" in finished.verdict.reason
    second = DaemonEnd(shop)
    assert second.run(assignment(device)).verdict is None
    # at most the blocks that were under way are fetched twice
    assert second.blob_bytes() <= size - BLOCK_BYTES
    assert second.blob_bytes() >= 3 * BLOCK_BYTES


def test_a_block_that_the_medium_spoiled_is_fetched_again_and_no_other(
    shop: Shop, device: Path
) -> None:
    bundle = variant("1.0", ballast_bytes=4 * BLOCK_BYTES)
    shop.release(bundle)
    entry = bundle.manifest.file("files/ballast.bin")
    data = bytearray(bundle.files["files/ballast.bin"])
    data[2 * BLOCK_BYTES + 7] ^= 1
    (device / "downloads").mkdir()
    (device / "downloads" / entry.sha256).write_bytes(data)
    end = DaemonEnd(shop)
    assert end.run(assignment(device)).verdict is None
    of_ballast = [f for f in end.fetched if f.resource.endswith(entry.sha256)]
    assert sum(f.length for f in of_ballast) == BLOCK_BYTES
    assert all(f.offset // BLOCK_BYTES == 2 for f in of_ballast)


def test_files_of_the_active_slot_are_not_fetched_again(shop: Shop, device: Path) -> None:
    bundle = variant("1.0", ballast_bytes=2 * BLOCK_BYTES)
    shop.release(bundle)
    first = DaemonEnd(shop).run(assignment(device, slot="a"))
    assert first.release is not None
    other = variant("1.1")
    files = other.files | {"files/renamed.bin": bundle.files["files/ballast.bin"]}
    files["files/labels.txt"] = b"new labels\n"
    shop.release(other.with_files(files))
    end = DaemonEnd(shop)
    finished = end.run(
        assignment(device, "1.1", slot="b", active_slot="a", active_digest=first.release.digest)
    )
    assert finished.verdict is None
    names = {f.resource for f in end.fetched if f.resource.startswith("blobs/")}
    assert names == {"blobs/" + hashlib.sha256(b"new labels\n").hexdigest()}
    verify_directory(device / "models/tiny/a", envelope_sha256=first.release.digest)


@pytest.mark.parametrize("times", [1, 2])
def test_a_corrupt_chunk_costs_its_block_again(shop: Shop, device: Path, times: int) -> None:
    shop.release(variant("1.0", ballast_bytes=3 * BLOCK_BYTES))
    spoiled = 0

    def corrupt(fetch: Fetch) -> Chunk | None:
        nonlocal spoiled
        if fetch.offset != BLOCK_BYTES or spoiled >= times:
            return None
        spoiled += 1
        chunk = shop.depot.read(fetch)
        return msgspec.structs.replace(chunk, data=b"\0" + chunk.data[1:])

    end = DaemonEnd(shop, corrupt)
    assert end.run(assignment(device)).verdict is None
    assert spoiled == times
    small = sum(len(data) for path, data in variant("1.0").files.items())
    assert end.blob_bytes() == (3 + times) * BLOCK_BYTES + small


def test_a_hub_that_goes_on_sending_wrong_bytes_is_tried_again_later(
    shop: Shop, device: Path
) -> None:
    shop.release(variant("1.0"))

    def lies(fetch: Fetch) -> Chunk | None:
        if not fetch.resource.startswith("blobs/"):
            return None
        chunk = shop.depot.read(fetch)
        return msgspec.structs.replace(chunk, data=bytes(len(chunk.data)))

    verdict = DaemonEnd(shop, lies).run(assignment(device)).verdict
    assert verdict is not None and not verdict.final
    assert "wrong bytes" in verdict.reason
    assert all(
        not any((device / "downloads" / p.name).read_bytes())
        for p in (device / "downloads").iterdir()
    ), "a block that was not verified reached the disk"


def test_a_busy_hub_is_waited_for(shop: Shop, device: Path) -> None:
    shop.release(variant("1.0", ballast_bytes=BLOCK_BYTES))
    refusals = 0

    def busy(fetch: Fetch) -> Chunk | None:
        nonlocal refusals
        if fetch.resource.startswith("blobs/") and refusals < 5:
            refusals += 1
            return BUSY
        return None

    assert DaemonEnd(shop, busy).run(assignment(device, stall_timeout_s=20.0)).verdict is None
    assert refusals == 5


def test_a_blob_that_the_hub_lacks_is_asked_for_again_later(shop: Shop, device: Path) -> None:
    shop.release(variant("1.0"))
    end = DaemonEnd(shop, lambda f: NOT_FOUND if f.resource.startswith("blobs/") else None)
    verdict = end.run(assignment(device)).verdict
    assert verdict is not None and not verdict.final
    assert "lacks a file" in verdict.reason


def test_a_hub_that_gives_less_than_asked_for_is_asked_for_the_rest(
    shop: Shop, device: Path
) -> None:
    shop.release(variant("1.0", ballast_bytes=BLOCK_BYTES))

    def stingy(fetch: Fetch) -> Chunk:
        chunk = shop.depot.read(fetch)
        return msgspec.structs.replace(chunk, data=chunk.data[:10_000])

    assert DaemonEnd(shop, stingy).run(assignment(device)).verdict is None


def test_a_hub_that_cuts_a_file_short_midway_is_tried_again_later(shop: Shop, device: Path) -> None:
    bundle = variant("1.0", ballast_bytes=2 * BLOCK_BYTES)
    shop.release(bundle)
    ballast = bundle.manifest.file("files/ballast.bin").sha256

    def cut_short(fetch: Fetch) -> Chunk | None:
        if not fetch.resource.endswith(ballast) or fetch.offset < BLOCK_BYTES:
            return None
        return Chunk(status=ChunkStatus.OK, offset=fetch.offset, total=fetch.offset)

    end = DaemonEnd(shop, cut_short)
    verdict = end.run(assignment(device)).verdict
    assert verdict is not None and not verdict.final
    assert "sent nothing" in verdict.reason
    assert end.phases[-1] is Phase.FETCH, "what was not fetched is not verified"
    assert len(end.fetched) < 1_000, "it is not asked without a pause"


def test_a_full_disk_is_said_before_anything_is_fetched(
    shop: Shop, device: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.release(variant("1.0", ballast_bytes=BLOCK_BYTES))
    monkeypatch.setattr("edgekit_agent.storage.free_bytes", lambda path: 1 << 20)
    end = DaemonEnd(shop)
    verdict = end.run(assignment(device)).verdict
    assert verdict is not None and not verdict.final
    assert verdict.reason.startswith("the disk lacks 17 MiB for tiny@1.0")
    assert end.blob_bytes() == 0


def test_other_downloads_give_way_when_space_is_short(
    shop: Shop, device: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.release(variant("1.0"))
    (device / "downloads").mkdir()
    old = device / "downloads" / ("00" * 32)
    old.write_bytes(b"x")
    monkeypatch.setattr(
        "edgekit_agent.storage.free_bytes", lambda path: 0 if old.exists() else 1 << 30
    )
    assert DaemonEnd(shop).run(assignment(device)).verdict is None
    assert not old.exists()


def test_a_release_that_does_not_fit_beside_the_one_that_serves_is_refused(
    shop: Shop, device: Path
) -> None:
    """Until the switch is over, both are loaded."""
    for version in ("1.0", "1.1"):
        bundle = variant(version)
        requires = msgspec.structs.replace(bundle.manifest.requires, peak_ram_bytes=150 << 20)
        shop.release(bundle.changed(requires=requires))
    facts = msgspec.structs.replace(FACTS, ram_bytes=300 << 20)
    first = DaemonEnd(shop).run(assignment(device, slot="a", facts=facts))
    assert first.verdict is None and first.release is not None
    second = assignment(
        device, "1.1", active_slot="a", active_digest=first.release.digest, facts=facts
    )
    end = DaemonEnd(shop)
    verdict = end.run(second).verdict
    assert verdict is not None and verdict.final
    assert "150 MiB of RAM beside 150 MiB of what serves, the device has 300" in verdict.reason
    assert end.blob_bytes() == 0
    enough = msgspec.structs.replace(FACTS, ram_bytes=400 << 20)
    second = msgspec.structs.replace(second, facts=enough)
    assert DaemonEnd(shop).run(second).verdict is None


def test_what_the_owner_does_not_let_it_fetch_is_not_fetched(shop: Shop, device: Path) -> None:
    shop.release(variant("1.0", ballast_bytes=3 * BLOCK_BYTES))
    end = DaemonEnd(shop)
    verdict = end.run(assignment(device, max_fetch_bytes=3 << 20)).verdict
    assert verdict is not None and verdict.final
    assert "4 MiB to fetch, max_fetch_mib is 3" in verdict.reason
    assert end.blob_bytes() == 0 and end.phases == [Phase.PREFLIGHT]
    first = DaemonEnd(shop).run(assignment(device, slot="a", max_fetch_bytes=4 << 20))
    assert first.verdict is None and first.release is not None
    other = variant("1.1")
    ballast = variant("1.0", ballast_bytes=3 * BLOCK_BYTES).files["files/ballast.bin"]
    shop.release(other.with_files(other.files | {"files/again.bin": ballast}))
    again = assignment(
        device,
        "1.1",
        active_slot="a",
        active_digest=first.release.digest,
        max_fetch_bytes=1 << 20,
    )
    assert DaemonEnd(shop).run(again).verdict is None, "what is here already costs nothing"


def test_an_update_outside_of_its_window_waits(shop: Shop, device: Path) -> None:
    shop.release(variant("1.0"))
    hour = (utc_now().hour + 12) % 24
    window = f"{hour:02}:00-{(hour + 1) % 24:02}:00"
    end = DaemonEnd(shop)
    verdict = end.run(assignment(device, window=window)).verdict
    assert verdict is not None and not verdict.final
    assert f"it is {window} UTC" in verdict.reason
    assert end.blob_bytes() == 0 and end.phases == [Phase.PREFLIGHT]
    without_clock = assignment(device, window=window, clock_behind=True)
    assert DaemonEnd(shop).run(without_clock).verdict is None


def test_downloads_that_nobody_wants_any_more_leave_with_the_next_update(
    shop: Shop, device: Path
) -> None:
    shop.release(variant("1.0", ballast_bytes=2 * BLOCK_BYTES))
    shop.release(variant("1.1"))
    shop.release(variant("7", name="other", ballast_bytes=2 * BLOCK_BYTES))

    def stalls(fetch: Fetch) -> Chunk | None:
        if fetch.offset >= BLOCK_BYTES:
            raise Silence
        return None

    for model, version in (("tiny", "1.0"), ("other", "7")):
        verdict = DaemonEnd(shop, stalls).run(assignment(device, version, model=model)).verdict
        assert verdict is not None and not verdict.final
    ballast = variant("7", name="other", ballast_bytes=2 * BLOCK_BYTES).manifest.file(
        "files/ballast.bin"
    )
    # the hub has changed its mind about tiny, and not about the other
    assert DaemonEnd(shop).run(assignment(device, "1.1")).verdict is None
    assert [path.name for path in (device / "downloads").iterdir()] == [ballast.sha256]
    end = DaemonEnd(shop)
    assert end.run(assignment(device, "7", model="other")).verdict is None
    assert not list((device / "downloads").iterdir())
    of_ballast = [f.length for f in end.fetched if f.resource.endswith(ballast.sha256)]
    assert sum(of_ballast) == BLOCK_BYTES, "its first block was still there"


def test_a_silent_hub_is_given_up_for_now(shop: Shop, device: Path) -> None:
    shop.release(variant("1.0"))

    def silent(fetch: Fetch) -> Chunk | None:
        raise Silence

    verdict = DaemonEnd(shop, silent).run(assignment(device)).verdict
    assert verdict is not None and not verdict.final


def test_a_file_that_changed_between_fetch_and_verify_is_removed(
    shop: Shop, device: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = variant("1.0")
    shop.release(bundle)
    entry = bundle.manifest.file(bundle.manifest.model)
    end = DaemonEnd(shop)
    original = Updater._verify

    def spoil(self: Updater, manifest: object) -> None:
        path = device / "downloads" / entry.sha256
        path.write_bytes(b"x" * path.stat().st_size)
        original(self, manifest)  # type: ignore[arg-type]

    monkeypatch.setattr(Updater, "_verify", spoil)
    verdict = end.run(assignment(device)).verdict
    assert verdict is not None and not verdict.final
    assert "changed on this device's disk" in verdict.reason
    monkeypatch.setattr(Updater, "_verify", original)
    assert DaemonEnd(shop).run(assignment(device)).verdict is None
