"""DATA, streamed: `.npz`, a directory of `.npz` shards, of images or of WAV files, or a callable.

Invariant: iterating holds a few rows, whatever the size of the data; each iteration starts anew and
gives the same rows. An `.npz` is read member by member, also where it is compressed.
"""

from __future__ import annotations

import hashlib
import lzma
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

import msgspec
import numpy as np

from edgekit.build.media import AUDIO_SUFFIXES, IMAGE_SUFFIXES, media_rows
from edgekit.build.samples import DataRejected, Row, Sample, fit
from edgekit_contract.errors import Misused
from edgekit_contract.manifest import Preprocess, TensorSpec
from edgekit_converters.callables import is_callable_name, load_callable

__all__ = ["Data", "open_data"]

_READ_BYTES: Final = 1 << 18
_DAMAGED: Final = (
    OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, struct.error, lzma.LZMAError,
    RuntimeError, NotImplementedError, OverflowError,
)  # fmt: skip
"""What reading an archive raises; RuntimeError where it is encrypted, NotImplementedError where its
compression is unknown."""


@dataclass(frozen=True, kw_only=True)
class Data:
    """DATA that can be read again and again."""

    title: str
    """As the user named it, for messages."""
    rows: Callable[[], Iterator[Row]]
    count: int | None
    """Rows, where that is known without reading."""
    files: tuple[tuple[str, Path], ...] = ()
    """All that the rows are read from, and the name of each that matters; none: a callable."""
    read_as: str = ""
    """How files become rows, where that is not a matter of the files alone."""
    may_miss: frozenset[str] = frozenset()
    """Inputs of the model that they are for to which NaN is a missing value."""

    def samples(
        self, inputs: Sequence[TensorSpec], *, limit: int | None = None
    ) -> Iterator[Sample]:
        """At most `limit` samples for a model with these inputs. Errors: `DataRejected`."""
        found = fit(self.rows(), inputs, title=self.title, may_miss=self.may_miss)
        for index, sample in enumerate(found):
            if limit is not None and index >= limit:
                return
            yield sample

    def sample_count(self, inputs: Sequence[TensorSpec]) -> int | None:
        """Samples for such a model, where that is known without reading them all.

        Errors: `DataRejected`.
        """
        return None if self.count is None else self.count // self.first(inputs).rows

    def sha256(self) -> str:
        """Digest of all that the rows follow from: the files and how they are read; of a callable,
        the rows themselves.

        Errors: `DataRejected`.
        """
        found = hashlib.sha256(self.read_as.encode())
        try:
            for name, path in self.files:
                found.update(f"{name} {path.stat().st_size}\n".encode())
                with path.open("rb") as stream:
                    while piece := stream.read(_READ_BYTES):
                        found.update(piece)
        except OSError as error:
            raise DataRejected(f"{self.title} cannot be read: {error.strerror}.") from error
        for row in () if self.files else self.rows():
            for name, array in sorted(row.items()):
                found.update(f"{name}:{array.dtype.str}:{array.shape};".encode())
                found.update(np.ascontiguousarray(array).tobytes())
        return found.hexdigest()

    def first(self, inputs: Sequence[TensorSpec]) -> Sample:
        """The first sample. Errors: `DataRejected`, also where there is none."""
        for sample in self.samples(inputs, limit=1):
            return sample
        raise DataRejected(f"{self.title} holds no sample: give at least one.")


def open_data(name: str, *, preprocess: Sequence[Preprocess] = ()) -> Data:
    """Find what `name` is and look at its outside. Errors: `Misused`, `DataRejected`."""
    path = Path(name)
    if path.is_dir():
        return _open_directory(path, preprocess)
    if path.is_file():
        return _open_npz(path, title=name)
    if is_callable_name(name):
        return _open_callable(name)
    raise Misused(f"{name} is no data: give an .npz file, a directory, or package.module:callable.")


def _open_directory(path: Path, preprocess: Sequence[Preprocess]) -> Data:
    shards = sorted(path.glob("*.npz"))
    if shards:
        parts = [_open_npz(shard, title=str(shard)) for shard in shards]

        def rows() -> Iterator[Row]:
            for part in parts:
                yield from part.rows()

        return Data(
            title=str(path),
            rows=rows,
            count=sum(part.count or 0 for part in parts),
            files=_named(path, shards),
        )
    files = sorted(
        file for file in path.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES | AUDIO_SUFFIXES
    )
    if not files:
        raise DataRejected(f"{path} holds no .npz, image or WAV file: check the path.")
    return Data(
        title=str(path),
        rows=media_rows(path, files, preprocess),
        count=None,
        files=_named(path, files),
        read_as=msgspec.json.encode(preprocess).decode(),
    )


