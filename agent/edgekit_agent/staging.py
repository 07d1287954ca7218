"""A bundle's files on their way into the inactive slot.

Invariant: a slot has its envelope exactly while every file of that envelope is in place: the
envelope goes first when a slot is touched and comes last. Files that are right where they belong
stay; so a release that was here before costs no download, and an interrupted STAGE loses nothing.
A download stays while some model's `fetching.json` names it, or until space is short.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from edgekit_agent import storage
from edgekit_agent.download import missing_blocks
from edgekit_agent.slots import cache_of
from edgekit_contract import limits
from edgekit_contract.envelope import ENVELOPE_PATH, decode
from edgekit_contract.errors import BundleRejected
from edgekit_contract.manifest import FileEntry, Manifest

__all__ = ["Staging"]

_FETCHING: Final = "fetching.json"
_MAX_FETCHING_BYTES: Final = 128 * limits.MAX_BUNDLE_FILES


class Staging:
    """Between `downloads/` and one slot. The slot must not be the active one."""

    def __init__(self, *, downloads: Path, slot: Path, active: Path | None) -> None:
        if slot == active:
            raise RuntimeError("the running slot is never touched")
        self._downloads, self._slot, self._active = downloads, slot, active
        self._placed: set[str] = set()
        self._fetching = slot.parent / _FETCHING

    def download_path(self, entry: FileEntry) -> Path:
        return self._downloads / entry.sha256

    def served(self) -> Manifest | None:
        """What the active slot holds; None where there is none or its envelope cannot be read."""
        return _manifest(self._active) if self._active is not None else None

    def look(self, manifest: Manifest) -> list[FileEntry]:
        """The files that must be fetched, each digest once: those not yet in the slot."""
        wanted: dict[str, FileEntry] = {}
        for entry in manifest.files:
            path = self._slot / entry.path
            if path.is_file() and not path.is_symlink() and _is(path, entry):
                self._placed.add(entry.path)
            else:
                wanted[entry.sha256] = entry
        return list(wanted.values())

    def needed_bytes(self, wanted: list[FileEntry]) -> int:
        """Disk space that `wanted` still needs."""
        return sum(
            max(0, entry.size - _allocated_bytes(self.download_path(entry))) for entry in wanted
        )

    def fetched_bytes(self, wanted: list[FileEntry]) -> int:
        """What `wanted` costs on the network, over all attempts: files of either slot are free."""
        return sum(entry.size for entry in wanted if self._source(entry) is None)

    def free_space(self, manifest: Manifest) -> None:
        """Give up what `manifest` does not need: other downloads, the slot's other files."""
        digests = {entry.sha256 for entry in manifest.files}
        for path in list(self._downloads.iterdir()):
            if path.name not in digests:
                storage.remove(path)
        self._clear_slot()

    def claim(self, wanted: list[FileEntry]) -> None:
        """Let no other model's STAGE remove these downloads, should they take several attempts."""
        storage.create_directory(self._fetching.parent)
        storage.write(self._fetching, msgspec.json.encode([entry.sha256 for entry in wanted]))

    def reuse(self, entry: FileEntry) -> None:
        """Begin the download of `entry` with a copy, where a slot has the same file."""
        target = self.download_path(entry)
        if target.exists():
            return
        if (source := self._source(entry)) is not None:
            storage.copy_file(source, target)

    def _source(self, entry: FileEntry) -> Path | None:
        slots = (slot for slot in (self._active, self._slot) if slot is not None)
        return next((path for slot in slots if (path := _held(slot, entry)) is not None), None)

    def verify(self, manifest: Manifest) -> FileEntry | None:
        """Hash every file whole, wherever it is; the first that is wrong, which is removed."""
        for entry in manifest.files:
            path = self._where(entry)
            if path.stat().st_size != entry.size or _sha256(path) != entry.sha256:
                storage.remove(path)
                return entry
        return None

    def stage(self, manifest: Manifest, envelope: bytes) -> None:
        """Make the slot hold exactly this bundle."""
        storage.create_directory(self._slot)
        self._clear_slot()
        left = [entry for entry in manifest.files if entry.path not in self._placed]
        for index, entry in enumerate(left):
            target = self._slot / entry.path
            storage.create_directory(target.parent)
            if any(later.sha256 == entry.sha256 for later in left[index + 1 :]):
                storage.copy_file(self.download_path(entry), target)
                storage.sync_file(target)
                storage.sync_directory(target.parent)
            else:
                storage.move(self.download_path(entry), target)
            self._placed.add(entry.path)
        storage.write(self._slot / ENVELOPE_PATH, envelope)
        storage.remove(self._fetching)
        self._clear_downloads()

    def _clear_downloads(self) -> None:
        """Remove what no model is fetching: this bundle's files that are in both places since power
        was lost while they moved, and those of releases that are not wanted any more."""
        claimed: set[str] = set()
        for path in self._slot.parent.parent.glob(f"*/{_FETCHING}"):
            raw = storage.read(path, limit_bytes=_MAX_FETCHING_BYTES) or b""
            try:
                claimed.update(msgspec.json.decode(raw, type=list[str]))
            except msgspec.DecodeError:
                continue  # those are fetched again
        for path in list(self._downloads.iterdir()):
            if path.name not in claimed:
                storage.remove(path)

    def _where(self, entry: FileEntry) -> Path:
        if entry.path in self._placed:
            return self._slot / entry.path
        return self.download_path(entry)

    def _clear_slot(self) -> None:
        storage.remove(self._slot / ENVELOPE_PATH)
        storage.remove(cache_of(self._slot))
        for path in list(_files(self._slot)):
            if path.relative_to(self._slot).as_posix() not in self._placed:
                storage.remove(path)


def _files(directory: Path) -> Iterator[Path]:
    for root, _, names in os.walk(directory):
        for name in names:
            yield Path(root) / name


def _held(slot: Path, entry: FileEntry) -> Path | None:
    """Where a slot holds a file of this digest, by what its own envelope says."""
    manifest = _manifest(slot)
    if manifest is None:
        return None
    for held in manifest.files:
        path = slot / held.path
        if held.sha256 == entry.sha256 and path.is_file() and not path.is_symlink():
            return path
    return None


def _manifest(slot: Path) -> Manifest | None:
    raw = storage.read(slot / ENVELOPE_PATH, limit_bytes=limits.MAX_ENVELOPE_BYTES)
    if raw is None:
        return None
    try:
        return decode(raw).manifest
    except BundleRejected:
        return None


def _is(path: Path, entry: FileEntry) -> bool:
    return path.stat().st_size == entry.size and not missing_blocks(entry, path)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(limits.BLOCK_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def _allocated_bytes(path: Path) -> int:
    try:
        return path.stat().st_blocks * 512
    except FileNotFoundError:
        return 0
