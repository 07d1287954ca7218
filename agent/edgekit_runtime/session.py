"""One interface to every runtime: open a model file, run tensors through it.

`open_session` is the registry; a runtime is one module `backend_*`, or a plug-in (`plugins`), with
one `open_model`. Arrays in and out are numpy's, C order. A session serves one call at a time, from
whichever thread. Invariant: a session says what computes it, and what it was asked for and lacks.
"""

from __future__ import annotations

import enum
import importlib
import importlib.metadata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol, cast

import numpy as np

from edgekit_contract.errors import Refused
from edgekit_contract.manifest import Manifest, TensorSpec
from edgekit_contract.messages import Execution, cut
from edgekit_contract.profile import RuntimeKind

if TYPE_CHECKING:
    from edgekit_runtime.plugins import Plugin

__all__ = [
    "InferenceFailed",
    "InputRejected",
    "ModelUnloadable",
    "Optimization",
    "RuntimeMissing",
    "Session",
    "SessionOptions",
    "check_feeds",
    "execution",
    "installed_runtimes",
    "open_session",
    "options_for",
    "own_runtimes",
]

Tensors = Mapping[str, np.ndarray]

_BACKENDS: Final = {
    RuntimeKind.ONNXRUNTIME: "edgekit_runtime.backend_onnxruntime",
    RuntimeKind.LITERT: "edgekit_runtime.backend_litert",
    RuntimeKind.NULL: "edgekit_runtime.backend_null",
}
_MOST_NAMES: Final = 8


class RuntimeMissing(Refused):
    """The runtime is not installed, or does not load."""

    def __init__(
        self, kind: RuntimeKind, extra: str | None = None, error: ImportError | None = None
    ) -> None:
        """`extra`: edgekit's own that has it; None: it is a plug-in. `error`: of importing it."""
        do = (
            f"pip install 'edgekit[{extra}]'" if extra else "install its plug-in (docs/runtimes.md)"
        )
        what = "is not installed"
        if error is not None and not isinstance(error, ModuleNotFoundError):
            what = f"is installed and does not load ({_first_line(str(error)).rstrip('.')})"
        super().__init__(f"{kind.value} {what}: {do}.")
        self.kind = kind


class ModelUnloadable(Refused):
    """The runtime does not load the model file."""

    def __init__(self, path: Path, detail: str) -> None:
        super().__init__(f"{path.name} does not load: {_first_line(detail)}")
        self.path, self.detail = path, detail


class InputRejected(Refused):
    """Feeds that the model's inputs do not admit; the session was not run."""


class InferenceFailed(Refused):
    """The runtime failed on feeds that the model's inputs admit."""

    def __init__(self, detail: str) -> None:
        super().__init__(f"inference failed: {_first_line(detail)}")
        self.detail = detail


class Optimization(enum.Enum):
    """How far the runtime rewrites the graph when it loads it."""

    NONE = "none"
    BASIC = "basic"
    ALL = "all"


@dataclass(frozen=True, kw_only=True)
class SessionOptions:
    threads: int = 1
    providers: tuple[str, ...] = ()
    """ONNX Runtime execution providers in order of preference; empty: the CPU's."""
    optimization: Optimization = Optimization.ALL
    cache: Path | None = None
    """A directory that is this model's alone, for what a runtime makes of it on this device, such
    as TensorRT's engines. None: nothing may be kept."""


class Session(Protocol):
    """A loaded model."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]: ...

    @property
    def outputs(self) -> tuple[TensorSpec, ...]: ...

    @property
    def execution(self) -> Execution:
        """What computes it; `Execution()` where there is no choice of such."""
        ...

    def run(self, feeds: Tensors) -> dict[str, np.ndarray]:
        """All outputs by name. Errors: `InputRejected`, `InferenceFailed`."""
        ...

    def close(self) -> None: ...


class _Backend(Protocol):
    def open_model(self, path: Path, options: SessionOptions) -> Session: ...

    def version(self) -> str | None: ...


def _backend(kind: RuntimeKind) -> _Backend | Plugin:
    if kind.is_plugin:
        from edgekit_runtime.plugins import find_plugin

        return find_plugin(kind)
    return cast(_Backend, importlib.import_module(_BACKENDS[kind]))


def open_session(kind: RuntimeKind, path: Path, options: SessionOptions | None = None) -> Session:
    """Load a model file. Errors: `RuntimeMissing`, `ModelUnloadable`, `plugins.PluginBroken`."""
    return _backend(kind).open_model(path, options or SessionOptions())


def options_for(manifest: Manifest, *, cache: Path | None = None) -> SessionOptions:
    """How a bundle's manifest wants its model run."""
    return SessionOptions(threads=manifest.threads, providers=manifest.providers, cache=cache)


def execution(
    asked: Sequence[str], used: Sequence[str], reasons: Mapping[str, str] | None = None
) -> Execution:
    """An `Execution` within what a message may carry; `reasons` by what is not used."""
    why = " ".join(f"{name}: {_first_line(text)}" for name, text in (reasons or {}).items())
    return Execution(
        asked=tuple(cut(name) for name in asked[:_MOST_NAMES]),
        used=tuple(cut(name) for name in used[:_MOST_NAMES]),
        reason=cut(why),
    )


def installed_runtimes() -> dict[RuntimeKind, str]:
    """Runtimes of this Python and their versions. Those of edgekit are found without loading them;
    a plug-in that cannot tell its version is not there."""
    from edgekit_runtime.plugins import plugin_versions

    return own_runtimes() | plugin_versions()


def own_runtimes() -> dict[RuntimeKind, str]:
    """`installed_runtimes` without plug-ins: nothing of others is imported."""
    found = {kind: _backend(kind).version() for kind in _BACKENDS}
    return {kind: version for kind, version in found.items() if version is not None}


def installed_version(*distributions: str) -> str | None:
    """Version of the first of these distributions that is installed."""
    for name in distributions:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def check_feeds(specs: tuple[TensorSpec, ...], feeds: Tensors) -> None:
    """Demand a tensor of the right name, dtype, rank and fixed axes for each input.

    Errors: `InputRejected`, naming what is wrong and what would be right.
    """
    by_name = {spec.name: spec for spec in specs}
    if surplus := sorted(feeds.keys() - by_name.keys()):
        raise InputRejected(f"there is no input {surplus[0]!r}; the inputs are {sorted(by_name)}.")
    if missing := sorted(by_name.keys() - feeds.keys()):
        raise InputRejected(f"input {missing[0]!r} is missing.")
    for name, spec in by_name.items():
        array = feeds[name]
        if array.dtype.name != spec.dtype:
            raise InputRejected(f"input {name!r} is {array.dtype.name}, not {spec.dtype}.")
        fits = len(array.shape) == len(spec.shape) and all(
            isinstance(want, str) or want == have
            for want, have in zip(spec.shape, array.shape, strict=True)
        )
        if not fits:
            raise InputRejected(
                f"input {name!r} has shape {list(array.shape)}, not {list(spec.shape)}."
            )


def _first_line(detail: str) -> str:
    line = next((line.strip() for line in detail.splitlines() if line.strip()), "no detail given")
    line = line if len(line) <= 300 else line[:299] + "…"
    return line if line.endswith(".") else line + "."
