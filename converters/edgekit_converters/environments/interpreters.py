"""Interpreters: the Pythons of this machine that an environment can be made of."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

from edgekit_contract.errors import Refused
from edgekit_converters.environments.catalogue import Environment

__all__ = ["Interpreter", "InterpreterMissing", "find_interpreter", "variables"]

_PROBE: Final = (
    "import sys, venv, ensurepip; print('%d.%d.%d' % sys.version_info[:3], sys.executable)"
)
_PROBE_S: Final = 20.0


@dataclass(frozen=True, kw_only=True)
class Interpreter:
    path: Path
    version: str
    """Such as "3.12.1"."""


class InterpreterMissing(Refused):
    """No Python on this machine will do."""

    def __init__(self, environment: Environment) -> None:
        versions = ", ".join(environment.versions[:-1])
        super().__init__(
            f"{environment.title} needs Python {versions} or {environment.versions[-1]} (with "
            "venv), and this machine has none on PATH or in ~/.pyenv: install one, such as "
            f"with pyenv install {environment.versions[0]}."
        )
        self.environment = environment


def find_interpreter(environment: Environment) -> Interpreter:
    """The first Python of the wanted versions that works. Errors: `InterpreterMissing`."""
    found = _interpreter(environment.versions, os.environ.get("PATH", ""))
    if found is None:
        raise InterpreterMissing(environment)
    return found


@lru_cache(maxsize=8)
def _interpreter(versions: tuple[str, ...], path: str) -> Interpreter | None:
    for version in versions:
        for candidate in _candidates(version, path):
            found = _probed(candidate)
            if found is not None and found.version.startswith(f"{version}."):
                return found
    return None


def _candidates(version: str, path: str) -> Iterator[Path]:
    if sys.version_info[:2] == tuple(map(int, version.split("."))):
        yield Path(sys.executable)
    if named := shutil.which(f"python{version}", path=path):
        yield Path(named)
    home = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    yield from sorted(home.glob(f"versions/{version}.*/bin/python{version}"), reverse=True)


def _probed(candidate: Path) -> Interpreter | None:
    """What it says of itself: a shim of pyenv may be there for a version that is not chosen."""
    try:
        done = subprocess.run(
            [candidate, "-I", "-c", _PROBE],
            capture_output=True,
            text=True,
            timeout=_PROBE_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    version, _, executable = done.stdout.strip().partition(" ")
    if done.returncode or not executable:
        return None
    return Interpreter(path=Path(executable), version=version)


def variables() -> dict[str, str]:
    """Ours, but for what would lead another Python to our packages."""
    return {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
