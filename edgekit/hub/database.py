"""The hub's database: SQLite in WAL mode, shared by the hub and the operators' commands.

Invariants: a commit is on the disk when it returns (synchronous=FULL), since acknowledgements rest
on it; writers wait for each other and readers for nobody. `orders` grows in the transaction that
changes what people decide, so that a running hub sees it by one cheap read. What the disk or
another process denies is a `StoreFailed` or a `StoreBusy`. Nothing here awaits: an event loop calls
it in a thread.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sql
from sqlalchemy.dialects import sqlite

from edgekit.hub import schema
from edgekit_contract.errors import Misused, Refused

__all__ = ["Database", "StoreBusy", "StoreFailed", "bump_orders", "open_database"]

SCHEMA: Final = 1
BUSY_TIMEOUT_S: Final = 15.0


class StoreFailed(Refused):
    """The disk under the database is full or broken, or the file is damaged."""

    def __init__(self, path: Path, detail: str) -> None:
        super().__init__(
            f"cannot use {path} ({detail}): free or repair the disk and start again; devices keep "
            "what was not stored."
        )
        self.detail = detail


class StoreBusy(Refused):
    """Another process holds a write for too long."""

    def __init__(self, path: Path) -> None:
        super().__init__(
            f"another process has been writing to {path} for over {BUSY_TIMEOUT_S:.0f} s: let it "
            "end, or end it."
        )


class Database:
    """Transactions on one database file. Errors of all: `StoreBusy`, `StoreFailed`."""

    def __init__(self, engine: sql.Engine, path: Path) -> None:
        self._engine, self._path = engine, path
        self._writer = engine.execution_options(writes=True)

    @contextlib.contextmanager
    def reading(self) -> Iterator[sql.Connection]:
        """A connection that sees one moment and writes nothing."""
        with self._refusing(), self._engine.connect() as db:
            yield db

    @contextlib.contextmanager
    def writing(self) -> Iterator[sql.Connection]:
        """A transaction that nobody else writes beside."""
        with self._refusing(), self._writer.begin() as db:
            yield db

    def orders(self) -> int:
        """A number that grows when an operator or an enrolment changes something."""
        with self.reading() as db:
            return _counter(db, "orders")

    def close(self) -> None:
        self._engine.dispose()

    @contextlib.contextmanager
    def _refusing(self) -> Iterator[None]:
        try:
            yield
        except sql.exc.DatabaseError as error:
            if type(error) not in _OF_THE_DISK:
                raise
            if str(error.orig) == _BUSY:
                raise StoreBusy(self._path) from error
            raise StoreFailed(self._path, str(error.orig)) from error


_OF_THE_DISK: Final = (sql.exc.DatabaseError, sql.exc.OperationalError)
"""What sqlite3 raises for SQLITE_BUSY, FULL, IOERR, READONLY; and for CORRUPT and NOTADB. Its other
kinds of DatabaseError are our own bugs."""
_BUSY: Final = "database is locked"
"""SQLITE_BUSY: sqlite3 has its number from Python 3.11 on only."""


def open_database(path: Path) -> Database:
    """Open the database at `path`, made where absent. Errors: `Misused`, `StoreBusy`."""
    engine = sql.create_engine(f"sqlite:///{path}", connect_args={"timeout": BUSY_TIMEOUT_S})

    @sql.event.listens_for(engine, "connect")
    def _prepare(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # transactions begin where we say, see `_begin`
        for pragma in ("journal_mode=WAL", "synchronous=FULL"):
            connection.execute(f"PRAGMA {pragma}")

    @sql.event.listens_for(engine, "begin")
    def _begin(connection: sql.Connection) -> None:
        writes = connection.get_execution_options().get("writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    database = Database(engine, path)
    try:
        _make_tables(database)
    except Refused as error:
        engine.dispose()
        if not isinstance(error, StoreFailed):
            raise
        raise Misused(f"cannot use the database {path}: {error.detail}; check the file.") from error
    return database


def bump_orders(db: sql.Connection) -> None:
    """Tell a running hub, in this transaction, that orders changed."""
    table = schema.counters
    db.execute(sql.update(table).where(table.c.name == "orders").values(value=table.c.value + 1))


def _make_tables(database: Database) -> None:
    with database.writing() as db:
        schema.METADATA.create_all(db)
        for table in schema.METADATA.tables.values():  # indexes that its maker did not know
            for index in table.indexes:
                index.create(db, checkfirst=True)
        for name, value in (("orders", 0), ("schema", SCHEMA)):
            statement = sqlite.insert(schema.counters).values(name=name, value=value)
            db.execute(statement.on_conflict_do_nothing())
        found = _counter(db, "schema")
    if found > SCHEMA:
        raise Misused(f"the database is of form {found}, by a newer edgekit: update this one.")


def _counter(db: sql.Connection, name: str) -> int:
    table = schema.counters
    value = db.execute(sql.select(table.c.value).where(table.c.name == name)).scalar_one()
    return int(value)
