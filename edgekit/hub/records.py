"""What devices said: their last words, and the health and events that they were acknowledged.

Invariant: health and events are bounded by count, and no (device, stream, sequence) is kept twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec
import sqlalchemy as sql
from sqlalchemy.dialects import sqlite

from edgekit.hub import schema
from edgekit.hub.database import Database
from edgekit_contract import messages
from edgekit_contract.messages import Event, Health

__all__ = ["Batch", "Heard", "Kept", "Records"]

HEALTH_KEPT: Final = 2_000_000
"""Rows, about 1 GB: 10 devices for 70 days, 1,000 devices for 16 hours."""
EVENTS_KEPT: Final = 500_000
STREAMS_KEPT_S: Final = 90 * 86_400.0


class Heard(msgspec.Struct, kw_only=True):
    """The newest word of a device within a batch."""

    at: float
    profile: str = ""
    status: bytes | None = None
    reported: bytes | None = None


class Kept(msgspec.Struct, frozen=True):
    """A health or event message."""

    device: str
    stream: str
    seq: int
    at: float
    """Arrival at the hub."""
    body: bytes


class Batch(msgspec.Struct, kw_only=True):
    """What came since the last write."""

    at: float = 0.0
    devices: dict[str, Heard] = {}
    health: list[Kept] = []
    events: list[Kept] = []
    streams: dict[tuple[str, str], tuple[int, int]] = {}
    """(device, stream) to the health and event sequences that may be acknowledged then."""

    dropped: list[tuple[str, str]] = []
    """(device, stream) that are to be forgotten."""

    def __bool__(self) -> bool:
        return bool(self.devices or self.health or self.events or self.streams or self.dropped)


class Records:
    """Last words, health and events in the database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def write(self, batch: Batch) -> None:
        """Keep a batch, and drop the oldest health and events over their bounds."""
        with self._database.writing() as db:
            _write_devices(db, batch.devices)
            for table, rows, most in (
                (schema.health, batch.health, HEALTH_KEPT),
                (schema.events, batch.events, EVENTS_KEPT),
            ):
                if rows:
                    values = [msgspec.structs.asdict(row) for row in rows]
                    db.execute(sqlite.insert(table).on_conflict_do_nothing(), values)
                    newest = sql.select(sql.func.max(table.c.id)).scalar_subquery()
                    db.execute(sql.delete(table).where(table.c.id <= newest - most))
            _write_streams(db, batch.streams, batch.at)
            for device, stream in batch.dropped:
                table = schema.streams
                key = (table.c.device == device) & (table.c.stream == stream)
                db.execute(sql.delete(table).where(key))

    def streams(self, *, now: float) -> dict[tuple[str, str], tuple[int, int]]:
        """(device, stream) to the acknowledged health and event sequences; the old are dropped."""
        table = schema.streams
        with self._database.writing() as db:
            db.execute(sql.delete(table).where(table.c.seen_at < now - STREAMS_KEPT_S))
            rows = db.execute(sql.select(table).order_by(table.c.seen_at)).all()
        return {(row.device, row.stream): (row.health, row.event) for row in rows}

    def health(self, device: str, *, since: float, limit: int) -> list[tuple[float, Health]]:
        """Health of a device that came from `since` on, every n-th so that about `limit` remain."""
        table = schema.health
        chosen = (table.c.device == device) & (table.c.at >= since)
        with self._database.reading() as db:
            count = db.execute(
                sql.select(sql.func.count()).select_from(table).where(chosen)
            ).scalar_one()
            stride = max(1, -(-count // max(limit, 1)))
            rank = sql.func.row_number().over(order_by=(table.c.at.desc(), table.c.id.desc()))
            ranked = sql.select(table.c.at, table.c.body, rank.label("rank")).where(chosen)
            inner = ranked.subquery()
            query = sql.select(inner.c.at, inner.c.body).where((inner.c.rank - 1) % stride == 0)
            rows = db.execute(query.order_by(inner.c.at)).all()
        return [(row.at, messages.decode(row.body, Health)) for row in rows]

    def events(
        self, device: str | None, *, limit: int, before: float | None
    ) -> list[tuple[str, float, Event]]:
        """Device, arrival and event, newest first."""
        table = schema.events
        query = sql.select(table.c.device, table.c.at, table.c.body)
        if device is not None:
            query = query.where(table.c.device == device)
        if before is not None:
            query = query.where(table.c.at < before)
        query = query.order_by(table.c.at.desc(), table.c.id.desc()).limit(limit)
        with self._database.reading() as db:
            rows = db.execute(query).all()
        return [(row.device, row.at, messages.decode(row.body, Event)) for row in rows]


def _write_devices(db: sql.Connection, heard: Mapping[str, Heard]) -> None:
    if not heard:
        return
    table = schema.devices
    statement = sqlite.insert(table)
    new = statement.excluded
    statement = statement.on_conflict_do_update(
        index_elements=["id"],
        set_={
            "heard_at": new.heard_at,
            "profile": sql.case((new.profile != "", new.profile), else_=table.c.profile),
            "status": sql.func.coalesce(new.status, table.c.status),
            "reported": sql.func.coalesce(new.reported, table.c.reported),
        },
    )
    rows = [
        {
            "id": device,
            "heard_at": word.at,
            "profile": word.profile,
            "status": word.status,
            "reported": word.reported,
            "generation": 0,
            "desired": b"{}",
        }
        for device, word in heard.items()
    ]
    db.execute(statement, rows)


def _write_streams(
    db: sql.Connection, streams: Mapping[tuple[str, str], tuple[int, int]], now: float
) -> None:
    if not streams:
        return
    statement = sqlite.insert(schema.streams)
    new = statement.excluded
    statement = statement.on_conflict_do_update(
        index_elements=["device", "stream"],
        set_={"health": new.health, "event": new.event, "seen_at": new.seen_at},
    )
    rows = [
        {"device": key[0], "stream": key[1], "health": upto[0], "event": upto[1], "seen_at": now}
        for key, upto in streams.items()
    ]
    db.execute(statement, rows)
