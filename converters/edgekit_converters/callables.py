"""`package.module:callable`: the user's own code, found by name.

Invariant: whatever the user's module does when it is imported ends as one sentence.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from edgekit_contract.errors import Misused

__all__ = ["is_callable_name", "load_callable", "said_by"]

_NAME: Final = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*\Z")


def is_callable_name(name: str) -> bool:
    return _NAME.match(name) is not None


def load_callable(name: str, *, wanted: str) -> Callable[..., Any]:
    """Import it. `wanted` says what kind of callable to give. Errors: `Misused`."""
    module_name, _, attribute = name.partition(":")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # a console script does not look where the user is
    try:
        target: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            target = getattr(target, part)
    except (Exception, SystemExit) as error:  # the user's own code
        raise Misused(
            f"{name} cannot be imported ({said_by(error)}): check that module."
        ) from error
    if not callable(target):
        raise Misused(f"{name} is not callable: give {wanted}.")
    return target  # type: ignore[no-any-return]


def said_by(error: BaseException) -> str:
    """What an exception of the user's code says, in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split()).rstrip(":. ")
