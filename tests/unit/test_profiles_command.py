"""`edgekit profiles new|check|schema`, by its entry point."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import pytest
from command_line import edgekit
from fleets import make_fleet, utc_now

import edgekit_profiles
from edgekit.hub.records import Batch, Heard
from edgekit.hub.store import open_store
from edgekit_contract.messages import DeviceFacts, Reported, encode


def test_new_writes_a_profile_that_check_finds_sound(tmp_path: Path) -> None:
    path = tmp_path / "here.toml"
    made = edgekit("profiles", "new", "here", "-o", path)
    assert (made.code, made.out.split()[:2]) == (0, [str(path), "here:"])
    checked = edgekit("profiles", "check", path)
    assert (checked.code, checked.out) == (0, f"{path}: it is sound.\n")
    assert edgekit_profiles.load(str(path)).name == "here"
    again = edgekit("profiles", "new", "here", "-o", path)
    assert (again.code, "is there already" in again.err) == (2, True)


def test_new_without_a_file_prints_what_it_would_write(tmp_path: Path) -> None:
    made = edgekit("profiles", "new", "here")
    (tmp_path / "p.toml").write_text(made.out)
    told = json.loads(edgekit("profiles", "new", "here", "--json").out)["profile"]
    assert told == json.loads(edgekit("profiles", "show", tmp_path / "p.toml", "--json").out)


def test_new_of_a_device_is_what_it_reported(tmp_path: Path) -> None:
    fleet = make_fleet(tmp_path / "fleet")
    facts = DeviceFacts(
        profile="raspberry-pi-5",
        arch="aarch64",
        features=("asimd", "asimddp"),
        cores=4,
        ram_bytes=8_054 << 20,
        board="Raspberry Pi 5 Model B Rev 1.0",
        python="3.13.5",
        runtimes={"onnxruntime": "1.32.0"},
    )
    said = encode(Reported(at=utc_now(), generation=0, device=facts))
    with closing(open_store(fleet.database)) as store:
        heard = Heard(at=1.0, profile="raspberry-pi-5", reported=said)
        store.records.write(Batch(devices={"kitchen": heard, "mute": Heard(at=1.0)}))
    words = ("profiles", "new", "big-pi", "--fleet", tmp_path / "fleet", "--device")
    made = edgekit(*words, "kitchen", "--json")
    profile = json.loads(made.out)["profile"]
    assert profile["memory"]["ram_mib"] == 8192
    assert profile["runtimes"][0]["python"] == "3.13"
    # an agent that tells no core is what it was enrolled as, whose sensors are known, too
    assert profile["cpu"]["core"] == "cortex-a76"
    assert profile["thermal"]["limit_c"] == 80
    unknown, mute = edgekit(*words, "garage"), edgekit(*words, "mute")
    assert (unknown.code, mute.code) == (2, 1)
    assert "the fleet has no device 'garage'" in unknown.err
    assert "mute has not reported yet" in mute.err


def test_a_device_needs_a_fleet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EDGEKIT_FLEET", raising=False)
    answer = edgekit("profiles", "new", "--device", "kitchen")
    assert (answer.code, "say which with --fleet DIR" in answer.err) == (2, True)


def test_check_names_every_mistake_and_its_file(tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    text = edgekit_profiles.text("raspberry-pi-4").decode()
    path.write_text(text.replace("threads = 4", "threads = 9"))
    answer = edgekit("profiles", "check", "raspberry-pi-5", path)
    assert answer.code == 1
    assert answer.out.splitlines()[0] == "raspberry-pi-5: it is sound."
    assert answer.out.count(f"{path}: runtimes.") == 2
    assert answer.err == f"edgekit: 2 mistakes in {path}: correct what is said.\n"
    plain = json.loads(edgekit("profiles", "check", path, "--json").out)
    assert len(plain["profiles"][0]["mistakes"]) == 2


def test_schema_is_json() -> None:
    assert json.loads(edgekit("profiles", "schema").out)["title"] == "edgekit profile"
