"""`edgekit devices`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import datetime, timezone
from pathlib import Path

import click
import msgspec

import edgekit_profiles
from edgekit.cli.hub import fleet_option
from edgekit.cli.output import emit, json_option, remark, table
from edgekit.hub import orders, roster
from edgekit.hub.fleet import Fleet, open_fleet
from edgekit.hub.invitation import parse_duration
from edgekit.hub.store import Store, open_store

__all__ = ["devices", "opened"]


@contextmanager
def opened(directory: Path) -> Iterator[tuple[Fleet, Store]]:
    """A fleet and its store, closed at the end. Errors: `Misused`."""
    fleet = open_fleet(directory)
    with closing(open_store(fleet.database)) as store:
        yield fleet, store


@click.group()
def devices() -> None:
    """Invite and list devices."""


@devices.command()
@click.argument("device", required=False)
@fleet_option
@click.option("--profile", required=True, help="Name of a shipped profile, or a TOML file.")
@click.option("--expires", default="24h", show_default=True, help="Time to enrol: 30m, 24h, 7d.")
@json_option
def invite(device: str | None, directory: Path, profile: str, expires: str, as_json: bool) -> None:
    """Print the token by which DEVICE (default: a new id) enrols, once.

    An earlier invitation of the same device is void from now on.
    """
    with opened(directory) as (fleet, store):
        invited = orders.invite(
            fleet,
            store,
            device=device,
            profile_toml=edgekit_profiles.text(profile),
            life=parse_duration(expires),
            now=datetime.now(timezone.utc),
        )
    if as_json:
        emit(invited)
        return
    click.echo(invited.token)
    remark(
        f"On {invited.device}, before {invited.expires_at:%Y-%m-%d %H:%M} UTC: "
        "edgekit-agent enroll TOKEN --dir DIR"
    )


@devices.command(name="list")
@fleet_option
@json_option
def list_(directory: Path, as_json: bool) -> None:
    """List devices: enrolled ones, and those invited."""
    with opened(directory) as (_, store):
        lines = roster.roster(store, now=datetime.now(timezone.utc))
    if as_json:
        emit({"devices": lines})
        return
    rows = [
        [line.id, line.profile, line.contact.value, line.heard, " ".join(line.bundles)]
        for line in lines
    ]
    table(["device", "profile", "contact", "heard", "serves"], rows)
    if not rows:
        remark("No device yet: edgekit devices invite --profile PROFILE.")


@devices.command()
@click.argument("device")
@fleet_option
@json_option
def show(device: str, directory: Path, as_json: bool) -> None:
    """Show what is known of DEVICE."""
    with opened(directory) as (_, store):
        line = roster.find(store, device, now=datetime.now(timezone.utc))
    if as_json:
        emit(line)
        return
    for name, value in msgspec.to_builtins(line).items():
        click.echo(f"{name}: {value}")
