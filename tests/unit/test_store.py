"""The store: bounds, order, two handles at once."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sql
from fleets import utc_now

from edgekit.hub import database, ledger, records
from edgekit.hub.database import StoreBusy, StoreFailed
from edgekit.hub.ledger import Wanted
from edgekit.hub.records import Batch, Heard, Kept
from edgekit.hub.rollout import Action, Assignment, Rollout, RolloutStatus, Standing
from edgekit.hub.store import Store, open_store
from edgekit_contract import messages
from edgekit_contract.errors import Misused
from edgekit_contract.messages import Health, Status


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = open_store(tmp_path / "hub.db")
    yield opened
    opened.close()


def kept(seq: int, at: float, device: str = "a") -> Kept:
    body = messages.encode(Health(stream="s", seq=seq, at=utc_now()))
    return Kept(device, "s", seq, at, body)


def rollout(name: str, started_at: float, **fields: object) -> Rollout:
    return Rollout(id=name, model="m", version="1", started_at=started_at, **fields)  # type: ignore[arg-type]


def test_a_message_is_kept_once_whatever_is_sent_again(store: Store) -> None:
    store.records.write(Batch(health=[kept(1, 1.0), kept(1, 1.0)]))
    store.records.write(Batch(health=[kept(1, 9.0), kept(2, 9.0)]))
    found = store.records.health("a", since=0, limit=10)
    assert [(at, message.seq) for at, message in found] == [(1.0, 1), (9.0, 2)]


def test_health_is_thinned_evenly_and_keeps_the_newest(store: Store) -> None:
    store.records.write(Batch(health=[kept(seq, float(seq)) for seq in range(1, 101)]))
    found = [message.seq for _, message in store.records.health("a", since=11, limit=9)]
    assert found == list(range(10, 101, 10))[1:]
    assert len(store.records.health("b", since=0, limit=9)) == 0


def test_the_oldest_go_when_there_are_too_many(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "HEALTH_KEPT", 50)
    for start in range(1, 301, 20):
        rows = [kept(seq, float(seq)) for seq in range(start, start + 20)]
        store.records.write(Batch(health=rows))
    found = [message.seq for _, message in store.records.health("a", since=0, limit=1000)]
    assert found == list(range(251, 301))


def test_words_of_a_device_take_the_place_of_those_before_and_no_others(store: Store) -> None:
    status = messages.encode(Status(online=True))
    store.records.write(Batch(devices={"a": Heard(at=1.0, profile="p", status=status)}))
    store.ledger.advance(
        wanted={"a": Wanted(generation=3, models={"m": "1"})}, assignments={}, done={}
    )
    store.records.write(Batch(devices={"a": Heard(at=2.0)}))
    (row,) = store.registry.devices()
    assert (row.heard_at, row.profile, row.status) == (2.0, "p", Status(online=True))
    assert (row.generation, row.desired) == (3, {"m": "1"})


def test_acknowledged_sequences_are_remembered_newest_last(store: Store) -> None:
    store.records.write(Batch(at=100.0, streams={("a", "new"): (7, 2)}))
    store.records.write(Batch(at=50.0, streams={("a", "old"): (1, 1), ("b", "x"): (1, 1)}))
    store.records.write(Batch(at=60.0, dropped=[("b", "x")]))
    assert list(store.records.streams(now=100.0)) == [("a", "old"), ("a", "new")]
    late = 51.0 + records.STREAMS_KEPT_S
    assert store.records.streams(now=late) == {("a", "new"): (7, 2)}


def test_orders_grow_with_what_operators_do_and_not_with_messages(store: Store) -> None:
    first = store.orders()
    store.records.write(Batch(devices={"a": Heard(at=1.0)}))
    assert store.orders() == first
    store.ledger.start(rollout("r", 1.0))
    store.ledger.order("r", Action.PAUSE, now=2.0)
    assert store.orders() == first + 2


def test_an_end_found_by_the_hub_does_not_undo_an_operators_pause(store: Store) -> None:
    store.ledger.start(rollout("r", 1.0))
    store.ledger.order("r", Action.PAUSE, now=2.0)
    store.ledger.advance(wanted={}, assignments={}, done={"r": 3.0})
    assert store.ledger.rollout("r").status is RolloutStatus.PAUSED


def test_a_new_rollout_ends_the_one_before(store: Store) -> None:
    store.ledger.start(rollout("one", 1.0))
    (gone,) = store.ledger.start(rollout("two", 2.0))
    assert (gone.id, gone.status) == ("one", RolloutStatus.ABORTED)
    assert [r.id for r in store.ledger.rollouts()] == ["two", "one"]


def test_a_rollout_is_named_by_id_model_or_release(store: Store) -> None:
    store.ledger.start(rollout("one", 1.0))
    store.ledger.start(rollout("two", 2.0))
    assert store.ledger.rollout("one").id == "one"
    assert store.ledger.rollout("m").id == "two"
    assert store.ledger.rollout("m@1").id == "two"
    with pytest.raises(Misused):
        store.ledger.rollout("m@2")


def test_old_rollouts_are_forgotten_with_their_parts(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "ROLLOUTS_KEPT", 3)
    for index in range(6):
        name = f"r{index}"
        store.ledger.start(rollout(name, float(index)))
        part = Assignment(standing=Standing.COMMITTED)
        store.ledger.advance(wanted={}, assignments={(name, "a"): part}, done={})
    assert [r.id for r in store.ledger.rollouts()] == ["r5", "r4", "r3"]
    assert store.ledger.assignments("r2") == {}
    assert store.ledger.assignments("r3") == {"a": Assignment(standing=Standing.COMMITTED)}


@pytest.mark.parametrize("device", [None, "a"])
@pytest.mark.parametrize("before", [None, 5.0])
def test_the_newest_events_are_found_by_an_index_also_in_an_older_database(
    tmp_path: Path, device: str | None, before: float | None
) -> None:
    path = tmp_path / "hub.db"
    open_store(path).close()
    with sqlite3.connect(path) as db:
        db.execute("drop index events_by_arrival")
    db.close()
    opened = open_store(path)
    asked: list[tuple[str, Any]] = []

    def remember(_: Any, __: Any, statement: str, values: Any, *___: Any) -> None:
        asked.append((statement, values))

    sql.event.listen(sql.Engine, "before_cursor_execute", remember)
    try:
        assert opened.records.events(device, limit=10, before=before) == []
    finally:
        sql.event.remove(sql.Engine, "before_cursor_execute", remember)
    opened.close()
    statement, values = asked[-1]
    with sqlite3.connect(path) as db:
        plan = [row[-1] for row in db.execute(f"explain query plan {statement}", values)]
    db.close()
    index = "events_by_arrival" if device is None else "events_by_time"
    assert len(plan) == 1, plan  # nothing is sorted
    assert f"USING INDEX {index}" in plan[0]


def test_two_handles_write_beside_each_other(store: Store, tmp_path: Path) -> None:
    def write(device: str) -> None:
        other = open_store(tmp_path / "hub.db")
        for seq in range(1, 30):
            other.records.write(Batch(health=[kept(seq, 1.0, device)]))
        other.close()

    threads = [threading.Thread(target=write, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    counts = [len(store.records.health(name, since=0, limit=99)) for name in "abcd"]
    assert counts == [29, 29, 29, 29]


def test_a_store_of_a_newer_edgekit_is_left_alone(tmp_path: Path) -> None:
    open_store(tmp_path / "hub.db").close()
    with sqlite3.connect(tmp_path / "hub.db") as db:
        db.execute("update counters set value = 99 where name = 'schema'")
    db.close()
    with pytest.raises(Misused, match="newer edgekit"):
        open_store(tmp_path / "hub.db")


def test_a_write_that_another_process_holds_is_told_as_busy_and_reading_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "BUSY_TIMEOUT_S", 0.05)
    opened = open_store(tmp_path / "hub.db")
    other = sqlite3.connect(tmp_path / "hub.db")
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreBusy, match="another process"):
        opened.records.write(Batch(health=[kept(1, 1.0)]))
    with pytest.raises(StoreBusy):
        open_store(tmp_path / "hub.db")
    assert opened.ledger.rollouts() == []
    other.close()
    opened.records.write(Batch(health=[kept(1, 1.0)]))
    opened.close()


def test_a_database_that_is_damaged_while_it_is_used_is_one_sentence(tmp_path: Path) -> None:
    opened = open_store(tmp_path / "hub.db")
    opened.records.write(Batch(health=[kept(seq, 1.0) for seq in range(500)]))
    opened.close()
    opened = open_store(tmp_path / "hub.db")
    size = (tmp_path / "hub.db").stat().st_size
    with (tmp_path / "hub.db").open("r+b") as file:
        file.seek(4096)  # past the first page, which holds the schema
        file.write(b"\xff" * (size - 4096))
    with pytest.raises(StoreFailed, match="malformed"):
        opened.records.health("a", since=0, limit=10)
    opened.close()


def test_what_is_no_database_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "hub.db").write_bytes(b"not a database, for sure" * 100)
    with pytest.raises(Misused, match="check the file"):
        open_store(tmp_path / "hub.db")
