"""`edgekit environments list|setup`."""

from __future__ import annotations

import click

from edgekit.cli.output import emit, json_option, remark, table
from edgekit_converters.environments import ENVIRONMENTS, cache, find, find_environment, set_up

__all__ = ["environments"]


@click.group()
def environments() -> None:
    """List and set up the tools that live in environments of their own."""


@environments.command("list")
@json_option
def list_(as_json: bool) -> None:
    """List the environments, and where those that are there are."""
    found = {name: find(environment) for name, environment in ENVIRONMENTS.items()}
    if as_json:
        emit(
            {
                "cache": str(cache()),
                "environments": [
                    {
                        "name": name,
                        "title": ENVIRONMENTS[name].title,
                        "size_mb": ENVIRONMENTS[name].size_mb,
                        "python": str(python) if python is not None else None,
                        "pins": ENVIRONMENTS[name].pins,
                    }
                    for name, python in found.items()
                ],
            }
        )
        return
    rows = [
        [name, ENVIRONMENTS[name].title, f"{ENVIRONMENTS[name].size_mb}",
         str(python.parent.parent) if python is not None else "not set up"]
        for name, python in found.items()
    ]  # fmt: skip
    table(("NAME", "FOR", "MB", "WHERE"), rows)


@environments.command()
@click.argument("name")
@json_option
def setup(name: str, as_json: bool) -> None:
    """Install environment NAME into the cache (EDGEKIT_CACHE, or ~/.cache/edgekit)."""
    environment = find_environment(name)
    if find(environment) is None:
        remark(f"installing {environment.title}, about {environment.size_mb} MB, once.")
    python = set_up(environment)
    if as_json:
        emit({"name": name, "python": str(python)})
    else:
        click.echo(f"{name}: {python.parent.parent}")
