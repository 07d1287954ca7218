"""`edgekit bench --device`: real hub, mosquitto and agent, and the build that follows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from agent_processes import join
from fleets import eventually, make_fleet, utc_now
from hubs import RunningHub
from mosquitto import Mosquitto

import edgekit_profiles
from edgekit.build.notebook import Notebook
from edgekit.hub import orders
from edgekit.hub.fleet import Fleet

ROOT = Path(__file__).parents[2]
EDGEKIT = str(Path(sys.executable).with_name("edgekit"))


@pytest.fixture
def lab(tmp_path: Path) -> Fleet:
    return make_fleet(tmp_path / "fleet")


@pytest.fixture
def broker(lab: Fleet) -> Iterator[Mosquitto]:
    with Mosquitto(lab) as running:
        yield running


def command(tmp_path: Path, *words: object) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {
        "EDGEKIT_FIGURES": str(tmp_path / "figures.json"),
        "EDGEKIT_PASSPHRASE": "",
    }
    return subprocess.run(
        [EDGEKIT, *map(str, words)], capture_output=True, text=True, check=False, env=environment
    )


def build(tmp_path: Path, profile: Path) -> dict[str, object]:
    """The float32 digit classifier for a profile; its report."""
    words = ("--recipe", "float32", "--name", "digits", "--search-time", 2)
    run = command(
        tmp_path, "build", ROOT / "examples/digits/digits.onnx", "--profile", profile,
        "--validation", ROOT / "examples/digits/validation.npz", *words,
        "-o", tmp_path / "out", "--json",
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    (bundle,) = json.loads(run.stdout)["bundles"]
    found = bundle["report"]
    assert isinstance(found, dict)
    return found


def test_a_device_measures_and_the_next_build_goes_by_its_figure(
    lab: Fleet, broker: Mosquitto, tmp_path: Path
) -> None:
    # this machine has not so many cores, so that it is none of the profile, wherever the test runs
    text = edgekit_profiles.text("demo-small").replace(b"threads = 1", b"threads = 64")
    profile = tmp_path / "small.toml"
    profile.write_bytes(text.replace(b"cores = 1", b"cores = 64"))
    before = build(tmp_path, profile)
    (bundle,) = (tmp_path / "out").glob("*.ekb")
    assert not before["on_target"]
    (candidate, *_) = before["candidates"]  # type: ignore[misc]
    assert "figure" not in candidate or candidate["figure"] is None
    guess = candidate["estimate"]
    assert guess["low"] < guess["ms"] < guess["high"]

    agent = join(lab, tmp_path / "d1", "d1")
    agent.directory.joinpath("profile.toml").write_bytes(profile.read_bytes())
    with RunningHub(lab) as hub:
        orders.invite(
            lab, hub.store, device="d1", profile_toml=profile.read_bytes(),
            life=timedelta(hours=1), now=utc_now(),
        )  # fmt: skip
        words = ("bench", bundle, "--fleet", lab.directory, "--seconds", 0.5, "--json")
        refused = command(tmp_path, *words, "--device", "nobody")
        assert refused.returncode == 2 and "there is no device 'nobody'" in refused.stderr
        with agent:
            agent_is_known(hub)
            run = command(tmp_path, *words, "--device", "d1")
    assert run.returncode == 0, run.stderr + agent.log.read_text()
    (found,) = json.loads(run.stdout)["measured"]
    assert found["figure"]["device"] == "d1"
    assert found["figure"]["median_ms"] > 0
    assert found["estimate"] == guess
    assert lab.repository.releases() == ()
    assert not list((tmp_path / "d1" / "models").iterdir())
    (note,) = Notebook(tmp_path / "figures.json").notes()
    assert (note.key.profile, note.key.runtime) == ("demo-small", "onnxruntime")

    after = build(tmp_path, profile)
    (candidate, *_) = after["candidates"]  # type: ignore[misc]
    assert candidate["figure"]["median_ms"] == found["figure"]["median_ms"]
    assert candidate["estimate"] == guess  # predicted beside measured


def agent_is_known(hub: RunningHub) -> None:
    def known() -> bool:
        row = hub.store.registry.device("d1")
        return row is not None and row.status is not None and row.status.online

    eventually(known)
