"""Passphrases at the terminal: from EDGEKIT_PASSPHRASE, else asked, else an error."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from edgekit.cli.output import remark
from edgekit.release.keys import PrivateKey, find_passphrase, open_key

__all__ = ["new_passphrase", "unlock"]


def new_passphrase(what: str) -> bytes | None:
    """The passphrase for a key that is about to be made, typed twice; None means none."""
    return _find(what, twice=True)


def unlock(path: Path) -> PrivateKey:
    """Read a private key, with its passphrase where it is encrypted."""
    return open_key(path, lambda what: _find(what, twice=False))


def _find(what: str, *, twice: bool) -> bytes | None:
    def ask(text: str) -> str:
        answer = click.prompt(
            f"{text} (empty: none)" if twice else text,
            default="",
            show_default=False,
            hide_input=True,
            confirmation_prompt=twice,
            err=True,
        )
        return str(answer)

    return find_passphrase(
        what, environ=os.environ, ask=ask if sys.stdin.isatty() else None, warn=remark
    )
