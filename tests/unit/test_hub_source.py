"""The hub as its pages see it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from edgekit.hub.rollout import Assignment, Rollout, Standing, Wave
from edgekit.hub.source import HubSource


def test_each_wave_counts_its_own_devices() -> None:
    rollout = Rollout(
        id="r1",
        model="tiny",
        version="1.0",
        started_at=1.0,
        waves=(Wave(title="canary"), Wave(title="rest")),
    )
    parts = {
        "a": Assignment(wave=0, standing=Standing.COMMITTED),
        "b": Assignment(wave=1, standing=Standing.WAITING),
        "c": Assignment(wave=1, standing=Standing.WAITING),
    }
    conduct = SimpleNamespace(rollouts=[rollout], assignments={"r1": parts})
    source = HubSource(cast(Any, SimpleNamespace(conduct=conduct)))
    (view,) = source.rollouts()
    assert [dict(wave.standings) for wave in view.waves] == [
        {Standing.COMMITTED: 1},
        {Standing.WAITING: 2},
    ]
