"""`edgekit hub`, and the option by which commands find their fleet."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from edgekit.cli.output import remark

__all__ = ["fleet_option", "hub"]

F = TypeVar("F", bound=Callable[..., Any])


def fleet_option(command: F) -> F:
    """Add `--fleet DIR` as the parameter `directory`; EDGEKIT_FLEET is its default."""
    return click.option(
        "--fleet",
        "directory",
        type=click.Path(path_type=Path),
        envvar="EDGEKIT_FLEET",
        required=True,
        help="The fleet directory; default: $EDGEKIT_FLEET.",
    )(command)


@click.command()
@fleet_option
@click.option("--verbose", is_flag=True, help="Log what is usual, not only what is wrong.")
def hub(directory: Path, verbose: bool) -> None:
    """Run the hub of a fleet, with its dashboard, until it is stopped."""
    from edgekit.hub.fleet import open_fleet
    from edgekit.hub.server import run_hub

    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    run_hub(open_fleet(directory), say=remark)
