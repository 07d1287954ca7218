"""A bundle's bytes follow from its content, and any ZIP reader can open it."""

from __future__ import annotations

import io
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from bundles import KEY, archive_of, null_bundle, onnx_bundle
from hypothesis import given
from hypothesis import strategies as st
from parts import need

from edgekit_contract.archive import (
    archive_bytes,
    open_archive,
    open_archive_bytes,
    write_archive,
)
from edgekit_contract.errors import BundleRejected, Reason

MEMBERS = st.lists(
    st.tuples(st.text(min_size=1, max_size=30), st.binary(max_size=200)),
    max_size=8,
    unique_by=lambda member: member[0],
)


@given(MEMBERS)
def test_archive_reads_back_what_was_written(members: list[tuple[str, bytes]]) -> None:
    data = archive_of(members)
    archive = open_archive_bytes(data, title="x", max_entries=8)
    assert [(name, archive.read(name, limit_bytes=200)) for name in archive.entries] == members
    assert len(data) == archive_bytes((name, len(content)) for name, content in members)


@given(MEMBERS)
def test_python_s_zipfile_reads_the_archive(members: list[tuple[str, bytes]]) -> None:
    with zipfile.ZipFile(io.BytesIO(archive_of(members))) as stock:
        assert stock.testzip() is None
        for info, (_, content) in zip(stock.infolist(), members, strict=True):
            assert stock.read(info) == content
            assert info.compress_type == zipfile.ZIP_STORED
            assert info.date_time == (1980, 1, 1, 0, 0, 0)


def test_unzip_reads_the_bundle(tmp_path: Path) -> None:
    unzip = need("unzip")
    bundle = onnx_bundle()
    path = bundle.write(tmp_path / "tiny.ekb")
    subprocess.run([unzip, "-q", path, "-d", tmp_path / "out"], check=True)
    for name, data in bundle.files.items():
        assert (tmp_path / "out" / name).read_bytes() == data


def test_packing_twice_gives_the_same_bytes_signature_included() -> None:
    assert null_bundle().pack(KEY) == null_bundle().pack(KEY)


def test_packing_in_another_process_gives_the_same_bytes() -> None:
    """Neither hash randomisation nor the clock is in them."""
    script = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r})\n"
        "from bundles import null_bundle; sys.stdout.buffer.write(null_bundle().pack())"
    )
    packed = [
        subprocess.run(
            [sys.executable, "-c", script],
            env={"PYTHONHASHSEED": seed, "TZ": zone},
            capture_output=True,
            check=True,
        ).stdout
        for seed, zone in (("1", "UTC"), ("2", "Pacific/Auckland"))
    ]
    assert packed == [null_bundle().pack()] * 2


def test_file_from_disk_is_packed_as_its_bytes_are(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"content" * 300_000)
    out = io.BytesIO()
    write_archive(out, [("a", source)])
    assert out.getvalue() == archive_of([("a", source.read_bytes())])


def test_file_that_changes_while_it_is_packed_is_noticed(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"before")

    class Changing(io.BytesIO):
        def write(self, data: object) -> int:
            source.write_bytes(b"after!")
            return super().write(data)  # type: ignore[arg-type]

    with pytest.raises(RuntimeError, match="changed"):
        write_archive(Changing(), [("a", source)])


def test_entry_larger_than_asked_for_is_not_read() -> None:
    archive = open_archive_bytes(archive_of([("a", bytes(101))]), title="x", max_entries=1)
    with pytest.raises(BundleRejected) as caught:
        archive.read("a", limit_bytes=100)
    assert caught.value.reason is Reason.TOO_LARGE
    with pytest.raises(BundleRejected) as caught:
        archive.read("b", limit_bytes=100)
    assert caught.value.reason is Reason.MISSING_FILE


def test_file_cut_short_after_it_was_opened_is_noticed(tmp_path: Path) -> None:
    path = null_bundle().write(tmp_path / "tiny.ekb")
    archive = open_archive(path)
    path.write_bytes(path.read_bytes()[:3000])
    for name in archive.entries:
        if name.startswith("files/"):
            with pytest.raises(BundleRejected):
                list(archive.pieces(name))


def test_more_entries_than_the_format_counts_are_refused() -> None:
    with pytest.raises(BundleRejected) as caught:
        archive_bytes((str(n), 0) for n in range(65_536))
    assert caught.value.reason is Reason.TOO_LARGE
    assert archive_bytes((str(n), 0) for n in range(65_535)) > 0


def test_name_longer_than_the_format_counts_is_refused() -> None:
    with pytest.raises(BundleRejected):
        archive_bytes([("x" * 65_536, 0)])
