"""What an operator orders of devices that the fleet does not have."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest
from bundles import KEY, null_bundle
from fleets import make_fleet, publish_bundles, utc_now

import edgekit_profiles
from edgekit.hub import orders
from edgekit.hub.fleet import Fleet
from edgekit.hub.rollout import RolloutStatus
from edgekit.hub.store import Store, open_store
from edgekit_contract.errors import Misused


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    """A release of the model `tiny` for demo-small."""
    directory = tmp_path_factory.mktemp("orders")
    fleet = make_fleet(directory / "fleet")
    publish_bundles(fleet, null_bundle().write(directory / "tiny.ekb", KEY))
    return fleet


@pytest.fixture
def store(lab: Fleet, tmp_path: Path) -> Iterator[Store]:
    """With one device, which is invited and of another profile."""
    with closing(open_store(tmp_path / "hub.db")) as found:
        orders.invite(
            lab,
            found,
            device="kitchen",
            profile_toml=edgekit_profiles.text("raspberry-pi-4"),
            life=timedelta(hours=1),
            now=utc_now(),
        )
        yield found


def start(lab: Fleet, store: Store, selector: str) -> None:
    orders.start_rollout(
        store, lab.repository, model="tiny", version="1.0", selector=selector, now=utc_now()
    )


@pytest.mark.parametrize(
    ("selector", "said"),
    [
        ("nosuch", "no device 'nosuch': choose from"),
        ("kitchen,kitche", "no device 'kitche': did you mean kitchen"),
        ("profile:raspberry-pi-5", "no device is of the profile 'raspberry-pi-5'"),
    ],
)
def test_rollout_to_what_the_fleet_does_not_have_is_refused_and_ends_no_other(
    lab: Fleet, store: Store, selector: str, said: str
) -> None:
    start(lab, store, "all")
    with pytest.raises(Misused, match=said):
        start(lab, store, selector)
    (running,) = store.ledger.rollouts()
    assert (running.selector, running.status) == ("all", RolloutStatus.RUNNING)


@pytest.mark.parametrize("selector", ["kitchen", "profile:raspberry-pi-4", "profile:demo-small"])
def test_rollout_to_an_invited_device_or_to_a_profile_of_the_release_begins(
    lab: Fleet, store: Store, selector: str
) -> None:
    start(lab, store, selector)
    assert [rollout.selector for rollout in store.ledger.rollouts()] == [selector]
