"""What a door is: how it recognizes a model of another framework, what it needs, how it opens it.

Invariant: a door looks at names and first bytes only, and imports its framework nowhere but in
`open_file` and `open_object`, which run in a child process (see `workbench`).
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np

from edgekit_contract.errors import EdgekitError, Refused
from edgekit_converters.environments import Environment, EnvironmentMissing
from edgekit_converters.environments import find as find_python

__all__ = [
    "Door",
    "ExtraMissing",
    "NotConvertible",
    "Opened",
    "bases_of",
    "no_files",
    "one_line",
    "refusing",
]

_DETAIL_CHARS: Final = 300
_LINE_CHARS: Final = 240


class Opened(Protocol):
    """A model in its own framework."""

    def export(self, out: Path) -> Sequence[str]:
        """Write it as ONNX; what it now gives otherwise, a sentence each.

        Weights may be in a file beside `out`. Errors: `Refused`, `NotConvertible`.
        """

    def run(self, feeds: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """Run it in its framework, on and to arrays by the names that the ONNX file has.

        Outputs that the ONNX file lacks may be among them, and one that cannot be told, left out.
        """

    @property
    def example(self) -> Mapping[str, np.ndarray] | None:
        """Inputs that came with it: by these two makings of it are told apart."""


@dataclass(frozen=True, kw_only=True)
class Door:
    name: str
    """The framework's, as its makers write it."""
    extra: str = ""
    """What to install: `pip install 'edgekit[EXTRA]'`."""
    modules: tuple[str, ...] = ()
    """What conversion imports; each is looked for before."""
    environment: Environment | None = None
    """Where the framework is, if it is not beside edgekit."""
    packages: tuple[str, ...]
    """Distributions whose versions a report tells; the first is the framework's own."""
    reads: Callable[[Path], bool]
    """Whether this file or directory is of its kind. Errors: `Refused` for one that it knows, and
    that nobody should open."""
    files: Callable[[Path], Sequence[Path]]
    """All files that a directory is read from."""
    holds: frozenset[str]
    """Classes that a callable may return, as `bases_of` names them."""
    open_file: Callable[[Path], Opened]
    """Errors: `Refused`, and whatever the framework raises."""
    open_object: Callable[[Any, str], Opened]
    """Of what a callable of that name returned. Errors: `Refused`, and whatever is raised."""
    jumps: bool = False
    """Whether a last bit of an input may move an output by much, as in trees."""

    def check_installed(self, title: str) -> None:
        """Errors: `ExtraMissing`, `EnvironmentMissing`."""
        missing = next((n for n in self.modules if importlib.util.find_spec(n) is None), None)
        if missing is not None:
            raise ExtraMissing(title, self, missing)
        if self.environment is not None and find_python(self.environment) is None:
            raise EnvironmentMissing(self.environment)

    @property
    def versions(self) -> dict[str, str]:
        """Of its packages, those that are there."""
        if self.environment is not None:
            pins = dict(pin.split("==") for pin in self.environment.pins)
            return {name: pins[name] for name in self.packages}
        found = {}
        for package in self.packages:
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                found[package] = importlib.metadata.version(package)
        return found


class ExtraMissing(Refused):
    """The framework, or its converter, is not installed."""

    def __init__(self, title: str, door: Door, module: str) -> None:
        super().__init__(
            f"{title} is a model of {door.name}, and {module} is not installed: "
            f"pip install 'edgekit[{door.extra}]'."
        )
        self.door, self.module = door.name, module


class NotConvertible(Refused):
    """The framework's exporter lacks what the model needs."""

    def __init__(self, title: str, detail: str, remedy: str) -> None:
        detail = " ".join(detail.split())[:_DETAIL_CHARS].rstrip(". ")
        super().__init__(f"{title} cannot be written as ONNX ({detail}): {remedy}.")
        self.detail = detail


@contextlib.contextmanager
def refusing(sentence: Callable[[str], Refused]) -> Iterator[None]:
    """Make a sentence of whatever is raised, given in one line; want of memory goes on as it is."""
    try:
        yield
    except (EdgekitError, MemoryError):
        raise
    except Exception as error:
        raise sentence(one_line(error)) from error


def one_line(error: BaseException) -> str:
    """Class and first line of what is said."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return said[:_LINE_CHARS].rstrip(". ")


def bases_of(value: object) -> Sequence[str]:
    """Classes of an object, the most special first, such as `torch.nn.modules.module.Module`."""
    return [f"{kind.__module__}.{kind.__qualname__}" for kind in type(value).__mro__]


def no_files(directory: Path) -> Sequence[Path]:
    """Of a door that reads no directories."""
    return ()
