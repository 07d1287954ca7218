"""What every command shares of printing: `--json`, tables, a progress that fits the terminal.

One JSON object goes to stdout with `--json`; progress and remarks always go to stderr.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from edgekit_contract.errors import printable

__all__ = ["emit", "json_option", "remark", "table"]

F = TypeVar("F", bound=Callable[..., Any])


def json_option(command: F) -> F:
    """Add `--json` as the parameter `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")(command)


def emit(value: Any) -> None:
    """Print a value (Struct, dataclass, dict) as one JSON object on stdout."""
    click.echo(msgspec.json.format(msgspec.json.encode(value, enc_hook=_plain), indent=2).decode())


def _plain(value: object) -> str:
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")


def remark(sentence: str) -> None:
    """Say something on stderr that is not the answer."""
    click.echo(sentence, err=True)


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table on stdout: fitted to the terminal, whole where there is none.

    Cells are text and nothing else: no markup, no escape sequences. Without headers it is a list
    of facts, the name of each in the first column.
    """
    console = Console()
    if not console.is_terminal:
        console = Console(width=max(160, console.width))
    grid = Table(*headers, box=None, pad_edge=False, header_style="bold", show_header=bool(headers))
    for row in rows:
        grid.add_row(*(Text(printable(cell)) for cell in row))
    for column in grid.columns[:1]:
        column.no_wrap = True  # names are copied from here
    console.print(grid)
