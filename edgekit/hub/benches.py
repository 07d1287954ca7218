"""Measurements in the database: what was asked of devices, and what they answered.

Invariant: an answer is kept only of the device that was asked, and once.
"""

from __future__ import annotations

from typing import Final

import sqlalchemy as sql

from edgekit.hub import schema
from edgekit.hub.database import Database, bump_orders
from edgekit_contract import messages
from edgekit_contract.messages import Bench, Benched

__all__ = ["Benches"]

KEPT: Final = 200
"""The newest so many; those before are forgotten."""


class Benches:
    def __init__(self, database: Database) -> None:
        self._database = database

    def order(self, device: str, bench: Bench, *, now: float) -> None:
        """Have a running hub ask a device. Instants are Unix seconds of the hub's clock."""
        table = schema.benches
        with self._database.writing() as db:
            db.execute(
                sql.insert(table).values(
                    id=bench.id,
                    device=device,
                    ordered_at=now,
                    until=bench.until.timestamp(),
                    body=messages.encode(bench),
                )
            )
            newest = sql.select(table.c.id).order_by(table.c.ordered_at.desc()).limit(KEPT)
            db.execute(sql.delete(table).where(table.c.id.not_in(newest)))
            bump_orders(db)

    def open(self, *, now: float) -> dict[str, tuple[str, bytes]]:
        """What may still be answered: id to device and the message to send."""
        table = schema.benches
        query = sql.select(table).where(table.c.answer.is_(None) & (table.c.until > now))
        with self._database.reading() as db:
            return {row.id: (row.device, row.body) for row in db.execute(query)}

    def answer(self, device: str, answer: Benched) -> None:
        """Keep what a device answered to what it was asked."""
        table = schema.benches
        asked = (table.c.id == answer.id) & (table.c.device == device) & table.c.answer.is_(None)
        with self._database.writing() as db:
            db.execute(sql.update(table).where(asked).values(answer=messages.encode(answer)))

    def answered(self, id_: str) -> Benched | None:
        """The answer to an order, once it is there."""
        table = schema.benches
        with self._database.reading() as db:
            body = db.execute(sql.select(table.c.answer).where(table.c.id == id_)).scalar()
        return None if body is None else messages.decode(body, Benched)
