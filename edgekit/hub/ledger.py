"""The ledger: rollouts, who stands where in them, and the desired states that follow.

Invariant: a desired state's generation only grows, and is committed before anybody publishes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec
import sqlalchemy as sql
from sqlalchemy.dialects import sqlite

from edgekit.hub import rollout as rules
from edgekit.hub import schema
from edgekit.hub.database import Database, bump_orders
from edgekit.hub.rollout import Action, Assignment, Rollout, RolloutStatus, Standing
from edgekit_contract.errors import Misused

__all__ = ["Ledger", "Wanted"]


ROLLOUTS_KEPT: Final = 50
"""Finished rollouts beyond the newest so many are forgotten, with who stood where in them."""


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """A device's desired state."""

    generation: int = 0
    models: dict[str, str] = {}
    """Model to version."""


class Ledger:
    """Rollouts and desired states in the database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def rollouts(self) -> list[Rollout]:
        """All, newest first."""
        with self._database.reading() as db:
            return _rollouts(db)

    def rollout(self, name: str) -> Rollout:
        """The rollout of this id, or the newest of a MODEL or MODEL@VERSION. Errors: `Misused`."""
        found = self.rollouts()
        for rollout in found:
            if name in (rollout.id, rollout.model, rollout.title):
                return rollout
        raise Misused(
            f"there is no rollout {name[:80]!r}: name its id, MODEL or MODEL@VERSION "
            "(edgekit rollout status)."
        )

    def assignments(self, rollout: str) -> dict[str, Assignment]:
        """Device to its part in a rollout."""
        table = schema.assignments
        query = sql.select(table).where(table.c.rollout == rollout).order_by(table.c.device)
        with self._database.reading() as db:
            return {row.device: _assignment(row) for row in db.execute(query)}

    def start(self, rollout: Rollout) -> list[Rollout]:
        """Begin a rollout; returns the unfinished ones of its model that it supersedes."""
        with self._database.writing() as db:
            superseded = rules.superseded(_rollouts(db), rollout)
            for old in superseded:
                _put(db, old)
            _put(db, rollout)
            _forget_oldest(db)
            bump_orders(db)
        return superseded

    def order(self, rollout_id: str, action: Action, *, now: float) -> Rollout:
        """Pause, resume or abort; returns the rollout after it. Errors: `Misused`, `Refused`."""
        with self._database.writing() as db:
            for rollout in _rollouts(db):
                if rollout.id == rollout_id:
                    after = rules.act(rollout, action, now=now)
                    _put(db, after)
                    bump_orders(db)
                    return after
        raise Misused(f"there is no rollout {rollout_id[:80]!r} (edgekit rollout status).")

    def advance(
        self,
        *,
        wanted: Mapping[str, Wanted],
        assignments: Mapping[tuple[str, str], Assignment],
        done: Mapping[str, float],
    ) -> None:
        """Write what planning found: desired states, (rollout, device) parts, ends of rollouts.

        A rollout that was paused or aborted meanwhile stays so.
        """
        with self._database.writing() as db:
            _put_wanted(db, wanted)
            _put_assignments(db, assignments)
            table = schema.rollouts
            for rollout, ended_at in done.items():
                running = table.c.status == RolloutStatus.RUNNING.value
                statement = sql.update(table).where((table.c.id == rollout) & running)
                db.execute(statement.values(status=RolloutStatus.DONE.value, ended_at=ended_at))


def _forget_oldest(db: sql.Connection) -> None:
    for rollout in _rollouts(db)[ROLLOUTS_KEPT:]:
        if rollout.status in (RolloutStatus.DONE, RolloutStatus.ABORTED):
            parts = schema.assignments
            db.execute(sql.delete(parts).where(parts.c.rollout == rollout.id))
            db.execute(sql.delete(schema.rollouts).where(schema.rollouts.c.id == rollout.id))


def _rollouts(db: sql.Connection) -> list[Rollout]:
    table = schema.rollouts
    rows = db.execute(sql.select(table).order_by(table.c.started_at.desc(), table.c.id.desc()))
    return [
        msgspec.convert(
            {str(name): value for name, value in row.items()}
            | {"waves": msgspec.json.decode(row["waves"])},
            Rollout,
        )
        for row in rows.mappings()
    ]


def _put(db: sql.Connection, rollout: Rollout) -> None:
    values: dict[str, Any] = msgspec.to_builtins(rollout)
    values["waves"] = msgspec.json.encode(rollout.waves)
    statement = sqlite.insert(schema.rollouts).values(**values)
    db.execute(statement.on_conflict_do_update(index_elements=["id"], set_=values))


def _put_wanted(db: sql.Connection, wanted: Mapping[str, Wanted]) -> None:
    if not wanted:
        return
    statement = sqlite.insert(schema.devices)
    new = statement.excluded
    statement = statement.on_conflict_do_update(
        index_elements=["id"], set_={"generation": new.generation, "desired": new.desired}
    )
    rows = [
        {
            "id": device,
            "profile": "",
            "generation": want.generation,
            "desired": msgspec.json.encode(want.models),
        }
        for device, want in wanted.items()
    ]
    db.execute(statement, rows)


def _put_assignments(db: sql.Connection, news: Mapping[tuple[str, str], Assignment]) -> None:
    if not news:
        return
    statement = sqlite.insert(schema.assignments)
    columns = ("wave", "standing", "reason", "previous")
    statement = statement.on_conflict_do_update(
        index_elements=["rollout", "device"],
        set_={name: statement.excluded[name] for name in columns},
    )
    rows = [
        {"rollout": key[0], "device": key[1], **msgspec.to_builtins(assignment)}
        for key, assignment in news.items()
    ]
    db.execute(statement, rows)


def _assignment(row: Any) -> Assignment:
    return Assignment(
        wave=row.wave,
        standing=Standing(row.standing),
        reason=row.reason,
        previous=row.previous,
    )
