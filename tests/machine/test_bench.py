"""Measurements on a device: real daemon, bencher, warm-up child; a function call for MQTT."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import msgspec
import pytest
from agents import QUICK, Agent, DirectLink, Shop, Silence, make_device, running, utc_now, variant
from bundles import onnx_bundle

from edgekit_contract.messages import Benched, Fetch, Phase


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path / "fleet")


@pytest.fixture
def link(shop: Shop) -> DirectLink:
    return DirectLink(shop.depot)


@pytest.fixture
def device(tmp_path: Path, shop: Shop) -> Path:
    return make_device(tmp_path / "device", shop)


def answer(agent: Agent, id_: str = "b1") -> Benched:
    found = lambda: [b for b in agent.link.benched if b.id == id_]  # noqa: E731
    agent.wait(found, "an answer")
    return found()[0]


def traces(device: Path) -> list[str]:
    """What a measurement may have left."""
    kept = [path for part in ("downloads", "models") for path in (device / part).iterdir()]
    return [path.name for path in kept] + (["bench"] if (device / "bench").exists() else [])


def test_a_device_times_a_bundle_and_keeps_nothing_of_it(
    shop: Shop, link: DirectLink, device: Path
) -> None:
    digest = shop.offer(onnx_bundle())
    assert shop.repository.releases() == ()
    with running(device, link) as agent:
        agent.wait(lambda: link.reported, "a report")
        link.bench(digest)
        link.bench(digest)  # QoS 1 brings a message at least once
        found = answer(agent)
        assert found.reason == ""
        assert found.median_ms and found.low_ms and found.high_ms and found.p95_ms
        assert found.low_ms <= found.median_ms <= found.high_ms
        assert found.runs > 3 and found.rss_bytes and found.rss_bytes > 10 << 20
        assert found.runtime.startswith("onnxruntime ")
        assert traces(device) == []
        # a later one is measured again, and the repetition was not answered twice
        link.bench(digest, id_="b2")
        assert answer(agent, "b2").reason == ""
        assert [b.id for b in link.benched] == ["b1", "b2"]
        # the device remembers what it saw of the metadata, as after an update
        assert agent.daemon._record.value.versions.targets == 2


def test_what_nobody_signed_for_measuring_is_not_run(
    shop: Shop, link: DirectLink, device: Path
) -> None:
    shop.release(variant("1.0"))
    with running(device, link) as agent:
        agent.wait(lambda: link.reported, "a report")
        link.bench("ab" * 32)
        assert "is signed to be measured" in answer(agent).reason
        assert link.fetched_bytes() == 0


def test_bench_target_cannot_be_desired(shop: Shop, link: DirectLink, device: Path) -> None:
    shop.offer(variant("1.0"))
    link.want(1, tiny="1.0")
    with running(device, link) as agent:
        agent.wait(lambda: agent.last() is not None, "an end")
        outcome = agent.last()
        assert outcome is not None and outcome.phase is Phase.CHECK
        assert not agent.serves("1.0")


def test_nothing_is_measured_on_probation(shop: Shop, link: DirectLink, tmp_path: Path) -> None:
    knobs = msgspec.structs.replace(QUICK, probation_s=600.0)
    device = make_device(tmp_path / "slow", shop, knobs=knobs)
    shop.release(variant("1.0"))
    digest = shop.offer(onnx_bundle())
    link.want(1, tiny="1.0")
    with running(device, link) as agent:
        agent.wait(lambda: agent.model().phase is Phase.PROBATION, "probation")
        link.bench(digest)
        assert answer(agent).reason == "tiny is in probation"
        assert agent.model().phase is Phase.PROBATION


def test_an_update_ends_a_measurement(shop: Shop, link: DirectLink, device: Path) -> None:
    shop.release(variant("1.0"))
    digest = shop.offer(onnx_bundle())
    with running(device, link) as agent:
        agent.wait(lambda: link.reported, "a report")
        link.bench(digest, seconds=100.0)
        agent.wait((device / "bench").exists, "the measurement")
        link.bench(digest, id_="b2")
        assert answer(agent, "b2").reason == "another measurement is under way"
        link.bench(digest, seconds=100.0)  # a repetition that comes late
        link.want(1, tiny="1.0")
        assert answer(agent).reason == "an update came first"
        agent.wait(lambda: agent.serves("1.0"), "1.0")
        assert not (device / "bench").exists()
        assert sorted(b.id for b in link.benched) == ["b1", "b2"]


@pytest.mark.parametrize(
    "case",
    [
        ({}, {"max_rss_mib": 1}, "of memory"),
        ({"scale": 2.0}, {}, "golden vector 0"),
        ({}, {"max_fetch_mib": 0}, "MiB to fetch"),
    ],
)
def test_what_a_device_does_not_bear_is_answered_with_the_reason(
    shop: Shop,
    link: DirectLink,
    tmp_path: Path,
    case: tuple[dict[str, float], dict[str, int], str],
) -> None:
    model, knobs, reason = case
    device = make_device(tmp_path / "d", shop, knobs=msgspec.structs.replace(QUICK, **knobs))
    digest = shop.offer(variant("1.0", model=model))
    with running(device, link) as agent:
        agent.wait(lambda: link.reported, "a report")
        link.bench(digest)
        assert reason in answer(agent).reason
        assert traces(device) == []


def test_an_order_that_comes_too_late_is_void(shop: Shop, link: DirectLink, device: Path) -> None:
    digest = shop.offer(onnx_bundle())
    with running(device, link) as agent:
        agent.wait(lambda: link.reported, "a report")
        link.bench(digest, until=utc_now() - timedelta(seconds=1))
        assert answer(agent).reason == "the order came too late"


def test_a_hub_that_goes_silent_ends_the_measurement_with_a_reason(
    shop: Shop, link: DirectLink, tmp_path: Path
) -> None:
    device = make_device(tmp_path / "d", shop, knobs=msgspec.structs.replace(QUICK, stall_s=0.5))
    digest = shop.offer(onnx_bundle())

    def silent(fetch: Fetch) -> None:
        if fetch.resource.startswith("blobs/"):
            raise Silence

    link.fault = silent
    with running(device, link) as agent:
        agent.wait(lambda: link.reported, "a report")
        link.bench(digest)
        assert "the hub sent nothing" in answer(agent).reason
        assert traces(device) == []
