"""Tools: scripts that run in an environment, as processes that inherit the limits of the caller."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgekit_contract.errors import Refused
from edgekit_converters.environments.catalogue import Environment
from edgekit_converters.environments.installation import find
from edgekit_converters.environments.interpreters import variables
from edgekit_converters.isolation import StepFailed, cause_of, last_words

__all__ = ["EnvironmentMissing", "Server", "ToolFailed", "ToolRefused", "call"]


class EnvironmentMissing(Refused):
    """The environment has not been set up."""

    def __init__(self, environment: Environment) -> None:
        super().__init__(
            f"{environment.title} needs tools that are not installed yet "
            f"(edgekit environments setup {environment.name}, about {environment.size_mb} MB)."
        )
        self.environment = environment


class ToolFailed(StepFailed):
    """A tool crashed, or raised, and with it the step that asked it."""


class ToolRefused(Refused):
    """A tool says why not, in a sentence for the user."""


def call(environment: Environment, tool: Path, arguments: Mapping[str, Any], *, home: Path) -> Any:
    """Run a tool's script in the environment; its JSON result.

    The script gets a file of JSON arguments and writes one of `result` or `refused`. It runs in
    `home`, a directory of its own, as a child that inherits the limits of this process and its
    process group: call it from a step of `isolation`, which ends both. Errors:
    `EnvironmentMissing`, `ToolRefused`, `ToolFailed`; `OSError` where the disk failed.
    """
    python = find(environment)
    if python is None:
        raise EnvironmentMissing(environment)
    home.mkdir(parents=True, exist_ok=True)
    request, answer, log = home / "request.json", home / "answer.json", home / "log"
    request.write_text(json.dumps(arguments))
    with log.open("wb") as stream:
        done = subprocess.run(
            [python, "-I", tool, request, answer],
            cwd=home,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            env={**variables(), "TMPDIR": str(home), "HOME": str(home)},
            check=False,
        )
    try:
        told = json.loads(answer.read_bytes())
    except (OSError, ValueError):
        raise ToolFailed(tool.stem, _cause(done.returncode, log)) from None
    if "refused" in told:
        raise ToolRefused(told["refused"])
    return told["result"]


class Server:
    """A tool that stays: it answers a line of JSON with one, in order. A context manager.

    Like `call`, it is for a step of `isolation`, whose limits it inherits and with which it ends.
    """

    def __init__(self, environment: Environment, tool: Path, *, home: Path) -> None:
        """Errors: `EnvironmentMissing`."""
        python = find(environment)
        if python is None:
            raise EnvironmentMissing(environment)
        home.mkdir(parents=True, exist_ok=True)
        self._tool, self._log = tool.stem, home / "log"
        with self._log.open("wb") as stream:
            self._process = subprocess.Popen(
                [python, "-I", tool],
                cwd=home,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stream,
                env={**variables(), "TMPDIR": str(home), "HOME": str(home)},
                text=True,
            )

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def ask(self, work: str, **arguments: Any) -> Any:
        """Its JSON result. Errors: `ToolRefused`, `ToolFailed`."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"work": work, **arguments}) + "\n")
            self._process.stdin.flush()
            answer = json.loads(self._process.stdout.readline())
        except (OSError, ValueError):
            code = self._process.wait()
            raise ToolFailed(self._tool, _cause(code, self._log)) from None
        if "refused" in answer:
            raise ToolRefused(answer["refused"])
        if "raised" in answer:
            raise ToolFailed(self._tool, answer["raised"])
        return answer["result"]


def _cause(code: int, log: Path) -> str:
    if code < 0:
        return cause_of(code, log)
    last = last_words(log)
    if "MemoryError" in last or "bad_alloc" in last:
        return "it needs more memory than it may have"
    return (last[:300] or f"it ended with code {code}").rstrip(".")
