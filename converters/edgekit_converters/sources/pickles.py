"""Pickles: recognized by content, and never unpickled, since to unpickle is to run what they say.

Invariant: a file of these kinds gets no further than its first bytes.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Final

from edgekit_contract.errors import Refused
from edgekit_converters.sources import peek

__all__ = ["Pickled", "refuse_pickle"]

_SUFFIXES: Final = frozenset(".pkl .pickle .joblib .dill".split())
_TORCH: Final = "torch.export.save(torch.export.export(model, inputs), 'model.pt2')"
_REMEDIES: Final[tuple[tuple[bytes, str, str], ...]] = (
    (b"xgboost", "XGBoost", "booster.save_model('model.ubj')"),
    (b"lightgbm", "LightGBM", "booster.save_model('model.txt')"),
    (b"sklearn", "scikit-learn", "skops.io.dump(model, 'model.skops')"),
    (b"torch", "PyTorch", _TORCH),
)
"""What a pickle's first bytes name, the framework, and how it is saved otherwise."""
_COMPRESSED: Final[dict[bytes, Callable[[bytes], bytes]]] = {
    b"\x1f\x8b": lambda data: zlib.decompressobj(31).decompress(data, peek.HEAD_BYTES),
    b"x\x01": lambda data: zlib.decompressobj().decompress(data, peek.HEAD_BYTES),
    b"x\x5e": lambda data: zlib.decompressobj().decompress(data, peek.HEAD_BYTES),
    b"x\x9c": lambda data: zlib.decompressobj().decompress(data, peek.HEAD_BYTES),
    b"x\xda": lambda data: zlib.decompressobj().decompress(data, peek.HEAD_BYTES),
    b"BZh": lambda data: bz2.BZ2Decompressor().decompress(data, peek.HEAD_BYTES),
    b"\xfd7zXZ": lambda data: lzma.LZMADecompressor().decompress(data, peek.HEAD_BYTES),
}
"""By the first bytes, as joblib compresses."""


class Pickled(Refused):
    """A pickle, or an archive of one."""

    def __init__(self, name: str, what: str, remedy: str) -> None:
        super().__init__(
            f"{name} is {what}, and edgekit opens none, since that runs code from the file: "
            f"save it by {remedy}, or name a package.module:callable that makes the model."
        )
        self.remedy = remedy


def refuse_pickle(path: Path) -> None:
    """Errors: `Pickled`, `Refused` for a damaged ZIP, `OSError`."""
    names = peek.zip_names(path)
    if any(name.rpartition("/")[2] == "data.pkl" for name in names):
        if any("/code/" in name for name in names):
            raise Pickled(path.name, "a TorchScript archive with pickles in it", _TORCH)
        raise Pickled(path.name, "a PyTorch pickle (torch.save)", _TORCH)
    start = peek.head(path)
    for magic, unpacked in _COMPRESSED.items():
        if start.startswith(magic):
            try:
                start = unpacked(start)
            except (zlib.error, gzip.BadGzipFile, OSError, lzma.LZMAError, EOFError):
                return
            break
    is_pickle = len(start) > 2 and start[0] == 0x80 and 2 <= start[1] <= 5
    if not is_pickle and path.suffix.lower() not in _SUFFIXES:
        return
    for mark, framework, remedy in _REMEDIES:
        if mark in start:
            raise Pickled(path.name, f"a pickle of {framework}", remedy)
    raise Pickled(
        path.name,
        "a pickle",
        "its framework's own way (torch.export.save, skops.io.dump, booster.save_model)",
    )
