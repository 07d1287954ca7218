"""The cache: what builds made, kept under the digest of all that it was made of.

Invariant: an entry is whole or not there, and is proved when it is read: a damaged one counts as
missing and goes. A cache that cannot be read or written costs time, never a build. What is kept is
bounded; what was not used for longest goes first. Any number of processes may share one.
"""

from __future__ import annotations

import contextlib
import enum
import os
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from edgekit.build.parcel import DamagedParcel, Unpacked, pack, unpack
from edgekit.release.storage import TEMPORARY_PREFIX, write_temporary
from edgekit_contract import limits
from edgekit_contract.errors import EdgekitError, Misused

__all__ = ["MAX_BYTES", "PLACE", "SIZE", "Cache", "Kind", "Usage", "find_cache"]

MAX_BYTES: Final = 4 * limits.GIB
PLACE: Final = "EDGEKIT_CACHE"
"""Environment variable: where edgekit's caches are, this one in `build`."""
SIZE: Final = "EDGEKIT_CACHE_MIB"
"""Environment variable: what the cache may hold; 0: there is none."""
_SUFFIX: Final = ".parcel"
_ABANDONED_S: Final = 24 * 3600.0
"""An unfinished file of this age is of a build that was killed."""
T = TypeVar("T")


class Kind(enum.Enum):
    """What an entry is; the name of its directory."""

    BUNDLE = "bundles"
    """All of a bundle but its signature."""
    NORMALIZED = "normalized"
    """A normalized model."""
    RANGES = "ranges"
    """One estimator's ranges of a model's tensors."""
    WEIGHTS = "weights"
    """Which files hold the weights of a model."""


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What there is of one kind."""

    kind: str
    entries: int
    size_bytes: int


@dataclass(frozen=True, kw_only=True)
class _Entry:
    path: Path
    size_bytes: int
    used_at: float
    """Seconds since the epoch."""


class Cache:
    """Entries in a directory, by kind and key (the hex digits of a digest)."""

    def __init__(self, root: Path, *, max_bytes: int = MAX_BYTES) -> None:
        self.root, self.max_bytes = root, max_bytes

    def get(self, kind: Kind, key: str, like: type[T], *, into: Path) -> Unpacked[T] | None:
        """The entry, its value `like` this type, its files unpacked into a new directory below
        `into`; None: there is none.

        Errors: `OSError` where `into` cannot be written.
        """
        path = self._path(kind, key)
        place = into / f"kept-{secrets.token_hex(4)}"
        place.mkdir(parents=True)
        try:
            found = unpack(path, like, into=place)
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            return None
        except DamagedParcel:
            self.drop(kind, key)
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        return found

    def put(self, kind: Kind, key: str, value: object, files: Mapping[str, Path | bytes]) -> bool:
        """Keep an entry, in place of what is there; False where that was not possible."""
        path = self._path(kind, key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            temporary = write_temporary(path, lambda out: pack(out, value, files), mode=0o600)
            try:
                kept = temporary.stat().st_size <= self.max_bytes
                if kept:
                    temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)
            self.prune(max_bytes=self.max_bytes)
        except (OSError, EdgekitError):
            return False
        return kept

    def drop(self, kind: Kind, key: str) -> None:
        """Forget an entry."""
        with contextlib.suppress(OSError):
            self._path(kind, key).unlink()

    def usage(self) -> tuple[Usage, ...]:
        """Of each kind."""
        return tuple(
            Usage(kind=kind.value, entries=len(found), size_bytes=sum(e.size_bytes for e in found))
            for kind in Kind
            for found in [list(self._entries(kind))]
        )

    def prune(self, *, max_bytes: int | None = None, older_than_s: float | None = None) -> int:
        """Drop what was not used for so long, then what was used least recently until the rest
        fits; returns how many entries went."""
        now = time.time()
        ranked = sorted((e for kind in Kind for e in self._entries(kind)), key=lambda e: e.used_at)
        left = sum(entry.size_bytes for entry in ranked)
        gone = 0
        for entry in ranked:
            is_old = older_than_s is not None and now - entry.used_at > older_than_s
            if not is_old and (max_bytes is None or left <= max_bytes):
                continue
            with contextlib.suppress(OSError):
                entry.path.unlink()
                gone += 1
            left -= entry.size_bytes
        self._sweep(now - _ABANDONED_S)
        return gone

    def clear(self) -> int:
        """Drop all that is a cache's; returns how many entries went. Errors: `OSError`."""
        gone = sum(usage.entries for usage in self.usage())
        for kind in Kind:
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(self.root / kind.value)
        return gone

    def _path(self, kind: Kind, key: str) -> Path:
        return self.root / kind.value / f"{key}{_SUFFIX}"

    def _entries(self, kind: Kind) -> Iterator[_Entry]:
        for path, state in self._files(kind):
            if path.suffix == _SUFFIX:
                yield _Entry(path=path, size_bytes=state.st_size, used_at=state.st_mtime)

    def _files(self, kind: Kind) -> Iterator[tuple[Path, os.stat_result]]:
        try:
            paths = list((self.root / kind.value).iterdir())
        except OSError:
            return
        for path in paths:
            with contextlib.suppress(OSError):  # another process may drop it
                yield path, path.stat()

    def _sweep(self, before: float) -> None:
        """Remove what builds that were killed left unfinished."""
        for kind in Kind:
            for path, state in self._files(kind):
                if path.name.startswith(TEMPORARY_PREFIX) and state.st_mtime < before:
                    with contextlib.suppress(OSError):
                        path.unlink()


def find_cache(environ: Mapping[str, str]) -> Cache | None:
    """The user's cache: where `EDGEKIT_CACHE` says, else below `XDG_CACHE_HOME` or ~/.cache.

    None where `EDGEKIT_CACHE_MIB` is 0. Errors: `Misused` where it is no number.
    """
    size = environ.get(SIZE) or str(MAX_BYTES // limits.MIB)
    if not size.isdecimal():
        raise Misused(f"{SIZE} is {size!r}: give a number of MiB (0: keep nothing), or unset it.")
    if not int(size):
        return None
    home = environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    place = environ.get(PLACE) or str(Path(home) / "edgekit")
    return Cache(Path(place) / "build", max_bytes=int(size) * limits.MIB)
