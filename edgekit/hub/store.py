"""The hub's store: one database, and the four things that are kept in it."""

from __future__ import annotations

from pathlib import Path

from edgekit.hub.benches import Benches
from edgekit.hub.database import Database, open_database
from edgekit.hub.ledger import Ledger
from edgekit.hub.records import Records
from edgekit.hub.registry import Registry

__all__ = ["Store", "open_store"]


class Store:
    """All that the hub must not forget; also open while a hub runs on it."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.registry = Registry(database)
        self.records = Records(database)
        self.ledger = Ledger(database)
        self.benches = Benches(database)

    def orders(self) -> int:
        """A number that grows when an operator or an enrolment changes something."""
        return self._database.orders()

    def close(self) -> None:
        self._database.close()


def open_store(path: Path) -> Store:
    """Open the store at `path`, made where absent. Errors: as `open_database`."""
    return Store(open_database(path))
