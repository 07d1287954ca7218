"""edgekit.toml: what a build needs to know of a model beyond its file.

    labels = "labels.txt"            # one class name a line, beside edgekit.toml
    [preprocess]                     # how an image or a sound becomes the input
    kind = "image"                   # or "audio": see edgekit_contract.manifest
    input = "image"
    height = 224
    width = 224
    [postprocess]                    # how scores become labels
    kind = "classify"
    output = "logits"

Invariant: unknown tables and keys are refused, so that a misspelt one is not silently ignored.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from edgekit_contract import limits
from edgekit_contract.errors import Misused
from edgekit_contract.manifest import Postprocess, Preprocess

__all__ = ["FILENAME", "Project", "find_project", "load_project"]

FILENAME: Final = "edgekit.toml"


class _File(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    labels: str | None = None
    preprocess: Preprocess | None = None
    postprocess: Postprocess | None = None


@dataclass(frozen=True, kw_only=True)
class Project:
    """What edgekit.toml says; all empty where there is none."""

    labels: tuple[str, ...] = ()
    preprocess: tuple[Preprocess, ...] = ()
    postprocess: tuple[Postprocess, ...] = ()


def find_project(places: Iterable[Path]) -> Project:
    """The first edgekit.toml in one of these directories. Errors: `Misused`."""
    for place in places:
        if (place / FILENAME).is_file():
            return load_project(place / FILENAME)
    return Project()


def load_project(path: Path) -> Project:
    """Parse an edgekit.toml. Errors: `Misused` naming the file and what is wrong."""
    try:
        file = msgspec.toml.decode(path.read_bytes(), type=_File)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Misused(f"{path} cannot be used: {error}.") from error
    labels: tuple[str, ...] = ()
    if file.labels is not None:
        labels = _labels(path.parent / file.labels)
    if file.postprocess is not None and not labels:
        raise Misused(f"{path} has [postprocess] but names no labels: add labels = FILE.")
    return Project(
        labels=labels,
        preprocess=(file.preprocess,) if file.preprocess else (),
        postprocess=(file.postprocess,) if file.postprocess else (),
    )


def _labels(path: Path) -> tuple[str, ...]:
    try:
        with path.open(encoding="utf-8") as stream:
            text = stream.read(limits.MIB)
    except (OSError, UnicodeDecodeError) as error:
        raise Misused(f"cannot read the labels {path}: {error}.") from error
    return tuple(line.strip() for line in text.splitlines() if line.strip())
