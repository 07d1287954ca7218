"""`edgekit release`."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path

import click

from edgekit.cli.hub import fleet_option
from edgekit.cli.output import emit, json_option, remark, table
from edgekit.cli.passphrase import unlock
from edgekit.hub.fleet import open_fleet
from edgekit.release.keys import read_public_key
from edgekit.release.releases import Release

__all__ = ["release"]


@click.group()
def release() -> None:
    """Publish bundles to a fleet."""


@release.command()
@click.argument("bundles", nargs=-1, required=True, type=click.Path(path_type=Path))
@fleet_option
@click.option(
    "--trust",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Public key of which one must have signed each bundle; default: build_keys of fleet.toml.",
)
@click.option(
    "--key",
    type=click.Path(path_type=Path),
    help="The targets key; default: offline/tuf-targets.key of the fleet directory.",
)
@click.option(
    "--floor",
    metavar="VERSION",
    help="Oldest version that a device may go back to after this; default: the release before.",
)
@json_option
def add(
    bundles: tuple[Path, ...],
    *,
    directory: Path,
    trust: tuple[Path, ...],
    key: Path | None,
    floor: str | None,
    as_json: bool,
) -> None:
    """Verify BUNDLES and publish them; those of one NAME and VERSION are one release."""
    fleet = open_fleet(directory)
    trusted = [read_public_key(path) for path in trust] or fleet.build_keys()
    added = fleet.repository.add_release(
        bundles,
        targets_key=unlock(key or fleet.tuf_targets_key),
        trusted=trusted,
        floor=floor,
        now=datetime.now(timezone.utc),
    )
    if not trusted:
        remark("Signatures were not looked at: no --trust, and no build_keys in fleet.toml.")
    _print(added, as_json)


@release.command(name="list")
@fleet_option
@json_option
def list_(directory: Path, as_json: bool) -> None:
    """List releases, by name, newest first."""
    found = open_fleet(directory).repository.releases()
    _print(found, as_json)
    if not found and not as_json:
        remark("No release yet: edgekit release add BUNDLE.")


def _print(releases: tuple[Release, ...], as_json: bool) -> None:
    if as_json:
        emit({"releases": releases})
        return
    rows = [
        [r.title, str(r.counter), str(r.floor), profile, bundle.runtime,
         f"{bundle.sizes.download_bytes / 1e6:.2f} MB", bundle.digest[:12]]
        for r in releases
        for profile, bundle in sorted(r.bundles.items())
    ]  # fmt: skip
    table(["release", "counter", "floor", "profile", "runtime", "download", "digest"], rows)
