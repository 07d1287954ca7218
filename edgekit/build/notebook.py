"""The notebook: latencies that real devices measured, for every build to come.

One JSON file of the user's. A figure is kept by profile, core, runtime, version, threads and the
structure of the model (`edgekit_converters.structure`), so that it holds for a model trained again.

Invariant: a figure is one that a device sent; the last one for a key replaces those before it. A
reader sees the file as it was before a write or after it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from edgekit.build.report import Figure
from edgekit.release.storage import locked, write_file
from edgekit_contract import limits
from edgekit_contract.errors import Refused
from edgekit_contract.profile import Profile, Runtime

__all__ = ["Key", "Note", "Notebook", "default_path", "key_of"]

VARIABLE: Final = "EDGEKIT_FIGURES"


class Key(msgspec.Struct, frozen=True, kw_only=True):
    """What a latency depends on."""

    profile: str
    core: str
    runtime: str
    version: str
    threads: int
    model: str
    """Digest of the model's structure."""


class Note(msgspec.Struct, frozen=True, kw_only=True):
    key: Key
    bundle: str
    """Title of what was measured, for people."""
    figure: Figure


class _File(msgspec.Struct, frozen=True, kw_only=True):
    notes: tuple[Note, ...]


class NotebookBroken(Refused):
    """The file is not what edgekit writes."""


def default_path(environ: Mapping[str, str] = os.environ) -> Path:
    """`EDGEKIT_FIGURES`, else `edgekit/figures.json` in XDG_DATA_HOME (its specification)."""
    if named := environ.get(VARIABLE):
        return Path(named)
    home = environ.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
    return Path(home) / "edgekit" / "figures.json"


def key_of(profile: Profile, runtime: Runtime, *, model: str, version: str | None = None) -> Key:
    """The key of a model's structure; `version` is the runtime's where the device has another."""
    return Key(
        profile=profile.name,
        core=profile.cpu.core,
        runtime=runtime.kind.value,
        version=version or runtime.version,
        threads=runtime.threads,
        model=model,
    )


@dataclass(frozen=True)
class Notebook:
    """The file at `path`, which need not be there. Errors: `NotebookBroken`."""

    path: Path

    def figures(self) -> dict[Key, Figure]:
        return {note.key: note.figure for note in self.notes()}

    def notes(self) -> tuple[Note, ...]:
        """All, the oldest first."""
        try:
            with self.path.open("rb") as stream:
                raw = stream.read(limits.MAX_NOTEBOOK_BYTES + 1)
        except FileNotFoundError:
            return ()
        except OSError as error:
            raise NotebookBroken(
                f"cannot read {self.path} ({error.strerror}): mend that, or name another file in "
                f"{VARIABLE}."
            ) from error
        if len(raw) > limits.MAX_NOTEBOOK_BYTES:
            raise NotebookBroken(
                f"{self.path} is over {limits.MAX_NOTEBOOK_BYTES >> 20} MiB: move it away."
            )
        try:
            return msgspec.json.decode(raw, type=_File).notes
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise NotebookBroken(
                f"{self.path} cannot be read ({error}): move it away, and measure again."
            ) from error

    def add(self, notes: Iterable[Note]) -> None:
        """Put these in place of older ones with the same keys. Errors: `Refused`, too."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with locked(self.path.with_name(f".{self.path.name}.lock")):
                kept = {note.key: note for note in self.notes()}
                for note in notes:
                    kept.pop(note.key, None)
                    kept[note.key] = note
                write_file(self.path, msgspec.json.encode(_File(notes=tuple(kept.values()))))
        except OSError as error:
            raise Refused(
                f"cannot write {self.path} ({error.strerror}): make room, or name another file in "
                f"{VARIABLE}."
            ) from error
