"""The cache of what emulation runs: directories that are made once and then only read.

Invariant: a layer has its name or is not there: it is made beside it and renamed. Its name holds a
digest of all that it was asked to contain, so another content is another layer.
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from edgekit_contract.errors import Misused
from edgekit_converters import environments

__all__ = ["directory", "layer", "make"]

_FORMAT: Final = "1"
"""Goes into every digest: another way of making layers is another number."""
_MAKING: Final = ".making-"


def directory() -> Path:
    """Where layers are: beside the environments of tools."""
    return environments.cache().absolute().with_name("emulation")


def layer(name: str, contents: Iterable[str | bytes]) -> Path:
    """The path of the layer of these contents, made or not."""
    digest = hashlib.sha256()
    for part in (_FORMAT, *contents):
        data = part.encode() if isinstance(part, str) else part
        digest.update(b"%d:" % len(data) + data)
    return directory() / f"{name}-{digest.hexdigest()[:16]}"


def make(path: Path, fill: Callable[[Path], None]) -> bool:
    """Make a layer by filling an empty directory; False where it was there.

    Of several that make the same, one does and the others wait for it.
    Errors: `Misused` where the cache cannot be written to; those of `fill`, and then nothing stays.
    """
    if path.is_dir():
        return False
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.with_name(f".{path.name}.lock").open("w")
    except OSError as error:
        raise Misused(
            f"cannot write to the cache {path.parent} ({error.strerror}): set EDGEKIT_CACHE to "
            "another directory."
        ) from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # it goes with whoever holds it
        if path.is_dir():
            return False
        draft = Path(tempfile.mkdtemp(prefix=_MAKING, dir=path.parent))
        try:
            filling = draft / "layer"
            filling.mkdir()
            fill(filling)
            filling.rename(path)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return True
