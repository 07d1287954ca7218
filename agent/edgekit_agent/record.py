"""What the device must not forget: floors, barred digests, the generation it obeys.

Invariant: floors only grow, and are on the medium before anything relies on them; but those of
TUF's online roles end with the keys that signed them. The record is kept twice; a damaged copy is
replaced by the other. The daemon is its only writer. Source: TUF specification 1.0.34, 5.3.11.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Final

import msgspec

from edgekit_agent import storage
from edgekit_agent.clock import BUILT
from edgekit_agent.control import MetadataVersions
from edgekit_contract.messages import OutcomeKind, Phase

__all__ = [
    "Barred",
    "Record",
    "RecordFile",
    "allowed",
    "barred",
    "binding",
    "forgotten",
    "raised",
    "raised_counter",
    "rebuilt",
]

_MAX_RECORD_BYTES: Final = 1 << 20


class Barred(msgspec.Struct, frozen=True, kw_only=True):
    """A digest that is not tried again until the hub wants another."""

    version: str
    digest: str
    kind: OutcomeKind
    phase: Phase
    reason: str


class Record(msgspec.Struct, frozen=True, kw_only=True):
    generation: int = 0
    """Of the desired state that was obeyed last."""
    time_floor: datetime = BUILT
    """The latest time that a signature has proven."""
    versions: MetadataVersions = MetadataVersions()
    """The highest version of each TUF role that was verified."""
    counters: dict[str, int] = {}
    """By model: the least counter that may still be installed."""
    barred: dict[str, Barred] = {}
    """By model."""
    ports: dict[str, int] = {}
    """By model: the loopback port of its local API, so that it stays over a restart."""


def binding(floors: MetadataVersions, found: MetadataVersions) -> MetadataVersions:
    """`floors` as they bind under the root that was `found`: without those that a thief of the
    hub's keys may have driven up, once a newer root has replaced all keys of that role."""

    def replaced(old: tuple[str, ...], new: tuple[str, ...]) -> bool:
        return found.root > floors.root and bool(old and new) and not set(old) & set(new)

    return msgspec.structs.replace(
        floors,
        timestamp=0 if replaced(floors.timestamp_keys, found.timestamp_keys) else floors.timestamp,
        snapshot=0 if replaced(floors.snapshot_keys, found.snapshot_keys) else floors.snapshot,
    )


def raised(record: Record, versions: MetadataVersions) -> Record:
    """`record` with its TUF and time floors at least at what `versions` proved."""
    old = binding(record.versions, versions)
    return msgspec.structs.replace(
        record,
        versions=MetadataVersions(
            root=max(old.root, versions.root),
            timestamp=max(old.timestamp, versions.timestamp),
            snapshot=max(old.snapshot, versions.snapshot),
            targets=max(old.targets, versions.targets),
            timestamp_keys=versions.timestamp_keys or old.timestamp_keys,
            snapshot_keys=versions.snapshot_keys or old.snapshot_keys,
        ),
        time_floor=max(record.time_floor, versions.proven or record.time_floor),
    )


def raised_counter(record: Record, model: str, floor: int) -> Record:
    counters = dict(record.counters)
    counters[model] = max(counters.get(model, 0), floor)
    return msgspec.structs.replace(record, counters=counters)


def barred(record: Record, model: str, entry: Barred) -> Record:
    return msgspec.structs.replace(record, barred={**record.barred, model: entry})


def allowed(record: Record, model: str, digest: str) -> Record:
    """`record` with nothing barred but this digest: the hub wants another one now."""
    entry = record.barred.get(model)
    return record if entry is None or entry.digest == digest else forgotten(record, model)


def forgotten(record: Record, model: str) -> Record:
    """`record` with no digest of `model` barred."""
    rest = {name: entry for name, entry in record.barred.items() if name != model}
    return msgspec.structs.replace(record, barred=rest)


class RecordFile:
    """`record.json` and its copy, each a line with the CRC-32 of the JSON that follows."""

    def __init__(self, directory: Path) -> None:
        self._paths = (directory / "record.json", directory / "record.copy.json")
        self.damaged = False
        """Whether there were records and none of them was readable."""
        self.value = self._load()

    def save(self, record: Record) -> None:
        """Make `record` the device's. Errors: `OSError`: the old one holds for now, and either may
        after a restart, until this is done again."""
        if record == self.value:
            return
        body = msgspec.json.encode(record)
        data = b"%08x\n%s" % (zlib.crc32(body), body)
        for path in self._paths:
            storage.write(path, data)
        self.value = record

    def _load(self) -> Record:
        found = [storage.read(path, limit_bytes=_MAX_RECORD_BYTES) for path in self._paths]
        for data in found:
            if data is not None and (record := _parse(data)) is not None:
                return record
        self.damaged = any(data is not None for data in found)
        return Record()


def _parse(data: bytes) -> Record | None:
    head, _, body = data.partition(b"\n")
    try:
        if int(head, 16) != zlib.crc32(body):
            return None
        return msgspec.json.decode(body, type=Record)
    except (ValueError, msgspec.DecodeError):
        return None


def rebuilt(counters: Mapping[str, int]) -> Record:
    """The least that is known after both copies were lost: the floors of what is installed."""
    return Record(counters=dict(counters))
