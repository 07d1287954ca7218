"""Health and events on their way to the hub."""

from __future__ import annotations

import errno
import os
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edgekit_agent import outbox as module
from edgekit_agent.outbox import Outbox
from edgekit_contract.messages import Ack, Event, EventKind, Health, decode
from edgekit_contract.topics import Kind

AT = datetime(2026, 1, 1, tzinfo=timezone.utc)


def event(text: str) -> Event:
    return Event(stream="", seq=0, at=AT, kind=EventKind.STARTED, text=text)


def health() -> Health:
    return Health(stream="", seq=0, at=AT)


def taken(outbox: Outbox, limit: int = 100) -> list[tuple[int, str]]:
    events = [decode(p, Event) for k, p in outbox.take(limit) if k is Kind.EVENT]
    return [(e.seq, e.text) for e in events]


def test_messages_are_numbered_from_one_without_gaps(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "o", boot="x")
    for index in range(5):
        outbox.put(event(str(index)))
    assert taken(outbox) == [(n + 1, str(n)) for n in range(5)]
    assert taken(outbox) == []


def test_a_restart_goes_on_counting_and_sends_again_what_was_not_acknowledged(
    tmp_path: Path,
) -> None:
    first = Outbox(tmp_path / "o", boot="x")
    for index in range(3):
        first.put(event(str(index)))
    assert len(taken(first)) == 3
    first.acknowledge(Ack(stream=first.stream, event=2))
    second = Outbox(tmp_path / "o", boot="x")
    second.put(event("after"))
    assert second.stream == first.stream
    assert [seq for seq, _ in taken(second)] == [1, 2, 3, 4]


def test_restarts_without_messages_leave_one_file_of_a_kind(tmp_path: Path) -> None:
    for boot in "aaabbb":
        Outbox(tmp_path / "o", boot=boot)
    assert len(list((tmp_path / "o").glob("event-*"))) == 1


def test_what_is_acknowledged_leaves_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SEGMENT_RECORDS", 10)
    outbox = Outbox(tmp_path / "o", boot="x")
    for index in range(35):
        outbox.put(event(str(index)))
    assert [seq for seq, _ in taken(outbox)] == list(range(1, 36))
    outbox.acknowledge(Ack(stream=outbox.stream, event=31))
    assert outbox.unacknowledged == 4
    assert len(list((tmp_path / "o").glob("event-*"))) == 1
    outbox.resend()
    assert [seq for seq, _ in taken(outbox)] == [32, 33, 34, 35]


def test_an_ack_of_another_stream_says_nothing(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "o", boot="x")
    outbox.put(event("a"))
    outbox.acknowledge(Ack(stream="other", event=100, health=100))
    assert outbox.unacknowledged == 1


def test_an_ack_of_what_was_never_sent_loses_nothing(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "o", boot="x")
    outbox.put(event("a"))
    outbox.acknowledge(Ack(stream=outbox.stream, event=2**53 - 1, health=2**53 - 1))
    outbox.put(event("b"))
    assert taken(outbox) == [(2, "b")]
    assert outbox.unacknowledged == 1


def test_the_oldest_are_given_up_when_there_is_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_QUEUE_BYTES", 8000)
    monkeypatch.setattr(module, "_SEGMENT_BYTES", 1000)
    outbox = Outbox(tmp_path / "o", boot="x")
    for index in range(200):
        outbox.put(event(f"{index:03}" + "x" * 100))
    held = sum(path.stat().st_size for path in (tmp_path / "o").glob("event-*"))
    assert held <= 8000
    left = taken(outbox, 1000)
    assert left[-1][0] == 200
    assert outbox.dropped == 200 - len(left)
    assert outbox.unacknowledged == len(left)


def test_a_torn_line_is_passed_over(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "o", boot="x")
    outbox.put(event("whole"))
    (path,) = (tmp_path / "o").glob("event-*")
    with path.open("ab") as stream:
        stream.write(b'{"stream":"')
    after = Outbox(tmp_path / "o", boot="y")
    after.put(event("next"))
    assert [text for _, text in taken(after)] == ["whole", "next"]


