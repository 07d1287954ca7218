"""Environments: tools whose pins would break ours, each in a virtual environment of its own.

Invariant: an environment is in the cache whole or not at all, and only one process makes it; its
directory's name is a digest of all that went in, so that it never changes and other pins are
another environment. Nothing of it is imported here: `call` runs a tool's script in it, as a process
that inherits the limits of the caller. Only wheels are installed: no package's set-up code runs.
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
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from edgekit_contract.errors import Misused, Refused
from edgekit_converters.isolation import DISK_FAILED

__all__ = [
    "ENVIRONMENTS",
    "LITERT",
    "TENSORFLOW",
    "Environment",
    "EnvironmentMissing",
    "Interpreter",
    "InterpreterMissing",
    "Server",
    "ToolFailed",
    "ToolRefused",
    "cache",
    "call",
    "find",
    "find_environment",
    "find_interpreter",
    "set_up",
]

_FORMAT: Final = 1
"""Part of the digest: how environments are made."""
_PROBE: Final = (
    "import sys, venv, ensurepip; print('%d.%d.%d' % sys.version_info[:3], sys.executable)"
)
_PROBE_S: Final = 20.0
_SET_UP_S: Final = 1200.0
"""For each step of a set-up: a slow network's downloads."""
_POLL_S: Final = 0.2
_STDERR_TAIL_BYTES: Final = 4096
_COMPLETE: Final = "complete.json"


@dataclass(frozen=True, kw_only=True)
class Environment:
    """What goes into one, and which Python it needs."""

    name: str
    title: str
    """What it is for."""
    versions: tuple[str, ...]
    """Of Python, the best first."""
    pins: tuple[str, ...]
    """All distributions with their versions: nothing else is installed, whatever they declare."""
    proof: str
    """A program that ends with 0 where all is there."""
    size_mb: int
    """About what it takes on disk, in 10^6 bytes."""


LITERT: Final = Environment(
    name="litert",
    title="writing and quantizing LiteRT models",
    # onnx2tf 2.x declares 3.12 and newer. On 3.11 all that is used here works, and is tested.
    versions=("3.12", "3.13", "3.11"),
    # What onnx2tf's direct writer and ai-edge-quantizer import, found by running them; of what they
    # declare besides (OpenCV, pytest, onnxscript, a builder of language models) nothing is used.
    pins=(
        "absl-py==2.5.1",
        "ai-edge-litert==2.3.0",
        "ai-edge-quantizer==0.10.0",
        "flatbuffers==25.12.19",
        "immutabledict==4.3.1",
        "ml_dtypes==0.5.4",
        "numpy==2.2.6",
        "onnx==1.20.1",
        "onnx2tf==2.6.9",
        "onnxruntime==1.26.0",
        "packaging==26.0",
        "protobuf==6.33.2",
        "psutil==7.1.3",
        "scipy==1.16.3",
        "sne4onnx==2.0.1",
        "sng4onnx==2.0.1",
        "tqdm==4.67.1",
        "typing_extensions==4.15.0",
    ),
    proof="import onnx2tf; from ai_edge_quantizer import quantizer",
    size_mb=430,
)

TENSORFLOW: Final = Environment(
    name="tensorflow",
    title="reading TensorFlow and Keras models",
    versions=("3.12", "3.13", "3.11"),
    # TensorFlow on the CPU with what it imports, Keras, and tf2onnx, whose own pins are older.
    pins=(
        "absl-py==2.5.1",
        "astunparse==1.6.3",
        "certifi==2025.11.12",
        "charset-normalizer==3.4.4",
        "flatbuffers==25.12.19",
        "gast==0.7.0",
        "google-pasta==0.2.0",
        "grpcio==1.76.0",
        "h5py==3.14.0",
        "idna==3.11",
        "keras==3.12.0",
        "markdown-it-py==4.0.0",
        "mdurl==0.1.2",
        "ml_dtypes==0.5.4",
        "namex==0.1.0",
        "numpy==2.2.6",
        "onnx==1.20.1",
        "opt_einsum==3.4.0",
        "optree==0.18.0",
        "packaging==26.0",
        "protobuf==6.33.2",
        "Pygments==2.19.2",
        "requests==2.32.5",
        "rich==14.2.0",
        "six==1.17.0",
        "tensorflow-cpu==2.21.0",
        "termcolor==3.2.0",
        "tf2onnx==1.17.0",
        "typing_extensions==4.15.0",
        "urllib3==2.6.2",
        "wheel==0.45.1",
        "wrapt==2.0.1",
    ),
    proof="import tensorflow, tf2onnx",
    size_mb=1500,
)

ENVIRONMENTS: Final[Mapping[str, Environment]] = {e.name: e for e in (LITERT, TENSORFLOW)}


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


