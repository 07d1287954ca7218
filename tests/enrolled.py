"""Device directories as enrolment in a fleet of the tests leaves them."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
from fleets import identity

import edgekit_profiles
from edgekit.hub.fleet import Fleet
from edgekit_agent import config
from edgekit_agent.config import DeviceConfig, Knobs

__all__ = ["enrolled", "turn"]


def enrolled(fleet: Fleet, directory: Path, device: str, *, knobs: Knobs) -> Path:
    """Make a device's directory, with its identity and settings."""
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
    return directory


def turn(directory: Path, knobs: Knobs) -> None:
    """Append knobs to a device.toml."""
    given = {k: v for k, v in msgspec.structs.asdict(knobs).items() if v is not None}
    with (directory / "device.toml").open("a") as stream:
        stream.writelines(f"{name} = {value}\n" for name, value in given.items())
