"""`edgekit fleet`."""

from __future__ import annotations

import os
from datetime import datetime, timezone
from pathlib import Path

import click

from edgekit.cli.output import emit, json_option, remark
from edgekit.cli.passphrase import new_passphrase
from edgekit.hub.fleet import HTTPS_PORT, MQTT_PORT, WEB_PORT, FleetSettings, init_fleet

__all__ = ["fleet"]


@click.group()
def fleet() -> None:
    """Make a fleet: its authorities, repository and broker configuration."""


@fleet.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option(
    "--host",
    "hosts",
    multiple=True,
    required=True,
    help="Name or address of the hub's machine, as devices reach it. Repeatable; the first is "
    "what devices are told. Only localhost: nothing listens to other machines.",
)
@click.option("--name", help="Name of the fleet; default: that of the directory.")
@click.option("--mqtt-port", default=MQTT_PORT, show_default=True)
@click.option("--https-port", default=HTTPS_PORT, show_default=True)
@click.option("--web-port", default=WEB_PORT, show_default=True)
@json_option
def init(
    directory: Path,
    *,
    hosts: tuple[str, ...],
    name: str | None,
    mqtt_port: int,
    https_port: int,
    web_port: int,
    as_json: bool,
) -> None:
    """Make the fleet directory DIRECTORY."""
    settings = FleetSettings(
        name=name or directory.resolve().name,
        hosts=hosts,
        mqtt_port=mqtt_port,
        https_port=https_port,
        web_port=web_port,
    )
    made = init_fleet(
        directory,
        settings,
        passphrase=lambda: new_passphrase(str(directory / "offline")),
        now=datetime.now(timezone.utc),
    )
    _remark_root()
    if as_json:
        emit(
            {
                "fleet": made.name,
                "directory": str(made.directory),
                "mosquitto_conf": str(made.mosquitto_conf),
                "offline_keys": str(made.offline),
            }
        )
        return
    click.echo(f"Fleet {made.name} is in {made.directory}.")
    click.echo(f"1. broker:   mosquitto -c {made.mosquitto_conf}")
    click.echo(f"2. hub:      edgekit hub --fleet {directory}")
    click.echo(f"3. a device: edgekit devices invite --fleet {directory} --profile PROFILE")
    remark(f"Keep {made.offline} in a safe: who has those keys owns the fleet.")


def _remark_root() -> None:
    if os.geteuid() == 0:
        remark(
            "This fleet belongs to root, so its broker and hub, which face the network, run as "
            "root: give it a user of its own (docs/fleet.md)."
        )
