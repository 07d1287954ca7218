"""The cache: whole entries or none, proved when read, bounded, shared by processes."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import msgspec
import pytest

from edgekit.build.cache import Cache, Kind, find_cache
from edgekit.build.parcel import DamagedParcel, pack, unpack
from edgekit_contract.errors import Misused

KEY = "ab" * 32


class Note(msgspec.Struct, frozen=True):
    text: str


def read(cache: Cache, key: str, into: Path) -> tuple[str, bytes] | None:
    found = cache.get(Kind.BUNDLE, key, Note, into=into)
    return None if found is None else (found.value.text, found.files["a/model"].read_bytes())


def put(cache: Cache, key: str, data: bytes, text: str = "n") -> bool:
    return cache.put(Kind.BUNDLE, key, Note(text), {"a/model": data})


def entry(cache: Cache, key: str) -> Path:
    return cache.root / "bundles" / f"{key}.parcel"


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


def test_entry_comes_back_as_it_was_put(cache: Cache, tmp_path: Path) -> None:
    assert read(cache, KEY, tmp_path) is None
    assert put(cache, KEY, b"weights", "told")
    assert read(cache, KEY, tmp_path) == ("told", b"weights")
    assert put(cache, KEY, b"others")
    assert read(cache, KEY, tmp_path) == ("n", b"others")


@pytest.mark.parametrize("place", range(0, 100, 9))
def test_damaged_entry_is_missing_and_goes(cache: Cache, tmp_path: Path, place: int) -> None:
    put(cache, KEY, os.urandom(500))
    path = entry(cache, KEY)
    data = bytearray(path.read_bytes())
    data[len(data) * place // 100] ^= 0x40
    path.write_bytes(data)
    assert read(cache, KEY, tmp_path) is None
    assert not path.exists()


@pytest.mark.parametrize("part", [0, 0.5, 0.99])
def test_entry_that_is_cut_short_is_missing_and_goes(
    cache: Cache, tmp_path: Path, part: float
) -> None:
    put(cache, KEY, b"x" * 500)
    data = entry(cache, KEY).read_bytes()
    entry(cache, KEY).write_bytes(data[: int(len(data) * part)])
    assert read(cache, KEY, tmp_path) is None
    assert not entry(cache, KEY).exists()


def test_parcel_whose_checksums_were_made_to_fit_is_refused_by_its_digests(tmp_path: Path) -> None:
    """CRC-32 is no proof: swap a file for another in the archive, checksum and all."""
    from edgekit_contract.archive import open_archive, write_archive

    path = tmp_path / "p"
    with path.open("wb") as out:
        pack(out, Note("n"), {"model": b"good"})
    head = open_archive(path).read("parcel.json", limit_bytes=10_000)
    with path.open("wb") as out:
        write_archive(out, [("parcel.json", head), ("model", b"evil")])
    with pytest.raises(DamagedParcel):
        unpack(path, Note, into=tmp_path / "out")


def test_names_in_a_parcel_become_no_paths(tmp_path: Path) -> None:
    path = tmp_path / "p"
    with path.open("wb") as out:
        pack(out, Note("n"), {"../../evil": b"1", "/etc/evil": b"2"})
    found = unpack(path, Note, into=tmp_path / "deep" / "out")
    assert {place.parent for place in found.files.values()} == {tmp_path / "deep" / "out"}


def test_least_recently_used_goes_first(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", max_bytes=8000)
    for number, key in enumerate(("a", "b", "c")):
        put(cache, key, b"x" * 2000)
        os.utime(entry(cache, key), (100 + number, 100 + number))
    assert read(cache, "a", tmp_path) is not None  # used now, so b is the oldest
    put(cache, "d", b"x" * 2000)
    assert [k for k in "abcd" if entry(cache, k).exists()] == ["a", "c", "d"]


def test_entry_larger_than_the_cache_is_not_kept(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", max_bytes=3000)
    assert put(cache, "small", b"x" * 1000)
    assert not put(cache, "large", b"x" * 4000)
    assert read(cache, "small", tmp_path) is not None
    assert read(cache, "large", tmp_path) is None


def test_prune_drops_what_was_not_used_for_so_long(cache: Cache) -> None:
    for key in ("old", "new"):
        put(cache, key, b"x")
    os.utime(entry(cache, "old"), (100, 100))
    assert cache.prune(older_than_s=3600) == 1
    assert entry(cache, "new").exists()
    assert cache.prune(max_bytes=0) == 1
    assert sum(usage.entries for usage in cache.usage()) == 0


def test_prune_removes_what_a_killed_build_left_and_spares_one_that_writes(cache: Cache) -> None:
    put(cache, KEY, b"x")
    left, living = (entry(cache, KEY).with_name(f".new-{name}") for name in ("left", "living"))
    left.write_bytes(b"half")
    living.write_bytes(b"half")
    os.utime(left, (100, 100))
    cache.prune()
    assert not left.exists()
    assert living.exists()
    assert entry(cache, KEY).exists()


def test_clear_leaves_what_is_not_the_caches(cache: Cache) -> None:
    put(cache, KEY, b"x")
    (cache.root / "mine.txt").write_text("mine")
    assert cache.clear() == 1
    assert [path.name for path in cache.root.iterdir()] == ["mine.txt"]
    assert cache.clear() == 0


def test_cache_that_cannot_be_written_or_read_costs_no_build(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    cache = Cache(tmp_path / "file")
    assert not put(cache, KEY, b"x")
    assert read(cache, KEY, tmp_path / "into") is None
    assert cache.prune(max_bytes=0) == 0


def churn(root: str, number: int) -> None:
    cache = Cache(Path(root), max_bytes=20_000)
    into = Path(root).parent / f"into{number}"
    for turn in range(60):
        key = str(turn % 5)
        data = key.encode() * 3000
        put(cache, key, data)
        found = read(cache, key, into)
        assert found is None or found[1] == data  # another process may have dropped it


def test_processes_share_a_cache_and_see_whole_entries_only(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    workers = [
        spawn.Process(target=churn, args=(str(tmp_path / "cache"), number)) for number in range(3)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert sum(u.size_bytes for u in Cache(tmp_path / "cache").usage()) <= 20_000


def test_cache_is_where_the_environment_says(tmp_path: Path) -> None:
    assert find_cache({"EDGEKIT_CACHE": str(tmp_path), "EDGEKIT_CACHE_MIB": "0"}) is None
    named = find_cache({"EDGEKIT_CACHE": str(tmp_path), "EDGEKIT_CACHE_MIB": "3"})
    assert named is not None
    assert (named.root, named.max_bytes) == (tmp_path / "build", 3 << 20)
    xdg = find_cache({"XDG_CACHE_HOME": str(tmp_path)})
    assert xdg is not None
    assert (xdg.root, xdg.max_bytes) == (tmp_path / "edgekit" / "build", 4 << 30)
    with pytest.raises(Misused):
        find_cache({"EDGEKIT_CACHE_MIB": "much"})
