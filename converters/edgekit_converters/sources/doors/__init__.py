"""Doors: ways in for models of other frameworks. A module here with `DOORS` is a family of them.

Invariant: a door declares what it recognizes and needs; adding one adds a module and touches
nothing else. Other packages add theirs as entry points of `edgekit.doors`, each naming a module or
object with `DOORS`.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import pkgutil
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Final

from edgekit_converters.sources.doors.door import Door, bases_of

__all__ = ["ENTRY_POINTS", "all_doors", "door_for_object", "door_for_path", "find_door"]

ENTRY_POINTS: Final = "edgekit.doors"


@lru_cache(maxsize=1)
def all_doors() -> tuple[Door, ...]:
    """Every door, in the order in which they are asked. Errors: `RuntimeError` for a name twice."""
    doors = tuple(_families())
    names = [door.name for door in doors]
    if len(set(names)) != len(names):
        raise RuntimeError(f"two doors have one name: {sorted(names)}")
    return doors


def find_door(name: str) -> Door:
    """The door of this name. Errors: `RuntimeError`."""
    for door in all_doors():
        if door.name == name:
            return door
    raise RuntimeError(f"there is no door {name!r}")


def door_for_path(path: Path) -> Door | None:
    """The door that knows a file or directory. Errors: `Refused`, those of `Door.reads`."""
    return next((door for door in all_doors() if door.reads(path)), None)


def door_for_object(value: object) -> Door | None:
    """The door for what a callable returned: that of the most special of its classes."""
    for base in bases_of(value):
        for door in all_doors():
            if base in door.holds:
                return door
    return None


def _families() -> Iterator[Door]:
    for info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{info.name}")
        yield from getattr(module, "DOORS", ())
    for point in importlib.metadata.entry_points(group=ENTRY_POINTS):
        yield from point.load().DOORS
