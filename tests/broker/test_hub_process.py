"""`edgekit hub` and the operators' commands, as processes on one fleet directory."""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from bundles import KEY, null_bundle
from fleets import eventually, identity, make_fleet, utc_now
from mosquitto import Mosquitto
from mqtt_clients import Client

from edgekit.hub.fleet import Fleet
from edgekit_contract import messages
from edgekit_contract.messages import Desired, DeviceFacts, Reported
from edgekit_contract.topics import Kind

EDGEKIT = [sys.executable, "-c", "from edgekit.cli import main; main()"]
WAIT_S = 60


@pytest.fixture
def lab(tmp_path: Path) -> Fleet:
    return make_fleet(tmp_path / "fleet")


def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "EDGEKIT_PASSPHRASE": ""}
    return subprocess.run(
        [*EDGEKIT, *words],
        check=False,
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        env=environment,
    )


def answer(*words: str | Path) -> Any:
    done = run(*words, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@contextmanager
def hub(fleet: Fleet) -> Iterator[subprocess.Popen[bytes]]:
    log = Path(f"{fleet.directory}-hub.log")
    with log.open("w") as stream:
        process = subprocess.Popen([*EDGEKIT, "hub", "--fleet", fleet.directory], stderr=stream)
    try:
        ports = (fleet.settings.web_port, fleet.settings.https_port)
        eventually(lambda: process.poll() is not None or all(map(listens, ports)))
        assert process.poll() is None, log.read_text()
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def test_a_fleet_from_its_making_to_a_rollout_by_commands_alone(tmp_path: Path) -> None:
    template = make_fleet(tmp_path / "ports").settings
    directory = tmp_path / "fleet"
    made = answer(
        "fleet", "init", directory, "--host", "localhost", "--name", "shop",
        "--mqtt-port", str(template.mqtt_port), "--https-port", str(template.https_port),
        "--web-port", str(template.web_port),
    )  # fmt: skip
    assert made["fleet"] == "shop"
    from edgekit.hub.fleet import open_fleet

    fleet = open_fleet(directory)
    at = ("--fleet", directory)
    with Mosquitto(fleet), hub(fleet) as process:
        invited = answer("devices", "invite", "pi-1", "--profile", "demo-small", *at)
        assert invited["token"].startswith("ek1.")
        (line,) = answer("devices", "list", *at)["devices"]
        assert (line["id"], line["contact"]) == ("pi-1", "invited")
        bundle = null_bundle().write(tmp_path / "tiny.ekb", KEY)
        (release,) = answer("release", "add", bundle, *at)["releases"]
        assert (release["name"], release["version"], release["counter"]) == ("tiny", "1.0", 1)
        assert answer("release", "list", *at)["releases"] == [release]
        with Client(fleet, identity(fleet, "pi-1", tmp_path)) as device:
            device.subscribe("edgekit/v1/shop/device/pi-1/desired")
            facts = DeviceFacts(profile="demo-small", arch="x86_64", cores=1, ram_bytes=1)
            said = Reported(at=utc_now(), generation=0, device=facts)
            device.say("pi-1", said, Kind.REPORTED, retain=True)
            started = answer("rollout", "start", "tiny@1.0", "--to", "all", *at)
            eventually(lambda: bool(device.got("pi-1", Kind.DESIRED)))
            desired = messages.decode(device.got("pi-1", Kind.DESIRED)[0], Desired)
            assert desired.models["tiny"].version == "1.0"
            name = started["rollout"]["id"]
            assert answer("rollout", "pause", name, *at)["status"] == "paused"
            assert answer("rollout", "resume", "tiny", *at)["status"] == "running"
            assert answer("rollout", "abort", "tiny@1.0", *at)["status"] == "aborted"
            eventually(lambda: len(device.got("pi-1", Kind.DESIRED)) == 2)
        (shown,) = answer("rollout", "status", "tiny", *at)["rollouts"]
        assert shown["devices"]["pi-1"]["standing"] == "skipped"
        assert run("rollout", "pause", "tiny", *at).returncode == 1
        process.send_signal(signal.SIGTERM)
        assert process.wait(WAIT_S) == 0


def test_the_hub_serves_its_pages_on_loopback_and_enrolment_over_tls(lab: Fleet) -> None:
    with hub(lab):
        web = f"http://127.0.0.1:{lab.settings.web_port}/"
        with urllib.request.urlopen(web, timeout=WAIT_S) as response:
            assert b"<html" in response.read()
        context = ssl.create_default_context(cafile=str(lab.root_ca))
        url = f"https://localhost:{lab.settings.https_port}/.well-known/est/cacerts"
        with urllib.request.urlopen(url, timeout=WAIT_S, context=context) as response:
            assert response.status == 200


def test_without_a_broker_the_hub_says_so_and_goes_on_trying(lab: Fleet) -> None:
    with hub(lab) as process:
        log = Path(f"{lab.directory}-hub.log")
        eventually(lambda: "no broker at port" in log.read_text())
        with Mosquitto(lab):
            eventually(lambda: "connected to the broker" in log.read_text())
        process.send_signal(signal.SIGINT)
        assert process.wait(WAIT_S) == 0


def test_a_second_hub_of_a_fleet_is_refused(lab: Fleet) -> None:
    with hub(lab):
        second = run("hub", "--fleet", lab.directory)
    assert second.returncode == 1
    assert "is running already" in second.stderr


def test_a_port_that_is_taken_is_named_with_its_setting(lab: Fleet) -> None:
    with socket.create_server(("127.0.0.1", lab.settings.https_port)):
        done = run("hub", "--fleet", lab.directory)
    assert done.returncode == 1
    assert "https_port" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("devices", "invite", "Pi!", "--profile", "demo-small"), 2, "not a device id"),
        (("devices", "invite", "hub", "--profile", "demo-small"), 2, "reserved"),
        (("devices", "invite", "--profile", "demo-smal"), 2, "did you mean demo-small"),
        (("devices", "invite", "--profile", "demo-small", "--expires", "1y"), 2, "24h"),
        (("devices", "show", "nobody"), 2, "no device 'nobody'"),
        (("rollout", "start", "tiny", "--to", "all"), 2, "NAME@VERSION"),
        (("rollout", "start", "tiny@1.0", "--to", "all"), 1, "no release tiny@1.0"),
        (("rollout", "status", "tiny"), 2, "no rollout 'tiny'"),
        (("release", "add", "/nonexistent.ekb"), 2, "cannot read"),
        (("release", "add", "/nonexistent.ekb", "--trust", "/nonexistent.pub"), 2, "cannot use"),
    ],
)
def test_what_is_wrong_is_one_sentence(
    lab: Fleet, words: tuple[str, ...], code: int, says: str
) -> None:
    done = run(*words, "--fleet", lab.directory)
    assert done.returncode == code
    assert says in done.stderr
    assert done.stderr.startswith("edgekit: ")
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_directory_that_is_no_fleet_is_misused(tmp_path: Path) -> None:
    for words in (("hub",), ("devices", "list"), ("release", "list"), ("rollout", "status")):
        done = run(*words, "--fleet", tmp_path)
        assert done.returncode == 2
        assert "not a fleet directory" in done.stderr
