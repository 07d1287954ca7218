"""Acknowledgements: nothing is acknowledged that may still be on its way."""

from __future__ import annotations

from fleets import utc_now
from hypothesis import given
from hypothesis import strategies as st

from edgekit.hub import sequence
from edgekit.hub.inbox import RESEND_S, SETTLED_S, STREAMS_PER_DEVICE, Inbox
from edgekit.hub.sequence import Sequence
from edgekit_contract.messages import Ack, Health


def health(seq: int, stream: str = "s") -> Health:
    return Health(stream=stream, seq=seq, at=utc_now())


@given(st.lists(st.integers(1, 30), max_size=80))
def test_stored_is_the_end_of_the_unbroken_run_from_one(numbers: list[int]) -> None:
    queue, seen = Sequence(), set[int]()
    for number in numbers:
        assert queue.take(number) == (number not in seen)
        seen.add(number)
        run = 0
        while run + 1 in seen:
            run += 1
        assert queue.stored == run


@given(st.sets(st.integers(1, 50), min_size=1))
def test_after_bridging_all_that_came_is_stored(numbers: set[int]) -> None:
    queue = Sequence()
    for number in numbers:
        queue.take(number)
    queue.bridge()
    assert queue.stored == max(numbers)
    assert not queue.take(min(numbers))


def test_a_gap_holds_no_more_than_its_bound() -> None:
    queue = Sequence()
    for number in range(2, sequence.MAX_AHEAD + 4):
        queue.take(number)
    assert queue.stored == sequence.MAX_AHEAD + 3


def test_a_repetition_is_acknowledged_again_and_not_kept_again() -> None:
    inbox = Inbox({})
    inbox.health("a", health(1), b"1", 0.0)
    batch, acks = inbox.take(1.0)
    assert (len(batch.health), acks) == (1, {"a": Ack(stream="s", health=1)})
    assert inbox.take(2.0)[1] == {}
    inbox.health("a", health(1), b"1", 3.0)
    batch, acks = inbox.take(3.0)
    assert (batch.health, acks) == ([], {"a": Ack(stream="s", health=1)})
    assert not batch


def test_what_is_not_written_is_not_acknowledged_after_a_reconnect() -> None:
    inbox = Inbox({})
    inbox.health("a", health(1), b"1", 0.0)
    first, acks = inbox.take(1.0)
    inbox.reconnected()
    assert inbox.acks() == {"a": Ack(stream="s")}
    inbox.health("a", health(2), b"2", 2.0)
    inbox.written(first)
    assert inbox.acks() == acks == {"a": Ack(stream="s", health=1)}


def test_a_gap_is_told_of_once_and_holds_acknowledgements_back_until_it_is_settled() -> None:
    inbox = Inbox({("a", "s"): (4, 0)})
    inbox.health("a", health(7), b"7", 0.0)
    assert inbox.take(1.0)[1] == {"a": Ack(stream="s", health=4)}
    inbox.health("a", health(8), b"8", RESEND_S)
    assert inbox.take(RESEND_S)[1] == {}  # the device's patience must run out
    assert inbox.take(SETTLED_S)[1] == {"a": Ack(stream="s", health=8)}


def test_what_is_sent_again_in_time_closes_the_gap() -> None:
    inbox = Inbox({("a", "s"): (4, 0)})
    inbox.health("a", health(7), b"7", 0.0)
    inbox.take(1.0)
    for seq in (5, 6, 7):
        inbox.health("a", health(seq), b"", RESEND_S + 1)
    batch, acks = inbox.take(RESEND_S + 2)
    assert [kept.seq for kept in batch.health] == [5, 6]
    assert acks == {"a": Ack(stream="s", health=7)}


def test_a_gap_long_after_connecting_is_the_devices_own_and_one_after_reconnecting_is_not() -> None:
    inbox = Inbox({})
    inbox.health("a", health(1), b"", 0.0)
    inbox.health("a", health(3), b"", SETTLED_S + 1)
    assert inbox.take(SETTLED_S + 1)[1] == {"a": Ack(stream="s", health=3)}
    inbox.reconnected()
    inbox.health("a", health(9), b"", SETTLED_S + 2)
    assert inbox.take(SETTLED_S + 3)[1] == {"a": Ack(stream="s", health=3)}


def test_a_device_that_is_born_again_and_again_fills_nothing() -> None:
    inbox = Inbox({})
    for birth in range(50):
        inbox.health("a", health(1, f"s{birth}"), b"", 0.0)
    batch, acks = inbox.take(1.0)
    assert len(batch.streams) == STREAMS_PER_DEVICE
    assert len(batch.dropped) == 50 - STREAMS_PER_DEVICE
    assert acks["a"].stream == "s49"
    inbox.written(batch)
    assert inbox.acks() == acks
