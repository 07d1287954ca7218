"""The power is cut before every single operation on a medium that keeps what was synced."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path

import msgspec
import pytest
from power import every_cut
from rigs import NEW, OLD, VERSIONS, Rig, installed

from edgekit_agent import journal as journals
from edgekit_agent import storage
from edgekit_agent.outbox import Outbox
from edgekit_agent.record import Record, RecordFile
from edgekit_agent.slots import Active, Slot, Slots
from edgekit_contract.messages import Event, EventKind, Health, OutcomeKind, Phase
from edgekit_contract.topics import Kind


def test_a_file_holds_the_old_or_the_new_never_a_part(
    quick_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def prepare(root: Path) -> None:
        storage.write(root / "file", b"old" * 1000)

    returned = []

    def work(root: Path) -> None:
        storage.write(root / "file", b"new" * 2000)
        returned.append(True)

    seen = set()
    for _, root in every_cut(prepare, work, quick_path, monkeypatch):
        data = (root / "file").read_bytes()
        assert data in (b"old" * 1000, b"new" * 2000)
        assert not returned or data == b"new" * 2000, "it returned and was not on the medium"
        seen.add(data)
    assert len(seen) == 2


def test_the_medium_of_these_tests_does_lose_what_is_not_synced(
    quick_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(root: Path) -> None:
        (root / "file.new").write_bytes(b"new")
        (root / "file.new").replace(root / "file")

    for _, root in every_cut(lambda root: None, work, quick_path, monkeypatch):
        assert not (root / "file").exists()


def test_the_record_never_forgets_what_it_returned_from(
    quick_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = Record(generation=1, counters={"m": 3}), Record(generation=2, counters={"m": 7})
    for _, root in every_cut(
        lambda root: RecordFile(root).save(old),
        lambda root: RecordFile(root).save(new),
        quick_path,
        monkeypatch,
    ):
        file = RecordFile(root)
        assert not file.damaged
        assert file.value in (old, new)


def test_a_sequence_number_is_never_used_twice_after_a_boot(
    quick_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: dict[tuple[Kind, str, int], bytes] = {}

    def work(root: Path) -> None:
        outbox = Outbox(root / "outbox", boot="first")
        for index in range(3):
            outbox.put(_event(f"before {index}"))
            outbox.put(_health(index))
            deliver(outbox)

    def deliver(outbox: Outbox) -> None:
        for kind, payload in outbox.take(10):
            numbered = msgspec.json.decode(payload)
            key = (kind, numbered["stream"], numbered["seq"])
            assert sent.setdefault(key, payload) == payload, "another message under this number"

    for cut, root in every_cut(lambda root: None, work, quick_path, monkeypatch):
        outbox = Outbox(root / "outbox", boot="second")
        outbox.put(_event(f"after {cut}"))
        outbox.put(_health(1000 + cut))
        deliver(outbox)


def _health(second: int) -> Health:
    at = datetime(2026, 1, 1, tzinfo=timezone.utc) + timedelta(seconds=second)
    return Health(stream="", seq=0, at=at)


def _event(text: str) -> Event:
    at = datetime(2026, 1, 1, tzinfo=timezone.utc)
    return Event(stream="", seq=0, at=at, kind=EventKind.STARTED, text=text)


@pytest.mark.parametrize("sick", [None, "1.1"])
def test_power_loss_anywhere_in_an_update_ends_in_one_whole_release(
    quick_path: Path, monkeypatch: pytest.MonkeyPatch, sick: str | None
) -> None:
    """After each cut the next start serves 1.0 or 1.1, and finishes what was wanted."""
    cuts = 0
    found = set()
    for cut, root in every_cut(
        installed, lambda root: Rig(root, sick=sick).run("1.1"), quick_path, monkeypatch
    ):
        cuts = cut
        slots = Slots(root / "models" / "m")
        active = slots.active()
        assert active is not None, f"cut {cut} left nothing to serve"
        assert active.version in ("1.0", "1.1")
        found.add(active.version)

        rig = Rig(root, sick=sick)
        current = rig.machine.workers.current
        journal = journals.load(root / "models" / "m")
        assert current is not None or journal.phase is Phase.ROLLBACK
        rig.run("1.1")
        last = rig.machine.reported().last
        active = slots.active()
        assert rig.machine.phase is Phase.IDLE
        assert active is not None
        if sick is None:
            assert active.version == "1.1"
            assert last is None or last.kind is OutcomeKind.COMMITTED
            # the floor rises with COMMIT: it may not be forgotten once 1.1 was committed
            assert rig.record.value.counters == {"m": 1}
        else:
            assert active == OLD
            assert last is not None and last.kind is OutcomeKind.ROLLED_BACK
            assert rig.record.value.counters == {}
            assert rig.record.value.barred["m"].digest == NEW.digest
        assert rig.record.value.versions == VERSIONS
    assert cuts > 40
    assert found == {"1.0", "1.1"}


def test_power_loss_while_a_model_on_probation_is_removed_leaves_a_device_that_starts(
    quick_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def prepare(root: Path) -> None:
        installed(root)
        staged = Active.of(Slot.B, NEW)
        Slots(root / "models" / "m").switch(staged)
        on_probation = journals.Journal(
            phase=Phase.PROBATION, version="1.1", release=NEW, slot=Slot.B, previous=OLD
        )
        journals.save(root / "models" / "m", on_probation)

    def work(root: Path) -> None:
        Rig(root, sick=None).machine.remove()

    for _, root in every_cut(prepare, work, quick_path, monkeypatch):
        rig = Rig(root, sick=None)
        rig.run("1.1")
        active = Slots(root / "models" / "m").active()
        assert rig.machine.phase is Phase.IDLE
        assert active is not None and active.digest == NEW.digest
