"""Turns: builds on one machine compute together, and each measures alone.

Invariant: while one build is inside `alone`, every other of this user that is inside `together`
waits where it gave way or holds still until it does. Who waits to measure goes before who comes to
compute (a turnstile before the room), so that nobody starves. Locks are those of files (flock), so
they end with their process; who waits longer than `PATIENCE_S` goes on, and leaves a mark, so that
who measures says that it was disturbed. What was waited is no time of the build: deadlines go by
`Turns.now`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Final, TypeVar

from edgekit.build.progress import Advance, Progress
from edgekit_contract.errors import Refused

__all__ = ["DISTURBED", "PATIENCE_S", "Considerate", "Turns", "alone", "open_turns"]

DISTURBED: Final = "Another build computed while this one measured: build again."
"""Remark of a report."""
_MEMORY: Final = "/dev/shm"
PATIENCE_S: Final = 600.0
"""Longer than any section without a place to give way: a variant may take 120 s."""
_LOOK_S: Final = 0.005
_MARK_BYTES: Final = 16
_STRIDE_S: Final = 0.02
"""How long one computes before it gives way again: steps may be far shorter."""

_Result = TypeVar("_Result")


class Turns:
    """The place of one build, in one thread, among those on this machine."""

    def __init__(
        self,
        directory: Path,
        *,
        patience_s: float = PATIENCE_S,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Errors: `OSError`."""
        self._patience_s, self._clock, self._sleep = patience_s, clock, sleep
        self._waited_s = 0.0
        self._owner = threading.get_ident()
        self._is_inside = False
        self._entered = 0.0
        self._beside: Future[Any] | None = None
        self.disturbed = False
        """Whether patience ended: something was timed while others computed."""
        self._gate = _open(directory / "gate.lock")
        self._room = _open(directory / "room.lock")

    def close(self) -> None:
        os.close(self._gate)
        os.close(self._room)

    def now(self) -> float:
        """Seconds by the clock, less those that were waited for others."""
        return self._clock() - self._waited_s

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Compute beside others."""
        self._enter()
        try:
            yield
        finally:
            self._leave()

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Measure: nobody else computes meanwhile."""
        was_inside = self._is_inside
        self._leave()
        ends = self._clock() + self._patience_s
        try:
            quiet = self._take(self._gate, fcntl.LOCK_EX, ends)
            quiet = self._take(self._room, fcntl.LOCK_EX, ends) and quiet
            mark = self._mark()
            self.disturbed = self.disturbed or not quiet
            yield
            self.disturbed = self.disturbed or self._mark() != mark
        finally:
            fcntl.flock(self._room, fcntl.LOCK_UN)
            fcntl.flock(self._gate, fcntl.LOCK_UN)
            if was_inside:
                self._enter()

    def beside(self, pool: Executor, call: Callable[[], _Result]) -> Future[_Result]:
        """Compute in another thread, too: until that has ended no way is given, since what it has
        others compute would go on."""
        self._beside = future = pool.submit(call)
        return future

    def are_waiting(self) -> bool:
        """Whether others wait for this build to give way, and it can: what it has others compute
        must hold still first."""
        if not self._can_give_way():
            return False
        try:
            fcntl.flock(self._gate, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        fcntl.flock(self._gate, fcntl.LOCK_UN)
        return False

    def give_way(self) -> None:
        """Let one measure who waits for it. Elsewhere than in the build's thread: nothing."""
        if self._can_give_way() and self._clock() - self._entered >= _STRIDE_S:
            self._leave()
            self._enter()

    def _can_give_way(self) -> bool:
        is_alone_at_it = self._beside is None or self._beside.done()
        return self._is_inside and is_alone_at_it and threading.get_ident() == self._owner

    def _enter(self) -> None:
        ends = self._clock() + self._patience_s
        has_leave = self._take(self._gate, fcntl.LOCK_EX, ends)
        has_leave = self._take(self._room, fcntl.LOCK_SH, ends) and has_leave
        if not has_leave:
            os.pwrite(self._room, os.urandom(_MARK_BYTES), 0)
        fcntl.flock(self._gate, fcntl.LOCK_UN)
        self._is_inside = True
        self._entered = self._clock()

    def _mark(self) -> bytes:
        """Another than before, where somebody went on without leave."""
        return os.pread(self._room, _MARK_BYTES, 0)

    def _leave(self) -> None:
        fcntl.flock(self._room, fcntl.LOCK_UN)
        self._is_inside = False

    def _take(self, lock: int, how: int, ends: float) -> bool:
        began = self._clock()
        try:
            while True:
                try:
                    fcntl.flock(lock, how | fcntl.LOCK_NB)
                    return True
                except BlockingIOError:
                    if self._clock() > ends:
                        return False
                self._sleep(_LOOK_S)
        finally:
            self._waited_s += self._clock() - began


class Considerate:
    """Passes progress on to another, and gives way at each step of it."""

    def __init__(self, watch: Progress, turns: Turns) -> None:
        self._watch, self._turns = watch, turns

    @contextlib.contextmanager
    def stage(self, title: str, total: int | None) -> Iterator[Advance]:
        self._turns.give_way()
        with self._watch.stage(title, total) as advance:

            def considerate(steps: int) -> None:
                advance(steps)
                self._turns.give_way()

            yield considerate


_CURRENT: ContextVar[Turns | None] = ContextVar("turns", default=None)


@contextlib.contextmanager
def open_turns(directory: Path | None = None) -> Iterator[Turns]:
    """Compute together with the other builds of this machine, until the end of the block.

    Errors: `Refused` where the locks' directory is somebody else's.
    """
    turns = Turns(directory or _directory())
    token = _CURRENT.set(turns)
    try:
        with turns.together():
            yield turns
    finally:
        _CURRENT.reset(token)
        turns.close()


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Measure without other builds beside; outside of a build, with nobody's leave."""
    turns = _CURRENT.get()
    with turns.alone() if turns is not None else contextlib.nullcontext():
        yield


def _directory() -> Path:
    """Of this user, for all builds on this machine, and where nothing stays on disk."""
    places = (os.environ.get("XDG_RUNTIME_DIR"), _MEMORY, tempfile.gettempdir())
    place = next(p for p in places if p and os.access(p, os.W_OK | os.X_OK))
    path = Path(place) / f"edgekit-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    state = path.lstat()
    if not stat.S_ISDIR(state.st_mode) or state.st_uid != os.getuid():
        raise Refused(
            f"{path} is not a directory of yours, and builds take turns by locks in it: remove it, "
            "or set XDG_RUNTIME_DIR to another directory."
        )
    return path


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
