"""Programs of this machine that make sysroots: bounded in time, their failure one sentence."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from edgekit_contract.errors import Misused, Refused

__all__ = ["need", "run"]


def need(program: str, *, package: str) -> str:
    """Path of a program. Errors: `Misused` naming the Debian package that has it."""
    found = shutil.which(program)
    if found is None:
        raise Misused(f"emulation needs {program}: apt-get install {package}.")
    return found


def run(what: str, command: Sequence[str | Path], *, timeout_s: float) -> str:
    """Run a program to its end; its stdout. `what` names the work in messages.

    Errors: `Refused` with the program's last words.
    """
    try:
        done = subprocess.run(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise Refused(f"{what} took more than {timeout_s:.0f} s: check the network.") from error
    except OSError as error:
        raise Refused(f"{what} failed: {command[0]}: {error.strerror}.") from error
    if done.returncode:
        raise Refused(f"{what} failed: {_last_words(done.stderr or done.stdout)}.")
    return done.stdout


def _last_words(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith(("ERROR:", "E:", "error:"))]
    said = (errors or lines or ["it said nothing"])[-1]
    return said.removeprefix("ERROR:").removeprefix("E:").strip().rstrip(".")[:300]
