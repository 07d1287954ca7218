"""Generations of the desired states that conducting hands out."""

from __future__ import annotations

from fleets import utc_now

from edgekit.hub.conduct import Conduct
from edgekit.hub.state import FleetState, expect, fold
from edgekit_contract.messages import BundleRef, DeviceFacts, Reported, ReportedModel


def test_a_generation_that_no_hub_reaches_is_not_chased_beyond_what_a_message_holds() -> None:
    """The device takes the retained one when it connects."""
    state = FleetState()
    conduct = Conduct(state)
    expect(state, "a", profile="small")
    serving = ReportedModel(active=BundleRef(version="1.0", digest="0" * 64, counter=1))
    facts = DeviceFacts(profile="small", arch="aarch64", cores=4, ram_bytes=2**30)
    message = Reported(at=utc_now(), generation=2**53 - 1, models={"m": serving}, device=facts)
    fold(state, "a", message, 0.0)
    news = conduct.plan(1.0)
    assert news.wanted["a"].generation == 1
    assert news.wanted["a"].models == {"m": "1.0"}
    conduct.settle(news)
    assert not conduct.plan(2.0)
