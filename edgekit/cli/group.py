"""The top-level group: commands loaded when used, errors turned into one sentence and a code."""

from __future__ import annotations

import errno
import importlib
import os
import signal
import sys
import threading
from collections.abc import Mapping
from types import FrameType
from typing import Any, Final, NoReturn

import click

from edgekit_contract.errors import EdgekitError, Misused, printable

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
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _interrupt)
    try:
        code = group.main(prog_name="edgekit", standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(EXIT_MISUSED)
    except click.ClickException as error:
        _fail(_usage(error), EXIT_MISUSED)
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
    except OSError as error:
        _fail(_from_system(error), EXIT_REFUSED)
    except ModuleNotFoundError as error:
        if (error.name or "edgekit").startswith("edgekit"):
            raise
        _fail(
            f"{error.name} is not installed: pip install 'edgekit[host]'.",
            EXIT_MISUSED,
        )
    sys.exit(code if isinstance(code, int) else 0)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """SIGTERM is no less polite than Ctrl-C: what a command has begun is put away."""
    raise KeyboardInterrupt


def _usage(error: click.ClickException) -> str:
    """What click says of a wrong command line, as one sentence."""
    text = " ".join(error.format_message().split()).rstrip(".?").replace(". Did", "; did")
    context = error.ctx if isinstance(error, click.UsageError) else None
    command = context.command_path if context is not None else "edgekit"
    return f"{text[:1].lower()}{text[1:]}: see {command} --help."


_ADVICE: Final = {
    errno.ENOSPC: "make room, then run it again",
    errno.EDQUOT: "make room, then run it again",
    errno.EFBIG: "raise the limit of file sizes (ulimit -f), then run it again",
    errno.EACCES: "run it as a user who may do that, or choose another place",
    errno.EPERM: "run it as a user who may do that, or choose another place",
    errno.EROFS: "choose a place that can be written to",
    errno.ENOENT: "check the path",
    errno.EADDRINUSE: "stop what uses it, or choose another",
}


def _from_system(error: OSError) -> str:
    """What the system refused that no command expects, as one sentence."""
    place = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
    said = (error.strerror or str(error)).rstrip(".").lower()
    advice = _ADVICE.get(error.errno or 0, "see to it, then run it again")
    return printable(f"{place}{said}; {advice}.")


def _fail(sentence: str, code: int) -> NoReturn:
    """Say one sentence on stderr and exit, whatever has become of stdout."""
    click.echo(f"edgekit: {sentence}", err=True)
    try:
        sys.stdout.flush()
    except OSError:
        # at exit Python would try again, and say so in its own words
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)
