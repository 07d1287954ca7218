"""The `edgekit` command in this process: its real entry point, exit code and output."""

from __future__ import annotations

import contextlib
import io
import sys
from dataclasses import dataclass
from unittest import mock

from edgekit.cli import main


@dataclass(frozen=True, kw_only=True)
class Answer:
    code: int
    out: str
    err: str


def edgekit(*words: object) -> Answer:
    """Run `edgekit WORDS...`, without a terminal."""
    out, err = io.StringIO(), io.StringIO()
    code: object = 0
    with (
        mock.patch.object(sys, "argv", ["edgekit", *map(str, words)]),
        mock.patch.object(sys, "stdin", io.StringIO()),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as end:
            code = end.code
    assert isinstance(code, int)
    return Answer(code=code, out=out.getvalue(), err=err.getvalue())
