"""`edgekit rollout`."""

from __future__ import annotations

import time
from collections import Counter
from datetime import datetime, timezone
from pathlib import Path
from typing import Final

import click

from edgekit.cli.devices import opened
from edgekit.cli.hub import fleet_option
from edgekit.cli.output import emit, json_option, remark, table
from edgekit.hub import orders
from edgekit.hub.rollout import Action, Rollout, Standing
from edgekit.hub.store import Store
from edgekit_contract.errors import Misused

__all__ = ["rollout"]

POLL_S: Final = 0.5


@click.group()
def rollout() -> None:
    """Move a fleet to a release."""


@rollout.command()
@click.argument("release", metavar="NAME@VERSION")
@fleet_option
@click.option(
    "--to",
    "selector",
    required=True,
    help="Which devices: all, profile:NAME, or ids with commas between.",
)
@json_option
def start(release: str, directory: Path, selector: str, as_json: bool) -> None:
    """Have devices move to a release. A running hub begins within a second."""
    model, version = orders.parse_release(release)
    with opened(directory) as (fleet, store):
        started = orders.start_rollout(
            store,
            fleet.repository,
            model=model,
            version=version,
            selector=selector,
            now=datetime.now(timezone.utc),
        )
    if as_json:
        emit(started)
        return
    for old in started.superseded:
        remark(f"The rollout {old.id} of {old.title} ends here, {old.note}.")
    click.echo(f"Rollout {started.rollout.id} of {started.rollout.title} to {selector} begins.")


@rollout.command()
@click.argument("name", required=False, metavar="[ROLLOUT]")
@fleet_option
@click.option(
    "--wait",
    is_flag=True,
    help="Until ROLLOUT has ended; exit 1 if it was aborted or a device failed.",
)
@json_option
def status(name: str | None, directory: Path, wait: bool, as_json: bool) -> int:
    """Show ROLLOUT (its id, NAME or NAME@VERSION), or all rollouts."""
    if wait and name is None:
        raise Misused("--wait needs the ROLLOUT to wait for.")
    with opened(directory) as (_, store):
        found = orders.progress(store, name)
        if wait:
            found = [_follow(store, found[0])]
    if as_json:
        emit({"rollouts": found})
    else:
        table(
            ["rollout", "release", "to", "status", *(standing.value for standing in Standing), ""],
            [_row(line) for line in found],
        )
        if name is not None:
            click.echo("")
            parts = found[0].devices.items()
            rows = [[device, part.standing.value, part.reason] for device, part in parts]
            table(["device", "standing", "reason"], rows)
    return 1 if wait and not found[0].good else 0


def _follow(store: Store, line: orders.Progress) -> orders.Progress:
    """Tell of each change until the rollout ends."""
    told = ""
    while True:
        now = _summary(line)
        if now != told:
            remark(now)
        told = now
        if line.ended:
            return line
        time.sleep(POLL_S)
        (line,) = orders.progress(store, line.rollout.id)


def _summary(line: orders.Progress) -> str:
    counts = Counter(part.standing for part in line.devices.values())
    numbers = [f"{counts[standing]} {standing.value}" for standing in Standing if counts[standing]]
    return ", ".join([f"{line.rollout.title} {line.rollout.status.value}", *numbers])


def _row(line: orders.Progress) -> list[str]:
    counts = Counter(part.standing for part in line.devices.values())
    numbers = [str(counts[standing]) for standing in Standing]
    found = line.rollout
    return [found.id, found.title, found.selector, found.status.value, *numbers, found.note]


def _order(action: Action, summary: str) -> click.Command:
    @click.argument("name", metavar="ROLLOUT")
    @fleet_option
    @json_option
    def command(name: str, directory: Path, as_json: bool) -> None:
        with opened(directory) as (_, store):
            after = _act(store, name, action)
        if as_json:
            emit(after)
        else:
            click.echo(f"Rollout {after.id} of {after.title} is {after.status.value}.")

    return click.command(name=action.value, help=summary)(command)


def _act(store: Store, name: str, action: Action) -> Rollout:
    found = store.ledger.rollout(name)
    return store.ledger.order(found.id, action, now=datetime.now(timezone.utc).timestamp())


rollout.add_command(_order(Action.PAUSE, "Tell no further device; those told go on."))
rollout.add_command(_order(Action.RESUME, "Go on telling devices."))
rollout.add_command(
    _order(Action.ABORT, "End it: devices that have not committed return to what they had.")
)
