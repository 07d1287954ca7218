"""The far side of a conversion: opens a model of another framework, writes it as ONNX, runs it.

Invariant: everything here runs in a child process (see `isolation`), with the framework that the
door names; what is written goes into the directory that the caller gives.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from edgekit_contract.errors import EdgekitError, Refused
from edgekit_contract.profile import RuntimeKind
from edgekit_converters.callables import load_callable, said_by
from edgekit_converters.sources import agreement, doors
from edgekit_converters.sources.doors.door import Door, Opened
from edgekit_converters.tensorfile import read_tensors, write_tensors
from edgekit_runtime.session import open_session

__all__ = ["Converted", "Given", "check", "convert"]

_CHECK_S: Final = 20.0
"""After this long no further sample is compared."""
_WANTED: Final = "a function that returns a model"


class Given(msgspec.Struct, frozen=True, kw_only=True):
    """A model as the user named it."""

    title: str
    path: str | None = None
    """Of a file or directory; None: `title` is a `package.module:callable`."""
    door: str | None = None
    """Known for a path; of a callable what it returns tells."""
    import_from: tuple[str, ...] = ()
    """`sys.path` of the caller, whose modules the callable's are."""
    directory: str = "."
    """Where the caller is: the user's code may read files beside it."""


class Converted(msgspec.Struct, frozen=True, kw_only=True):
    """What `convert` tells; beside `out` it may leave the model's weights."""

    door: str
    versions: dict[str, str]
    """Of the packages that took part."""
    remarks: tuple[str, ...]
    module_file: str | None
    """Where the callable is defined."""


def convert(given: Mapping[str, Any], out: str, example: str) -> Any:
    """Write a model as ONNX to `out`; `Converted` as JSON.

    Where it came with inputs, these and what it gives for them go to the tensor file `example`.
    Errors: `Refused`, `Misused` where the callable cannot be imported.
    """
    asked = msgspec.convert(given, Given)
    door, opened, module_file = _open(asked)
    remarks = tuple(opened.export(Path(out)))
    if (feeds := opened.example) is not None:
        write_tensors(Path(example), _example(feeds, opened.run(feeds)))
    return msgspec.to_builtins(
        Converted(
            door=door.name,
            versions=door.versions,
            remarks=remarks,
            module_file=module_file,
        )
    )


def check(given: Mapping[str, Any], path: str, feeds: Sequence[str], example: str) -> Any:
    """Compare the ONNX file with the model in its framework; `Agreement` as JSON.

    `feeds` are tensor files by input name; not all are looked at where that takes long. Errors:
    `Refused`, also for a callable that makes another model than it made for `convert`.
    """
    asked = msgspec.convert(given, Given)
    _, opened, _ = _open(asked)
    if (told := opened.example) is not None:
        _check_same(asked.title, read_tensors(Path(example)), _example(told, opened.run(told)))
    ends = time.monotonic() + _CHECK_S
    session = open_session(RuntimeKind.ONNXRUNTIME, Path(path))
    found = agreement.Agreement()
    for file in feeds:
        if found.samples and time.monotonic() > ends:
            break
        tensors = read_tensors(Path(file))
        found = agreement.add(found, opened.run(tensors), session.run(tensors))
    return msgspec.to_builtins(found)


def _open(given: Given) -> tuple[Door, Opened, str | None]:
    if given.path is not None and given.door is not None:
        door = doors.find_door(given.door)
        return door, door.open_file(Path(given.path)), None
    sys.path[:0] = [path for path in given.import_from if path not in sys.path]
    os.chdir(given.directory)
    target = load_callable(given.title, wanted=_WANTED)
    try:
        value = target()
    except EdgekitError:
        raise
    except MemoryError:
        raise
    except (Exception, SystemExit) as error:  # the user's own code
        raise Refused(f"{given.title} raised {said_by(error)}: mend that function.") from error
    model = value[0] if isinstance(value, tuple) and value else value
    found = doors.door_for_object(model)
    if found is None:
        known = ", ".join(sorted(door.name for door in doors.all_doors() if door.holds))
        raise Refused(
            f"{given.title} returned a {type(model).__qualname__}: return a model of {known}, with "
            "its example inputs where docs/sources.md says so."
        )
    found.check_installed(given.title)
    return found, found.open_object(value, given.title), _file_of(target)


def _file_of(target: Any) -> str | None:
    with contextlib.suppress(TypeError):
        return inspect.getsourcefile(inspect.unwrap(target))
    return None


def _example(
    feeds: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    return {
        **{f"in {name}": np.asarray(array) for name, array in feeds.items()},
        **{f"out {name}": np.asarray(array) for name, array in outputs.items()},
    }


def _check_same(
    title: str, before: Mapping[str, np.ndarray], now: Mapping[str, np.ndarray]
) -> None:
    same_inputs = all(
        np.array_equal(before[name], now.get(name, np.empty(0)), equal_nan=True)
        for name in before
        if name.startswith("in ")
    )
    seen = agreement.add(agreement.Agreement(), before, now)
    if not same_inputs or any(output.off for output in seen.outputs.values()):
        raise Refused(
            f"{title} makes another model, or other inputs, each time it is called: load the "
            "weights from a file, or set the seed."
        )
