"""What may be spent of an hour."""

from __future__ import annotations

from edgekit_agent.allowance import Allowance


def test_half_an_hour_is_spent_when_it_was_and_returns_with_time() -> None:
    allowance = Allowance(1800.0)
    assert not allowance.is_spent(0.0)
    allowance.spend(0.0, 1000.0)
    assert not allowance.is_spent(1000.0)
    allowance.spend(1000.0, 1800.0)
    assert allowance.is_spent(1800.0)
    # what was spent an hour ago is given again, second by second
    assert allowance.is_spent(3600.0)
    assert not allowance.is_spent(3601.0)


def test_what_is_older_than_an_hour_is_forgotten() -> None:
    allowance = Allowance(10.0)
    allowance.spend(0.0, 3000.0)
    assert allowance.is_spent(3000.0)
    assert not allowance.is_spent(3000.0 + 3600.0)
