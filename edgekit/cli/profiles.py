"""`edgekit profiles list|show`."""

from __future__ import annotations

import click

import edgekit_profiles
from edgekit.cli.output import emit, json_option, table
from edgekit_contract.profile import Profile, parse_profile

__all__ = ["profiles"]


@click.group()
def profiles() -> None:
    """List and show the kinds of device."""


@profiles.command("list")
@json_option
def list_(as_json: bool) -> None:
    """List the profiles that edgekit ships."""
    found = [edgekit_profiles.load(name) for name in edgekit_profiles.names()]
    if as_json:
        emit({"profiles": found})
        return
    table(("NAME", "WHAT", "CPU", "RAM", "RUNTIMES", "PYTHON", "THREADS"), [_row(p) for p in found])


@profiles.command()
@click.argument("profile")
@json_option
def show(profile: str, as_json: bool) -> None:
    """Show PROFILE, a name or a TOML file, with the source of each fact."""
    text = edgekit_profiles.text(profile)
    parsed = parse_profile(text, source=profile)
    if as_json:
        emit(parsed)
    else:
        click.echo(text.decode(), nl=False)


def _row(profile: Profile) -> tuple[str, ...]:
    cpu = profile.cpu
    return (
        profile.name,
        profile.title,
        f"{cpu.cores} x {cpu.core} ({cpu.arch.value})",
        f"{profile.memory.ram_mib} MiB",
        ", ".join(f"{r.kind.value} {r.version}" for r in profile.runtimes),
        profile.runtimes[0].python,
        str(max(runtime.threads for runtime in profile.runtimes)),
    )
