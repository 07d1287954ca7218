"""The top-level group: commands loaded when used, errors turned into one sentence and a code."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping
from typing import Any, NoReturn

import click

from edgekit_contract.errors import EdgekitError, Misused

__all__ = ["run"]

EXIT_REFUSED = 1
EXIT_MISUSED = 2
EXIT_INTERRUPTED = 130


class _LazyGroup(click.Group):
    def __init__(self, *, table: Mapping[str, str], help_lines: Mapping[str, str], **rest: Any):
        super().__init__(**rest)
        self._table, self._help_lines = table, help_lines

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(self._table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self._table:
            return None
        module, attribute = self._table[cmd_name].split(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, self._help_lines[name]) for name in sorted(self._table)])


def run(table: Mapping[str, str], help_lines: Mapping[str, str]) -> NoReturn:
    """Parse `sys.argv`, run the command and exit: 0 done, 1 the answer is no, 2 wrong usage."""
    group = _LazyGroup(
        name="edgekit",
        help="Takes a trained model to a fleet of small machines and keeps it healthy there.",
        table=table,
        help_lines=help_lines,
    )
    group = click.version_option(package_name="edgekit", prog_name="edgekit")(group)
    try:
        code = group.main(standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(EXIT_MISUSED)
    except click.Abort:
        _fail("stopped.", EXIT_INTERRUPTED)
    except EdgekitError as error:
        _fail(str(error), EXIT_MISUSED if isinstance(error, Misused) else EXIT_REFUSED)
    except KeyboardInterrupt:
        _fail("stopped.", EXIT_INTERRUPTED)
    except BrokenPipeError:
        # whoever read our output has left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_REFUSED)
    except ModuleNotFoundError as error:
        if (error.name or "edgekit").startswith("edgekit"):
            raise
        _fail(
            f"{error.name} is not installed: pip install 'edgekit[host]'.",
            EXIT_MISUSED,
        )
    sys.exit(code if isinstance(code, int) else 0)


def _fail(sentence: str, code: int) -> NoReturn:
    click.echo(f"edgekit: {sentence}", err=True)
    sys.exit(code)
