"""`edgekit keys new|show`."""

from __future__ import annotations

from pathlib import Path

import click

from edgekit.cli.output import emit, json_option, table
from edgekit.cli.passphrase import new_passphrase, unlock
from edgekit.release.keys import KeyExists, new_key, public_path, read_public_key

__all__ = ["keys"]


@click.group()
def keys() -> None:
    """Make and show signing keys."""


@keys.command()
@click.argument("path", type=click.Path(path_type=Path))
@json_option
def new(path: Path, as_json: bool) -> None:
    """Make an Ed25519 key at PATH and its public key at PATH.pub.

    The passphrase is asked, or taken from EDGEKIT_PASSPHRASE (empty: none).
    """
    for file in (path, public_path(path)):
        if file.exists():  # said before a passphrase is typed twice for nothing
            raise KeyExists(file)
    key = new_key(path, new_passphrase(str(path)))
    if as_json:
        emit({"keyid": key.keyid, "private": str(path), "public": str(public_path(path))})
        return
    table(
        (),
        (
            ("private key", f"{path}  (keep it safe: whoever has it signs as you)"),
            ("public key", f"{public_path(path)}  (give it to --trust)"),
            ("key id", key.keyid),
        ),
    )


@keys.command()
@click.argument("path", type=click.Path(path_type=Path))
@json_option
def show(path: Path, as_json: bool) -> None:
    """Show the key at PATH: a public key as it is, a private one with its passphrase."""
    key = read_public_key(path) if path.suffix == ".pub" else unlock(path).public
    if as_json:
        emit({"keyid": key.keyid, "algorithm": key.algorithm, "public_pem": key.pem.decode()})
        return
    table((), (("key id", key.keyid), ("algorithm", key.algorithm)))
    click.echo(key.pem.decode(), nl=False)