def test_a_new_stream_takes_what_is_not_acknowledged_along(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "o", boot="x")
    outbox.put(event("before"))
    old = outbox.stream
    outbox.renew_stream()
    ((_, payload),) = outbox.take(10)
    assert decode(payload, Event).stream == outbox.stream != old


def test_events_go_before_health(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "o", boot="x")
    outbox.put(health())
    outbox.put(event("a"))
    assert [kind for kind, _ in outbox.take(10)] == [Kind.EVENT, Kind.HEALTH]


def test_no_more_is_taken_than_asked_for(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "o", boot="x")
    for index in range(10):
        outbox.put(event(str(index)))
        outbox.put(health())
    assert len(outbox.take(15)) == 15
    assert outbox.pending
    assert len(outbox.take(15)) == 5
    assert not outbox.pending


def test_numbers_are_within_a_json_integer(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "o", boot="x")
    outbox.put(health())
    ((_, payload),) = outbox.take(1)
    assert msgspec.json.decode(payload)["seq"] < 2**53


def no_new_files(patch: pytest.MonkeyPatch) -> None:
    real = os.open

    def refuse(path: Any, flags: int, *rest: Any) -> int:
        if flags & os.O_CREAT:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return real(path, flags, *rest)

    patch.setattr(os, "open", refuse)


@pytest.mark.parametrize("boot", ["x", "y"])
def test_a_full_disk_does_not_keep_the_agent_from_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, boot: str
) -> None:
    first = Outbox(tmp_path / "o", boot="x")
    first.put(event("before"))
    with monkeypatch.context() as patch:
        no_new_files(patch)
        outbox = Outbox(tmp_path / "o", boot=boot)
        with pytest.raises(OSError):
            outbox.put(event("lost"))
        assert taken(outbox) == [(1, "before")]
    outbox.put(event("after"))
    number = 2 if boot == "x" else 1 + module._SEGMENT_RECORDS
    assert taken(outbox) == [(number, "after")]
    again = Outbox(tmp_path / "o", boot=boot)
    again.put(event("last"))
    assert taken(again) == [(1, "before"), (number, "after"), (number + 1, "last")]


def test_a_boot_that_a_full_disk_did_not_note_is_not_taken_for_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Outbox(tmp_path / "o", boot="x").put(event("before"))
    with monkeypatch.context() as patch:
        no_new_files(patch)
        Outbox(tmp_path / "o", boot="y")
    outbox = Outbox(tmp_path / "o", boot="y")
    outbox.put(event("after"))
    assert taken(outbox)[-1] == (1 + module._SEGMENT_RECORDS, "after")


def test_a_segment_that_cannot_be_begun_leaves_the_last_one_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SEGMENT_RECORDS", 2)
    outbox = Outbox(tmp_path / "o", boot="x")
    outbox.put(event("1"))
    outbox.put(event("2"))
    with monkeypatch.context() as patch:
        no_new_files(patch)
        with pytest.raises(OSError, match="No space"):
            outbox.put(event("lost"))
    outbox.put(event("3"))
    assert taken(outbox) == [(1, "1"), (2, "2"), (3, "3")]


def test_half_a_line_on_a_full_disk_does_not_spoil_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox = Outbox(tmp_path / "o", boot="x")
    real = os.write

    def half(descriptor: int, data: Any) -> int:
        real(descriptor, bytes(data)[:7])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", half)
        with pytest.raises(OSError):
            outbox.put(event("lost"))
    outbox.put(event("whole"))
    assert taken(outbox) == [(1, "whole")]


def test_a_flood_of_events_leaves_room_for_health(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "o", boot="x")
    for index in range(50):
        outbox.put(event(str(index)))
    outbox.put(health())
    assert Kind.HEALTH in [kind for kind, _ in outbox.take(20)]
