"""Real agents as processes, on a real mosquitto with mutual TLS and a real hub."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from agent_processes import KNOBS, Process, join, turn
from agents import PATIENCE_S, variant, wait_for
from fleets import eventually, make_fleet, publish_bundles, utc_now
from hubs import RunningHub
from mosquitto import Mosquitto

from edgekit.hub import orders
from edgekit.hub.depot import Depot
from edgekit.hub.fleet import Fleet
from edgekit_agent.clock import SystemClock
from edgekit_agent.enrolment import enrol
from edgekit_contract.errors import Misused, Refused
from edgekit_contract.messages import Chunk, Event, EventKind, Fetch

EDGEKIT = str(Path(sys.executable).with_name("edgekit"))


def command(fleet: Fleet, *words: str) -> bytes:
    """What an operator's command on the fleet directory prints."""
    words = (EDGEKIT, *words, "--fleet", str(fleet.directory))
    return subprocess.run(words, check=True, capture_output=True).stdout


@pytest.fixture
def lab(tmp_path: Path) -> Fleet:
    return make_fleet(tmp_path / "fleet")


@pytest.fixture
def broker(lab: Fleet) -> Iterator[Mosquitto]:
    with Mosquitto(lab) as running:
        yield running


def release(fleet: Fleet, tmp_path: Path, version: str, *, ballast_bytes: int = 0) -> None:
    bundle = variant(version, ballast_bytes=ballast_bytes)
    publish_bundles(fleet, bundle.write(tmp_path / f"{version}.ekb"))


def start(hub: RunningHub, version: str) -> None:
    orders.start_rollout(
        hub.store,
        hub.fleet.repository,
        model="tiny",
        version=version,
        selector="all",
        now=utc_now(),
    )


def unacknowledged(agent: Process) -> int:
    """Messages that the hub has yet to store; two health messages come in a second."""
    count = agent.state().get("unacknowledged")
    return count if isinstance(count, int) else 1000


def events(hub: RunningHub, device: str) -> list[Event]:
    return [e for _, _, e in hub.store.records.events(device, limit=200, before=None)]


def test_from_invitation_to_inference(lab: Fleet, broker: Mosquitto, tmp_path: Path) -> None:
    """The whole hub as a process: enrolment over HTTPS, rollout, inference, health."""
    release(lab, tmp_path, "1.0")
    with (tmp_path / "hub.log").open("wb") as log:
        hub = subprocess.Popen([EDGEKIT, "hub", "--fleet", str(lab.directory)], stderr=log)
    try:
        eventually(lambda: "enrolment" in (tmp_path / "hub.log").read_text())
        invited = command(lab, "devices", "invite", "d1", "--profile", "demo-small", "--json")
        token = json.loads(invited)["token"]
        device = tmp_path / "device"
        enrolled = enrol(token, device, clock=SystemClock())
        assert (enrolled.id, enrolled.profile) == ("d1", "demo-small")
        assert (device / "identity" / "device.key").stat().st_mode & 0o777 == 0o600
        with pytest.raises(Refused, match="does not know this token"):
            enrol(token, tmp_path / "second", clock=SystemClock())
        assert not (tmp_path / "second").exists()
        with pytest.raises(Misused, match="holds an enrolled device"):
            enrol(token, device, clock=SystemClock())
        turn(device, KNOBS)
        with Process(device) as agent:
            wait_for(agent.connected, agent.log.read_text())
            command(lab, "rollout", "start", "tiny@1.0", "--to", "all")
            agent.wait_for("1.0")
            request = {
                "inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]
            }
            words = ("infer", "tiny", "-", "--json", "--dir", str(device))
            answer = subprocess.run(
                [sys.executable, "-m", "edgekit_agent", *words],
                input=json.dumps(request).encode(),
                check=True,
                capture_output=True,
            )
            assert json.loads(answer.stdout)["outputs"][0]["data"] == [10.0]
            # what the hub has stored leaves the device
            wait_for(lambda: unacknowledged(agent) < 5, "acknowledgement")
    finally:
        hub.terminate()
        hub.wait(PATIENCE_S)


def test_a_broker_that_is_down_at_the_start_is_found_when_it_comes(
    lab: Fleet, tmp_path: Path
) -> None:
    release(lab, tmp_path, "1.0")
    with join(lab, tmp_path / "d1", "d1") as agent:
        wait_for(lambda: "trying again" in str(agent.state().get("connection")), "a retry")
        with Mosquitto(lab), RunningHub(lab) as hub:
            wait_for(agent.connected, "a connection")
            eventually(lambda: bool(hub.ask(lambda: hub.service.state.devices.get("d1"))))
            start(hub, "1.0")
            agent.wait_for("1.0")


class CountingDepot(Depot):
    """Counts bytes of blobs that are asked for; answers nothing after the first `most` requests."""

    def __init__(self, directory: Path, most: int = 10**9) -> None:
        super().__init__(directory)
        self.left = most
        self.asked_bytes = 0
        self.released = threading.Event()

    def read(self, fetch: Fetch) -> Chunk:
        if fetch.resource.startswith("blobs/"):
            self.left -= 1
            if self.left < 0:
                self.released.wait()
            self.asked_bytes += fetch.length
        return super().read(fetch)


