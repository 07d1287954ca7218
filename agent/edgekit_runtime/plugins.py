"""Runtimes of others: a vendor's tool behind `session.Session`, found by an entry point.

A distribution names its plug-in in the group `edgekit.runtimes`; the entry point's name is the
runtime's, as profiles, bundles and devices spell it. It leads to a module, or to any object, that
has what `Plugin` lists. Invariant: nothing of a plug-in is imported by `import edgekit_runtime`,
and one that is broken harms no other runtime: it is not there, and says why when it is asked for.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, Final, Protocol, runtime_checkable

from edgekit_contract.errors import Refused
from edgekit_contract.profile import RuntimeKind
from edgekit_runtime.session import RuntimeMissing, Session, SessionOptions

__all__ = [
    "GROUP",
    "Plugin",
    "PluginBroken",
    "find_plugin",
    "plugin_for_file",
    "plugin_kinds",
    "plugin_versions",
]

GROUP: Final = "edgekit.runtimes"
_MAX_VERSION_CHARS: Final = 32


@runtime_checkable
class Plugin(Protocol):
    """What a plug-in has to have. docs/runtimes.md tells how one is written."""

    suffixes: tuple[str, ...]
    """Endings of its model files, such as ".hef"."""

    def version(self) -> str | None:
        """Of the vendor's runtime, dotted numbers first; None where it cannot run models here."""
        ...

    def open_model(self, path: Path, options: SessionOptions) -> Session:
        """Load a model file. Errors: `RuntimeMissing`, `ModelUnloadable`."""
        ...


class PluginBroken(Refused):
    """A plug-in that is installed and cannot be used."""

    def __init__(self, name: str, detail: str) -> None:
        super().__init__(f"the runtime plug-in {name} cannot be used: {detail}.")
        self.name, self.detail = name, detail


def find_plugin(kind: RuntimeKind) -> Plugin:
    """The plug-in of this name, imported. Errors: `RuntimeMissing`, `PluginBroken`."""
    found = [entry for name, entry in _entries() if name == kind.value]
    if not found:
        raise RuntimeMissing(kind)
    if len({entry.value for entry in found}) > 1:
        given = ", ".join(sorted(entry.value for entry in found))
        raise PluginBroken(kind.value, f"there are two of it ({given}); uninstall one")
    try:
        plugin: Any = found[0].load()
    except (Exception, SystemExit) as error:  # a stranger's module
        raise PluginBroken(kind.value, _told(error)) from error
    if not isinstance(plugin, Plugin):
        lacks = [
            part for part in ("suffixes", "version", "open_model") if not hasattr(plugin, part)
        ]
        raise PluginBroken(kind.value, f"{found[0].value} lacks {', '.join(lacks)}")
    return plugin


def plugin_kinds() -> tuple[RuntimeKind, ...]:
    """The plug-ins that are installed, whether or not they work; nothing is imported."""
    return tuple(dict.fromkeys(RuntimeKind(name) for name, _ in _entries()))


def plugin_versions() -> dict[RuntimeKind, str]:
    """The plug-ins that can run models here, and the versions of what they run them with."""
    found = {}
    for kind in plugin_kinds():
        try:
            version = find_plugin(kind).version()
        except (Exception, SystemExit):  # said when it is asked for, by `find_plugin`
            continue
        if version is not None:
            found[kind] = str(version)[:_MAX_VERSION_CHARS]
    return found


def plugin_for_file(path: Path) -> RuntimeKind | None:
    """The installed plug-in whose model files end as this one does, or None.

    Errors: `PluginBroken` where several claim it.
    """
    claims = []
    for kind in plugin_kinds():
        try:
            suffixes = tuple(find_plugin(kind).suffixes)
        except (Refused, TypeError):
            continue
        if path.suffix and path.suffix.lower() in suffixes:
            claims.append(kind)
    if len(claims) > 1:
        names = " and ".join(kind.value for kind in claims)
        raise PluginBroken(names, f"each takes {path.suffix} for its own; say --runtime NAME")
    return claims[0] if claims else None


def _entries() -> Iterator[tuple[str, EntryPoint]]:
    """Those whose names can be a plug-in's."""
    for entry in importlib.metadata.entry_points(group=GROUP):
        try:
            kind = RuntimeKind(entry.name)
        except ValueError:
            continue
        if kind.is_plugin:
            yield entry.name, entry


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".rstrip(".")
