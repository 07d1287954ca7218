"""The depot: ranges of TUF metadata, envelopes and blobs, as devices ask for them.

Invariant: a resource's name selects a file by whole-name patterns of three folders; nothing else
of the fleet directory can be named. The depot knows no device and trusts no request.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

from edgekit_contract import limits, names
from edgekit_contract.errors import InvalidName
from edgekit_contract.messages import Chunk, ChunkStatus, Fetch

__all__ = ["BUSY", "NOT_FOUND", "Depot"]

NOT_FOUND: Final = Chunk(status=ChunkStatus.NOT_FOUND)
BUSY: Final = Chunk(status=ChunkStatus.BUSY)

_METADATA: Final = re.compile(
    r"metadata/((?:[1-9][0-9]{0,9}\.(?:root|targets|snapshot)|timestamp)\.json)"
)
_TARGET: Final = re.compile(r"targets/([^/]+)/([^/]+)/([0-9a-f]{64})\.([^/]+)\.dsse\.json")
_DIGEST: Final = re.compile(names.DIGEST_PATTERN)
_BLOB: Final = re.compile(r"blobs/([0-9a-f]{64})")


class Depot:
    """Serves the published files of one fleet directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def read(self, fetch: Fetch) -> Chunk:
        """The range asked for, at most `limits.MAX_CHUNK_BYTES` of it.

        An offset at or past the end gives no data and the total. Errors: `OSError` where the
        disk fails.
        """
        path = self._path(fetch.resource)
        if path is None:
            return NOT_FOUND
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            return NOT_FOUND
        try:
            total = os.fstat(descriptor).st_size
            offset = min(fetch.offset, total)
            length = min(fetch.length, limits.MAX_CHUNK_BYTES)
            data = os.pread(descriptor, length, offset)
        finally:
            os.close(descriptor)
        return Chunk(status=ChunkStatus.OK, offset=offset, total=total, data=data)

    def _path(self, resource: str) -> Path | None:
        if match := _BLOB.fullmatch(resource):
            return self._directory / "blobs" / match[1]
        if match := _METADATA.fullmatch(resource):
            return self._directory / "tuf" / "metadata" / match[1]
        if match := _TARGET.fullmatch(resource):
            name, version, digest, profile = match.groups()
            try:
                if name == names.BENCH and _DIGEST.fullmatch(version):
                    folder = Path(name, version)
                else:
                    folder = Path(names.model_name(name), names.version(version))
                file = f"{digest}.{names.profile_name(profile)}.dsse.json"
            except InvalidName:
                return None
            return self._directory / "tuf" / "targets" / folder / file
        return None
