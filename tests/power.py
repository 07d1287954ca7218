"""A medium that loses what was not synced: POSIX at its strictest.

What survives a cut: of a file, its content at the last fsync; of a directory, its names at its last
fsync. So a rename without fsync of the directory is undone, and a file whose name was synced before
its content is empty. The cut comes before the n-th operation that matters.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

_COUNTED = ("fsync", "fdatasync", "replace", "unlink", "rmdir", "mkdir", "open", "write")


class PowerCut(BaseException):
    """The device is off. Not an Exception: nothing may handle it."""


class Medium:
    """Watches `root` through the functions of `os` that everything in Python goes through."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.operations = 0
        self.cut_before: int | None = None
        self._dead = False
        self._files: dict[int, bytes] = {}
        self._directories: dict[int, dict[str, tuple[int, bool]]] = {}
        self._held: list[int] = []
        """Open descriptors, so that no inode number comes round again."""
        for directory, _, names in os.walk(root):
            self._sync_directory(directory)
            for name in names:
                self._sync_file(Path(directory) / name)

    def _hold(self, path: Path | str) -> int:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        self._held.append(descriptor)
        return os.fstat(descriptor).st_ino

    def _sync_file(self, path: Path | str) -> None:
        self._files[self._hold(path)] = Path(path).read_bytes()

    def _sync_directory(self, path: Path | str) -> None:
        entries = {}
        with os.scandir(path) as found:
            for entry in found:
                if not entry.is_symlink():
                    number = self._hold(entry.path)
                    entries[entry.name] = (number, entry.is_dir())
        self._directories[self._hold(path)] = entries

    def synced(self, descriptor: int) -> None:
        path = _path_of(descriptor)
        if not path.startswith(str(self.root)) or path.endswith(" (deleted)"):
            return
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            self._sync_directory(path)
        else:
            self._sync_file(path)

    def count(self) -> None:
        if self._dead:
            raise PowerCut
        self.operations += 1
        if self.cut_before is not None and self.operations >= self.cut_before:
            self._dead = True
            raise PowerCut

    def survivors(self) -> None:
        """Make `root` what is found after the cut."""
        top = self.root.stat().st_ino
        shutil.rmtree(self.root)
        self._rebuild(self.root, top)
        for descriptor in self._held:
            os.close(descriptor)
        self._held.clear()

    def _rebuild(self, path: Path, number: int) -> None:
        path.mkdir()
        for name, (inode, is_directory) in self._directories.get(number, {}).items():
            if is_directory:
                self._rebuild(path / name, inode)
            else:
                (path / name).write_bytes(self._files.get(inode, b""))


@contextmanager
def watched(medium: Medium, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Count operations, note syncs, and cut the power where the medium says."""

    def counting(real: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            if name in ("open", "write") and not _touches(medium.root, arguments):
                return real(*arguments, **named)
            medium.count()
            result = real(*arguments, **named)
            if name in ("fsync", "fdatasync"):
                with monkeypatch.context() as inner:
                    for other, function in originals.items():
                        inner.setattr(os, other, function)
                    medium.synced(arguments[0])
            return result

        return call

    originals = {name: getattr(os, name) for name in _COUNTED}
    with monkeypatch.context() as patch:
        for name, real in originals.items():
            patch.setattr(os, name, counting(real, name))
        yield


def _touches(root: Path, arguments: tuple[Any, ...]) -> bool:
    first = arguments[0]
    if isinstance(first, int):
        return _path_of(first).startswith(str(root))
    writing = len(arguments) > 1 and arguments[1] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    return bool(writing) and str(first).startswith(str(root))


def _path_of(descriptor: int) -> str:
    return str(Path(f"/proc/self/fd/{descriptor}").readlink())


def every_cut(
    prepare: Callable[[Path], None],
    work: Callable[[Path], None],
    base: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[tuple[int, Path]]:
    """Run `work` on what `prepare` made, with the power cut before each operation in turn; yields
    the directory as it is found afterwards. The last time nothing is cut."""
    cut = 1
    while True:
        root = base / f"medium{cut}"
        root.mkdir()
        prepare(root)
        medium = Medium(root)
        medium.cut_before = cut
        finished = False
        try:
            with watched(medium, monkeypatch):
                work(root)
                finished = True
        except PowerCut:
            pass
        if finished:
            assert medium.operations == cut - 1
        medium.survivors()
        yield cut, root
        shutil.rmtree(root)
        if finished:
            return
        cut += 1
