"""Progress on stderr: bars on a terminal, a line per stage elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

__all__ = ["Bars", "Lines", "for_terminal"]

_QUIET_S: Final = 10.0
"""How long a stage may run before its line tells how far it is."""


class Bars:
    """A bar for each stage."""

    def __init__(self, console: Console) -> None:
        self._console = console

    @contextmanager
    def stage(self, title: str, total: int | None) -> Iterator[Callable[[int], None]]:
        columns = [TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()]
        if total is not None:
            columns.insert(2, MofNCompleteColumn())
        with Progress(*columns, console=self._console) as bars:
            task = bars.add_task(title, total=total)
            yield lambda steps: bars.advance(task, steps)
            bars.update(task, total=total or 1, completed=total or 1)


class Lines:
    """A line when a stage begins, and one now and then while it runs."""

    @contextmanager
    def stage(self, title: str, total: int | None) -> Iterator[Callable[[int], None]]:
        click.echo(f"{title} ...", err=True)
        done, told = 0, time.monotonic()

        def advance(steps: int) -> None:
            nonlocal done, told
            done += steps
            if time.monotonic() - told > _QUIET_S:
                told = time.monotonic()
                of = f" of {total}" if total is not None else ""
                click.echo(f"{title} ... {done}{of}", err=True)

        yield advance


def for_terminal() -> Bars | Lines:
    """Bars where stderr is a terminal, lines elsewhere."""
    return Bars(Console(stderr=True)) if sys.stderr.isatty() else Lines()
