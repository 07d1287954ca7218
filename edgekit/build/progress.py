"""How a build tells where it is. The build only reports; the CLI draws."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

__all__ = ["Advance", "Named", "Progress", "Silent", "Stopwatch"]

Advance = Callable[[int], None]
"""Report that so many more steps of a stage are done."""


class Progress(Protocol):
    def stage(self, title: str, total: int | None) -> AbstractContextManager[Advance]:
        """A stage of `total` steps, or of a number that nobody knows."""
        ...


class Silent:
    """Nobody watches."""

    @contextmanager
    def stage(self, title: str, total: int | None) -> Iterator[Advance]:
        yield lambda steps: None


class Named:
    """Passes on to another, and says of what each stage is."""

    def __init__(self, watch: Progress, name: str) -> None:
        self._watch, self._name = watch, name

    def stage(self, title: str, total: int | None) -> AbstractContextManager[Advance]:
        return self._watch.stage(f"{self._name}: {title}", total)


class Stopwatch:
    """Passes on to another, and keeps how long each stage took."""

    def __init__(self, watch: Progress, clock: Callable[[], float] = time.perf_counter) -> None:
        self._watch, self._clock = watch, clock
        self.seconds: dict[str, float] = {}
        """By title, in order of first appearance."""

    @contextmanager
    def stage(self, title: str, total: int | None) -> Iterator[Advance]:
        began = self._clock()
        try:
            with self._watch.stage(title, total) as advance:
                yield advance
        finally:
            self.seconds[title] = self.seconds.get(title, 0.0) + self._clock() - began
