"""`edgekit profiles list|show|new|check|schema`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

import edgekit_profiles
from edgekit.cli.output import emit, json_option, remark, table
from edgekit_contract.errors import Misused, Refused
from edgekit_contract.profile import Profile, parse_profile

if TYPE_CHECKING:
    from edgekit_profiles.survey import Survey

__all__ = ["profiles"]


@click.group()
def profiles() -> None:
    """List, show, make and check the kinds of device."""


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


@profiles.command()
@click.argument("name", required=False)
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="FILE",
              help="Write the profile there; default: print it.")  # fmt: skip
@click.option("--device", metavar="ID", help="Of this device of the fleet, by what it reported.")
@click.option("--fleet", "directory", type=click.Path(path_type=Path), envvar="EDGEKIT_FLEET",
              help="The device's fleet directory; default: $EDGEKIT_FLEET.")  # fmt: skip
@json_option
def new(
    *,
    name: str | None,
    output: Path | None,
    device: str | None,
    directory: Path | None,
    as_json: bool,
) -> None:
    """Write the profile of this machine, or of a device of a fleet.

    NAME goes into the names of its bundles; without it, the profile is called after the board.
    """
    from edgekit_profiles.drafting import draft, render
    from edgekit_profiles.survey import of_this_machine

    if device is not None and directory is None:
        raise Misused("--device is of a fleet: say which with --fleet DIR.")
    told = click.get_current_context().get_parameter_source("directory")
    if device is None and told is ParameterSource.COMMANDLINE:
        raise Misused("--fleet has many devices: say which with --device ID.")
    if device is None or directory is None:
        survey, source = of_this_machine(), "This machine, as it was found"
    else:
        survey, source = _reported(device, directory), f"The device {device}, by what it reported"
    profile = draft(survey, name, taken=frozenset(edgekit_profiles.names()))
    text = render(profile, source=f"{source}: edgekit profiles new. Change what is not so.")
    if output is not None:
        _write(output, text)
    if as_json:
        emit({"profile": profile, "path": output})
    elif output is None:
        click.echo(text, nl=False)
    else:
        click.echo(f"{output}  {profile.name}: {profile.title}")
    for sentence in _left_open(survey):
        remark(sentence)


@profiles.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@json_option
def check(files: tuple[str, ...], as_json: bool) -> None:
    """Say all that is wrong with profiles: names, or TOML files."""
    from edgekit_profiles.plausibility import mistakes

    found = {file: mistakes(edgekit_profiles.text(file)) for file in files}
    if as_json:
        emit({"profiles": [{"file": file, "mistakes": said} for file, said in found.items()]})
    else:
        for file, said in found.items():
            click.echo("\n".join(f"{file}: {sentence}" for sentence in said or ["it is sound."]))
    if wrong := sum(map(len, found.values())):
        amount = "1 mistake" if wrong == 1 else f"{wrong} mistakes"
        raise Refused(
            f"{amount} in {', '.join(f for f in files if found[f])}: correct what is said."
        )


@profiles.command()
def schema() -> None:
    """Print the JSON schema of a profile."""
    from edgekit_profiles.schema import json_schema

    emit(json_schema())


def _reported(device: str, directory: Path) -> Survey:
    """What the fleet's hub knows of a device. Errors: `Misused`, `Refused`."""
    from dataclasses import replace

    from edgekit.cli.devices import opened
    from edgekit_profiles.survey import of_device

    with opened(directory) as (_, store):
        row = store.registry.device(device)
    if row is None:
        raise Misused(f"the fleet has no device {device[:80]!r}: edgekit devices list.")
    if row.reported is None:
        raise Refused(f"{device} has not reported yet: start its agent, and the hub.")
    survey = of_device(row.reported.device)
    if row.profile not in edgekit_profiles.names():
        return survey
    # where its sensors are a device does not tell, nor did older agents tell their core
    known = edgekit_profiles.load(row.profile)
    if known.cpu.arch is not survey.arch:
        return survey
    return replace(survey, core=survey.core or known.cpu.core, thermal=known.thermal)


def _write(path: Path, text: str) -> None:
    try:
        with path.open("x", encoding="utf-8") as out:
            out.write(text)
    except FileExistsError as error:
        raise Misused(f"{path} is there already: choose another with -o.") from error
    except OSError as error:
        raise Misused(f"cannot write {path} ({error.strerror}): choose another with -o.") from error


def _left_open(survey: Survey) -> list[str]:
    """What a person may know better."""
    said = []
    if not survey.core:
        said.append("note: nothing tells the core: correct [cpu] core.")
    if not survey.thermal.temperature:
        said.append("note: nothing tells the temperature: add [thermal] temperature if you know.")
    return said


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
