"""The dashboard over the whole of a hub: `edgekit hub` in a process, a real broker, a device."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from bundles import null_bundle
from fleet_messages import event, health, online, outcome, reported, will
from fleets import eventually, identity, make_fleet, publish_bundles
from mosquitto import Mosquitto
from mqtt_clients import Client
from playwright.sync_api import Page, expect

from edgekit.hub.fleet import Fleet
from edgekit_contract import messages, topics
from edgekit_contract.messages import Desired, EventKind, OutcomeKind, Phase
from edgekit_contract.topics import Kind

OpenPage = Callable[..., Page]
TakePicture = Callable[[Page, str], Path]


@pytest.fixture
def lab(tmp_path: Path) -> Fleet:
    fleet = make_fleet(tmp_path / "fleet")
    publish_bundles(fleet, null_bundle(version="1.1").write(tmp_path / "bundle.ekb"))
    return fleet


@pytest.fixture
def address(lab: Fleet, tmp_path: Path) -> Iterator[str]:
    """Of the dashboard of a running hub, beside its broker."""
    with Mosquitto(lab), (tmp_path / "hub.log").open("wb") as log:
        hub = subprocess.Popen(
            [sys.executable, "-m", "edgekit", "hub", "--fleet", str(lab.directory)],
            stdout=log,
            stderr=log,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        try:
            eventually(lambda: listens(lab.settings.web_port))
            yield f"http://127.0.0.1:{lab.settings.web_port}"
        finally:
            hub.send_signal(signal.SIGTERM)
            hub.wait(30)


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def test_a_device_on_the_broker_appears_takes_a_rollout_dies_and_recovers(
    lab: Fleet, address: str, tmp_path: Path, open_page: OpenPage, take_picture: TakePicture
) -> None:
    page = open_page(address)
    expect(page.get_by_role("heading", name="No device yet")).to_be_visible()
    (model,) = (release.name for release in lab.repository.releases())
    last_words = (topics.topic(lab.name, "pi-1", Kind.STATUS), messages.encode(will()))
    device = Client(lab, identity(lab, "pi-1", tmp_path / "pi-1"), will=last_words)
    device.connect()
    device.subscribe(topics.topic(lab.name, "pi-1", Kind.DESIRED))

    def report(version: str | None, **how: object) -> None:
        told = reported(version, model=model, profile="demo-small", **how)  # type: ignore[arg-type]
        device.say("pi-1", told, Kind.REPORTED, retain=True)

    device.say("pi-1", online(), Kind.STATUS, retain=True)
    report(None)
    expect(page.locator(".tiles")).to_contain_text("1 of 1 device")

    page.get_by_role("link", name="Releases").click()
    page.get_by_role("link", name="Roll out").click()
    page.get_by_role("button", name="Start", exact=True).click()
    page.get_by_role("button", name="Start the rollout").click()
    expect(page.locator(".wave")).to_contain_text("1 updating")
    eventually(lambda: bool(device.got("pi-1", Kind.DESIRED)))
    wanted = messages.decode(device.got("pi-1", Kind.DESIRED)[-1], Desired)
    assert wanted.models[model].version == "1.1"

    report(None, generation=wanted.generation, phase=Phase.FETCH, target="1.1", progress=0.5)
    expect(page.get_by_role("region", name="Updating, by phase")).to_contain_text("Fetch")
    take_picture(page, "rollout-updating")
    done = outcome(OutcomeKind.COMMITTED, "1.1", Phase.COMMIT)
    report("1.1", generation=wanted.generation, last=done)
    expect(page.locator(".wave")).to_contain_text("1 committed")
    expect(page.locator(".head")).to_contain_text("Done")

    page.goto(f"{address}/devices/pi-1")
    device.say("pi-1", health(model=model, version="1.1", p50_ms=3), Kind.HEALTH)
    said = event(
        "serves 1.1", EventKind.OUTCOME, model=model, version="1.1", ended=OutcomeKind.COMMITTED
    )
    device.say("pi-1", said, Kind.EVENT)
    expect(page.locator(".model .kpis")).to_contain_text("5.10 ms")
    expect(page.get_by_role("region", name="Event log")).to_contain_text("serves 1.1")
    page.wait_for_function("document.querySelectorAll('[data-chart] canvas').length === 3")
    take_picture(page, "device-online")
    for place, name in (("/", "overview"), ("/devices", "devices"), ("/devices/pi-1", "device")):
        phone = open_page(f"{address}{place}", width=390, height=844, dark=True)
        take_picture(phone, f"{name}-on-a-phone")

    device.vanish()
    expect(page.locator(".head")).to_contain_text("Unreachable")
    take_picture(page, "device-unreachable")
    with Client(lab, identity(lab, "pi-1", tmp_path / "again"), will=last_words) as again:
        again.say("pi-1", online("a2"), Kind.STATUS, retain=True)
        expect(page.locator(".head")).to_contain_text("Online")
        page.reload()
        expect(page.get_by_role("region", name="Event log")).to_contain_text("serves 1.1")
        page.wait_for_function("document.querySelectorAll('[data-chart] canvas').length === 3")
