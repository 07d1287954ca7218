"""How a build tells where it is. The build only reports; the CLI draws."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

__all__ = ["Advance", "Progress", "Silent"]

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