def _named(directory: Path, files: Sequence[Path]) -> tuple[tuple[str, Path], ...]:
    """Files below a directory: their order and their folders mean something."""
    return tuple((file.relative_to(directory).as_posix(), file) for file in files)


def _open_callable(name: str) -> Data:
    target = load_callable(name, wanted="a function that yields dicts of arrays")

    def rows() -> Iterator[Row]:
        index = 0
        try:
            for row in target():
                if not isinstance(row, Mapping):
                    raise DataRejected(
                        f"{name} gave a {type(row).__name__} at sample {index}: "
                        "yield dicts of arrays."
                    )
                yield {str(key): np.asarray(value) for key, value in row.items()}
                index += 1
        except DataRejected:
            raise
        except (Exception, SystemExit) as error:  # the user's own code
            raise DataRejected(
                f"{name} raised {type(error).__name__} at sample {index}: {error}."
            ) from error

    return Data(title=name, rows=rows, count=None)


@dataclass(frozen=True, kw_only=True)
class _Member:
    name: str
    file: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


def _open_npz(path: Path, *, title: str) -> Data:
    try:
        with zipfile.ZipFile(path) as archive:
            members = [_member(archive, info) for info in archive.infolist()]
    except _DAMAGED as error:
        raise DataRejected(f"{title} is not an .npz file that can be read: {error}.") from error
    if not members:
        raise DataRejected(f"{title} holds no array: give one for each input of the model.")
    counts = {member.shape[0] for member in members if member.shape}
    if len(counts) != 1 or not all(member.shape for member in members):
        told = ", ".join(f"{m.name} {list(m.shape)}" for m in members)
        raise DataRejected(
            f"{title} holds arrays of different lengths ({told}): the first axis is the samples."
        )
    count = counts.pop()
    if not count:
        raise DataRejected(f"{title} holds no sample: give at least one.")

    def rows() -> Iterator[Row]:
        try:
            with zipfile.ZipFile(path) as archive:
                streams = [_elements(archive, member) for member in members]
                for values in zip(*streams, strict=True):
                    yield {m.name: value for m, value in zip(members, values, strict=True)}
        except _DAMAGED as error:
            raise DataRejected(f"{title} is damaged: {error}.") from error

    return Data(title=title, rows=rows, count=count, files=(("", path),))


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> _Member:
    with archive.open(info) as stream:
        shape, fortran, dtype = _read_header(stream)
    name = info.filename.removesuffix(".npy")
    if dtype.hasobject:
        raise ValueError(f"array {name!r} holds Python objects; save numbers")
    if fortran and len(shape) > 1:
        raise ValueError(
            f"array {name!r} is in Fortran order and cannot be streamed; "
            "save numpy.ascontiguousarray of it"
        )
    return _Member(name=name, file=info.filename, dtype=dtype, shape=shape)


def _read_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(stream)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(stream)
    raise ValueError(f"an array of format {version}; save it again with numpy.savez")


def _elements(archive: zipfile.ZipFile, member: _Member) -> Iterator[np.ndarray]:
    """The elements along the first axis, read a few hundred KiB at a time."""
    shape = member.shape[1:]
    row_bytes = member.dtype.itemsize * int(np.prod(shape, dtype=np.int64))
    per_read = max(1, _READ_BYTES // max(1, row_bytes))
    with archive.open(member.file) as stream:
        _read_header(stream)
        left = member.shape[0]
        while left:
            rows = min(per_read, left)
            block = _read_exactly(stream, rows * row_bytes, member.name)
            yield from np.frombuffer(block, member.dtype).reshape(rows, *shape)
            left -= rows


def _read_exactly(stream: IO[bytes], size: int, name: str) -> bytes:
    block = stream.read(size)
    while len(block) < size:
        piece = stream.read(size - len(block))
        if not piece:
            raise ValueError(f"array {name!r} is cut short")
        block += piece
    return block