class EnvironmentMissing(Refused):
    """The environment has not been set up."""

    def __init__(self, environment: Environment) -> None:
        super().__init__(
            f"{environment.title} needs tools that are not installed yet "
            f"(edgekit environments setup {environment.name}, about {environment.size_mb} MB)."
        )
        self.environment = environment


class ToolFailed(Refused):
    """A tool crashed, or raised."""

    def __init__(self, tool: str, detail: str) -> None:
        super().__init__(f"{tool} failed: {detail}.")
        self.tool, self.detail = tool, detail


class ToolRefused(Refused):
    """A tool says why not, in a sentence for the user."""


def find_environment(name: str) -> Environment:
    """Errors: `Misused`."""
    try:
        return ENVIRONMENTS[name]
    except KeyError:
        known = ", ".join(ENVIRONMENTS)
        raise Misused(f"there is no environment {name!r}; there are {known}.") from None


def cache() -> Path:
    """Where environments are: EDGEKIT_CACHE, or edgekit's place in the user's cache (XDG)."""
    if named := os.environ.get("EDGEKIT_CACHE"):
        return Path(named) / "environments"
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(home) / "edgekit" / "environments"


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
    return cache() / f"{environment.name}-{digest[:24]}"


def set_up(environment: Environment) -> Path:
    """Make the environment unless it is there; its Python.

    Errors: `InterpreterMissing`, `Refused` where it cannot be made, with what to do.
    """
    interpreter = find_interpreter(environment)
    home = _home(environment, interpreter)
    python = home / "bin" / "python"
    if (home / _COMPLETE).is_file():
        return python
    try:
        home.parent.mkdir(parents=True, exist_ok=True)
        with _locked(home.with_name(f"{home.name}.lock"), environment):
            if not (home / _COMPLETE).is_file():
                _make(environment, interpreter, home)
    except OSError as error:
        hint = "make room" if error.errno in DISK_FAILED else "check its permissions"
        raise Refused(
            f"cannot set up {environment.name} in {home.parent} ({error.strerror}): {hint}, or "
            "set EDGEKIT_CACHE to another directory."
        ) from error
    return python


@contextlib.contextmanager
def _locked(path: Path, environment: Environment) -> Iterator[None]:
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
        yield  # the lock ends with the stream


def _make(environment: Environment, interpreter: Interpreter, home: Path) -> None:
    """Under the lock, so that partial ones are nobody's."""
    for stale in (home, *home.parent.glob(f"{home.name}.partial*")):
        shutil.rmtree(stale, ignore_errors=True)
    partial = home.with_name(f"{home.name}.partial")
    python = partial / "bin" / "python"
    try:
        _step(environment, [interpreter.path, "-I", "-m", "venv", partial], "making it")
        _step(
            environment,
            [python, "-I", "-m", "pip", "install", "--quiet", "--no-input", "--no-deps",
             "--only-binary", ":all:", "--ignore-requires-python", "--disable-pip-version-check",
             *environment.pins],
            "installing it",
        )  # fmt: skip
        _step(environment, [python, "-I", "-c", environment.proof], "trying it")
        made = _contents(environment, interpreter.version)
        (partial / _COMPLETE).write_text(json.dumps(made, indent=1))
        partial.rename(home)  # Python finds itself by where it is, not by where it was made
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _step(environment: Environment, command: list[Path | str], what: str) -> None:
    """Errors: `Refused` with the last that the command said."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=_variables(),
        start_new_session=True,
        text=True,
        errors="replace",
    )
    try:
        said, _ = process.communicate(timeout=_SET_UP_S)
    except BaseException as error:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        if isinstance(error, subprocess.TimeoutExpired):
            raise Refused(
                f"setting up {environment.name} did not end within {_SET_UP_S / 60:.0f} minutes "
                f"({what}): check the network, and try again."
            ) from error
        raise
    if process.returncode:
        lines = [line.strip() for line in said.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR:")] or lines or ["no word"]
        raise Refused(
            f"setting up {environment.name} failed ({what}: {errors[-1][:300].rstrip('.')}): check "
            "the network and pip's settings, then try edgekit environments setup "
            f"{environment.name}."
        )


def _variables() -> dict[str, str]:
    """Ours, but for what would lead another Python to our packages."""
    return {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}


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
            env={**_variables(), "TMPDIR": str(home), "HOME": str(home)},
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
                env={**_variables(), "TMPDIR": str(home), "HOME": str(home)},
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
        with contextlib.suppress(ValueError):
            return f"it crashed ({signal.Signals(-code).name})"
        return f"it crashed (signal {-code})"
    with log.open("rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(0, size - _STDERR_TAIL_BYTES))
        lines = stream.read().decode(errors="replace").splitlines()
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    if "MemoryError" in last or "bad_alloc" in last:
        return "it needs more memory than it may have"
    return (last[:300] or f"it ended with code {code}").rstrip(".")