HALF = 64
"""Chunks, of 128."""
BALLAST_BYTES = 8 << 20
STALLING_HUB = f"""
import sys
import time
from edgekit.cli import main
from edgekit.hub.depot import Depot

read, left = Depot.read, [{HALF}]

def stall(self, fetch):
    if fetch.resource.startswith("blobs/"):
        left[0] -= 1;
        if left[0] < 0:
            print("stalled", file=sys.stderr, flush=True)
            time.sleep(3600)
    return read(self, fetch)

Depot.read = stall
main()
"""
"""`edgekit hub` whose disk hangs in the middle of a transfer."""


def midway(agent: Process) -> float:
    """What part of a transfer that is under way is done; 0 when there is none."""
    reported = agent.state().get("reported")
    model = reported.get("models", {}).get("tiny", {}) if isinstance(reported, dict) else {}
    return float(model.get("progress") or 0.0) if model.get("phase") == "fetch" else 0.0


REST_BYTES = BALLAST_BYTES - HALF * 65536 + 2 * (1 << 20) + 16 * 65536
"""What may be asked for after a transfer broke: the rest, and the blocks that were under way."""


def test_hub_that_is_killed_midway_through_a_transfer_costs_no_more_than_what_was_under_way(
    lab: Fleet, broker: Mosquitto, tmp_path: Path
) -> None:
    release(lab, tmp_path, "1.0", ballast_bytes=BALLAST_BYTES)
    log = tmp_path / "hub.log"
    with join(lab, tmp_path / "d1", "d1") as agent:
        with log.open("wb") as stream:
            hub = subprocess.Popen(
                [sys.executable, "-c", STALLING_HUB, "hub", "--fleet", lab.directory],
                stderr=stream,
            )
        try:
            wait_for(agent.connected, "a connection")
            command(lab, "rollout", "start", "tiny@1.0", "--to", "all")
            wait_for(lambda: "stalled" in log.read_text(), "half of the transfer")
        finally:
            hub.kill()
            assert hub.wait(PATIENCE_S) == -signal.SIGKILL, log.read_text()
        wait_for(lambda: midway(agent) > 0, "an update that waits for the hub")
        assert midway(agent) < 1
        depot = CountingDepot(lab.directory)
        with RunningHub(lab, depot=depot):
            agent.wait_for("1.0")
        assert depot.asked_bytes <= REST_BYTES


def test_broker_that_dies_midway_through_a_transfer_costs_no_more_than_what_was_under_way(
    lab: Fleet, broker: Mosquitto, tmp_path: Path
) -> None:
    release(lab, tmp_path, "1.0", ballast_bytes=BALLAST_BYTES)
    depot = CountingDepot(lab.directory, HALF)
    with join(lab, tmp_path / "d1", "d1") as agent, RunningHub(lab, depot=depot) as hub:
        try:
            wait_for(agent.connected, "a connection")
            eventually(lambda: bool(hub.ask(lambda: hub.service.state.devices.get("d1"))))
            start(hub, "1.0")
            wait_for(lambda: depot.left < 0, "half of the transfer")
            broker.stop()
            wait_for(lambda: not agent.connected(), "the broken connection")
        finally:
            depot.left = 10**9
            depot.released.set()
        eventually(lambda: not hub.service.link.connected)
        depot.asked_bytes = 0
        broker.start()
        agent.wait_for("1.0")
    assert depot.asked_bytes <= REST_BYTES


def test_two_agents_with_one_identity_are_reported_and_do_not_fight_on(
    lab: Fleet, broker: Mosquitto, tmp_path: Path
) -> None:
    join(lab, tmp_path / "a", "d1")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    with (
        RunningHub(lab) as hub,
        Process(tmp_path / "a") as one,
        Process(tmp_path / "b") as other,
    ):

        def delays_s() -> list[float]:
            """What both waited after takeovers: base 0.4 s, doubled with every one."""
            text = one.log.read_text() + other.log.read_text()
            after = text.split("two devices may have one identity")[1:]
            found = [re.search(r"trying again in ([0-9.]+) s", part) for part in after]
            return [float(match[1]) for match in found if match]

        wait_for(lambda: max(delays_s(), default=0) >= 3.0, "a long delay")
        assert len(delays_s()) <= 10, "they still fight"
        streams: set[str] = set()

        def both_told() -> bool:
            told = [e for e in events(hub, "d1") if e.kind is EventKind.TAKEOVER]
            streams.update(event.stream for event in told)
            return len(streams) >= 2

        wait_for(both_told, "events of both at the hub")


def test_a_graceful_stop_says_offline_and_a_kill_is_told_by_the_will(
    lab: Fleet, broker: Mosquitto, tmp_path: Path
) -> None:
    agent = join(lab, tmp_path / "d1", "d1")
    with RunningHub(lab) as hub:

        def online() -> bool | None:
            device = hub.ask(lambda: hub.service.state.devices.get("d1"))
            return device.status.online if device is not None and device.status else None

        with agent:
            wait_for(online, "online")
            assert agent.stop() == 0
            wait_for(lambda: online() is False, "the farewell")
            agent.start()
            wait_for(online, "online again")
            agent.stop(signal.SIGKILL)
            wait_for(lambda: online() is False, "the Will")


def test_a_second_agent_in_one_directory_is_refused(
    lab: Fleet, broker: Mosquitto, tmp_path: Path
) -> None:
    with join(lab, tmp_path / "d1", "d1") as agent:
        wait_for(agent.connected, "a connection")
        second = subprocess.run(
            [sys.executable, "-m", "edgekit_agent", "run", "--dir", str(agent.directory)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert second.returncode == 1
        assert "another agent runs in" in second.stderr
