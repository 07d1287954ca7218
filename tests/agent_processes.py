"""Agents as processes, on a device directory as enrolment leaves it."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
from agents import PATIENCE_S, QUICK, wait_for
from fleets import identity

import edgekit_profiles
from edgekit.hub.fleet import Fleet
from edgekit_agent import config
from edgekit_agent.config import DeviceConfig, Knobs
from edgekit_agent.status_socket import ask
from edgekit_contract.errors import Refused

KNOBS = msgspec.structs.replace(
    QUICK, reconnect_s=0.2, takeover_s=0.4, stall_s=60.0, request_timeout_s=1.0
)


class Process:
    """`edgekit-agent run` on a device directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.log = directory.with_suffix(".log")
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Process:
        self.start()
        return self

    def start(self) -> None:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "edgekit_agent", "run", "--dir", str(self.directory)],
                stderr=log,
            )

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        assert self._process is not None
        self._process.send_signal(number)
        code = self._process.wait(PATIENCE_S)
        self._process = None
        return code

    def __exit__(self, *error: object) -> None:
        if self._process is not None:
            self.stop()

    def state(self) -> dict[str, object]:
        try:
            return msgspec.json.decode(ask(self.directory), type=dict[str, object])
        except (Refused, msgspec.DecodeError):
            return {}

    def connected(self) -> bool:
        return self.state().get("connection") == "connected"

    def serves(self, version: str) -> bool:
        reported = self.state().get("reported")
        model = reported.get("models", {}).get("tiny", {}) if isinstance(reported, dict) else {}
        active = model.get("active") or {}
        return bool(active.get("version") == version and model.get("phase", "idle") == "idle")

    def wait_for(self, version: str) -> None:
        wait_for(lambda: self.serves(version), f"{version}\n{self.log.read_text()}")


def join(fleet: Fleet, directory: Path, device: str, *, knobs: Knobs = KNOBS) -> Process:
    """A device directory as enrolment leaves it."""
    files = identity(fleet, device, directory.parent / "identities")
    (directory / "identity").mkdir(parents=True)
    (directory / "tuf").mkdir()
    shutil.copy(files.certificate, directory / "identity" / "device.pem")
    shutil.copy(files.key, directory / "identity" / "device.key")
    shutil.copy(files.root_ca, directory / "identity" / "root-ca.pem")
    (directory / "tuf" / "root.json").write_bytes(fleet.repository.first_root())
    (directory / "profile.toml").write_bytes(edgekit_profiles.text("demo-small"))
    settings = DeviceConfig(
        id=device,
        fleet=fleet.name,
        profile="demo-small",
        hub_url="https://localhost",
        mqtt_host="localhost",
        mqtt_port=fleet.settings.mqtt_port,
    )
    (directory / "device.toml").write_text(config.render(settings))
    turn(directory, knobs)
    return Process(directory)


def turn(directory: Path, knobs: Knobs) -> None:
    """Append knobs to a device.toml."""
    given = {k: v for k, v in msgspec.structs.asdict(knobs).items() if v is not None}
    with (directory / "device.toml").open("a") as stream:
        stream.writelines(f"{name} = {value}\n" for name, value in given.items())
