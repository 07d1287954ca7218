"""Installation: an environment is made in the cache, and found there.

Invariant: an environment is in the cache whole or not at all, and only one process makes it; its
directory's name is a digest of all that went in, so that it never changes and other pins are
another environment. Only wheels are installed: no package's set-up code runs.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

from edgekit_contract.errors import Refused
from edgekit_converters import isolation
from edgekit_converters.environments.catalogue import Environment
from edgekit_converters.environments.interpreters import Interpreter, find_interpreter, variables

__all__ = ["cache", "find", "set_up"]

_FORMAT: Final = 1
"""Part of the digest: how environments are made."""
_SET_UP_S: Final = 1200.0
"""For each step of a set-up: a slow network's downloads."""
_POLL_S: Final = 0.2
_SAID_CHARACTERS: Final = 64_000
_COMPLETE: Final = "complete.json"


def cache() -> Path:
    """Where environments are: EDGEKIT_CACHE, or edgekit's place in the user's cache (XDG)."""
    if named := os.environ.get("EDGEKIT_CACHE"):
        return Path(named).absolute() / "environments"
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(home) / "edgekit" / "environments"


def find(environment: Environment) -> Path | None:
    """The environment's Python, or None where it has not been set up."""
    for complete in sorted(cache().glob(f"{environment.name}-*/{_COMPLETE}")):
        python = complete.parent / "bin" / "python"
        with contextlib.suppress(OSError, ValueError):
            made = json.loads(complete.read_bytes())
            # a Python that has been removed since leaves a link to nothing
            if made == _contents(environment, made["python"]) and python.exists():
                return python
    return None


def _contents(environment: Environment, python: str) -> dict[str, Any]:
    """All that went in."""
    return {
        "format": _FORMAT,
        "python": python,
        "machine": platform.machine(),
        "pins": list(environment.pins),
    }


def _home(environment: Environment, interpreter: Interpreter) -> Path:
    """The directory of what these pins make of this Python."""
    told = [str(interpreter.path), _contents(environment, interpreter.version)]
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
    return cache().absolute() / f"{environment.name}-{digest[:24]}"


def set_up(environment: Environment, *, neighbours: isolation.Neighbours | None = None) -> Path:
    """Make the environment unless it is there; its Python. It holds still while `neighbours` ask.

    Errors: `InterpreterMissing`, `Refused` where it cannot be made, with what to do.
    """
    interpreter = find_interpreter(environment)
    home = _home(environment, interpreter)
    python = home / "bin" / "python"
    if (home / _COMPLETE).is_file():
        return python
    try:
        home.parent.mkdir(parents=True, exist_ok=True)
        with _locked(home.with_name(f"{home.name}.lock"), environment, neighbours):
            if not (home / _COMPLETE).is_file():
                with isolation.Workshop(warm=(), neighbours=neighbours) as workshop:
                    _make(environment, interpreter, home, workshop)
    except OSError as error:
        hint = "make room" if error.errno in isolation.DISK_FAILED else "check its permissions"
        raise Refused(
            f"cannot set up {environment.name} in {home.parent} ({error.strerror}): {hint}, or "
            "set EDGEKIT_CACHE to another directory."
        ) from error
    return python


@contextlib.contextmanager
def _locked(
    path: Path, environment: Environment, neighbours: isolation.Neighbours | None
) -> Iterator[None]:
    """Wait for whoever makes the same environment. Errors: `Refused`."""
    with path.open("w") as stream:
        ends = time.monotonic() + _SET_UP_S
        while True:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EACCES):
                    raise
            if time.monotonic() > ends:
                raise Refused(
                    f"another process has been setting up {environment.name} for "
                    f"{_SET_UP_S / 60:.0f} minutes: end it, and try again."
                )
            time.sleep(_POLL_S)
            if neighbours is not None:
                neighbours.give_way()
        yield  # the lock ends with the stream


def _make(
    environment: Environment, interpreter: Interpreter, home: Path, workshop: isolation.Workshop
) -> None:
    """Under the lock, so that partial ones are nobody's."""
    for stale in (home, *home.parent.glob(f"{home.name}.partial*")):
        shutil.rmtree(stale, ignore_errors=True)
    unfinished = home.with_name(f"{home.name}.partial")
    python = unfinished / "bin" / "python"
    step = partial(_step, environment, workshop)
    try:
        step([interpreter.path, "-I", "-m", "venv", unfinished], "making it")
        step(
            [python, "-I", "-m", "pip", "install", "--quiet", "--no-input", "--no-deps",
             "--only-binary", ":all:", "--ignore-requires-python", "--disable-pip-version-check",
             *environment.pins],
            "installing it",
        )  # fmt: skip
        step([python, "-I", "-c", environment.proof], "trying it")
        made = _contents(environment, interpreter.version)
        (unfinished / _COMPLETE).write_text(json.dumps(made, indent=1))
        unfinished.rename(home)  # Python finds itself by where it is, not by where it was made
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _step(
    environment: Environment, workshop: isolation.Workshop, command: list[Path | str], what: str
) -> None:
    """Errors: `Refused` with the last that the command said."""
    words = {"command": [str(word) for word in command]}
    bounds = isolation.Limits(timeout_s=_SET_UP_S)
    try:
        told = workshop.run(what, f"{__name__}:in_child", words, bounds)
    except isolation.StepFailed as error:
        if not error.timed_out:
            raise _failed(environment, what, error.detail) from error
        raise Refused(
            f"setting up {environment.name} did not end within {_SET_UP_S / 60:.0f} minutes "
            f"({what}): check the network, and try again."
        ) from error
    if told["code"]:
        lines = [line.strip() for line in told["said"].splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR:")] or lines or ["no word"]
        raise _failed(environment, what, errors[-1][:300].rstrip("."))


def _failed(environment: Environment, what: str, why: str) -> Refused:
    return Refused(
        f"setting up {environment.name} failed ({what}: {why}): check the network and pip's "
        f"settings, then try edgekit environments setup {environment.name}."
    )


def in_child(command: list[str]) -> dict[str, Any]:
    """Run a step's command: its exit code, and the end of what it said."""
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=variables(),
        text=True,
        errors="replace",
        check=False,
    )
    return {"code": done.returncode, "said": done.stdout[-_SAID_CHARACTERS:]}
