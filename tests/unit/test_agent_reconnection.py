"""Backoff of the link, and how a takeover is told from a bad line."""

from __future__ import annotations

import random

from edgekit_agent.reconnection import SESSION_TAKEN_OVER, Backoff, Reconnection

BACKOFF = Backoff(least_s=1, most_s=120, takeover_s=30, most_takeover_s=3600, lasting_s=600)


def fresh() -> Reconnection:
    return Reconnection(BACKOFF, random.Random(1))


def test_a_broker_that_is_down_is_asked_less_and_less_often() -> None:
    link = fresh()
    delays = [link.ended(0.0, reason=None, by_peer=False)[0] for _ in range(12)]
    assert all(min(120, 2**n) / 2 <= delay <= min(120, 2**n) for n, delay in enumerate(delays))


def test_a_connection_that_stood_begins_the_backoff_anew() -> None:
    link = fresh()
    for _ in range(8):
        link.ended(0.0, reason=None, by_peer=False)
    link.connected(0.0, session_present=False)
    delay_s, taken_over = link.ended(30.0, reason=None, by_peer=True)
    assert delay_s <= 1
    assert not taken_over


def test_a_told_takeover_waits_long_and_longer() -> None:
    link, delays = fresh(), []
    for n in range(10):
        link.connected(n * 100.0, session_present=True)
        delay_s, taken_over = link.ended(n * 100.0 + 5, reason=SESSION_TAKEN_OVER, by_peer=False)
        assert taken_over
        delays.append(delay_s)
    assert all(min(3600, 30 * 2**n) / 2 <= d <= 3600 for n, d in enumerate(delays))


def test_a_takeover_that_nobody_tells_shows_after_three_short_connections() -> None:
    link, seen = fresh(), []
    for n in range(4):
        link.connected(n * 10.0, session_present=True)
        seen.append(link.ended(n * 10.0 + 1, reason=None, by_peer=True)[1])
    assert seen == [False, False, True, True]


def test_a_broker_that_restarts_again_and_again_is_no_takeover() -> None:
    link = fresh()
    for n in range(20):
        link.connected(n * 10.0, session_present=False)
        assert not link.ended(n * 10.0 + 1, reason=None, by_peer=True)[1]


def test_a_line_that_breaks_is_no_takeover() -> None:
    link = fresh()
    for n in range(20):
        link.connected(n * 10.0, session_present=True)
        assert not link.ended(n * 10.0 + 1, reason=None, by_peer=False)[1]


def test_a_connection_that_lasted_ends_the_suspicion() -> None:
    link = fresh()
    for n in range(5):
        link.connected(n * 10.0, session_present=True)
        link.ended(n * 10.0 + 1, reason=None, by_peer=True)
    link.connected(100.0, session_present=True)
    delay_s, taken_over = link.ended(100.0 + 600, reason=None, by_peer=True)
    assert not taken_over
    assert delay_s <= 1
